"""CSV files: no cell is a formula, and every name can be read back."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from dataset import Sample
from run_files import Run
from run_files.csv_files import cell_text, read_csv, safe_cell, to_csv
from utils import write_atomically

NAMES = [
    '=HYPERLINK("http://x")',
    "+1+cmd",
    "-x",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    "\uff1d1+1",
    "'=x",
    "''=x",
    "'x",
    "x",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_text_that_would_be_a_formula_is_guarded_and_comes_back(name: str) -> None:
    cell = safe_cell(name)
    assert not cell or cell[0] not in "=+-@\t\r\n\uff1d"
    assert cell_text(cell) == name
    assert (cell == name) == (name in ("'x", "x", ""))


def test_numbers_stay_as_they_are() -> None:
    for value in (-0.5, 3, None, "-0.5", "+1e-05", "-inf", "nan"):
        assert safe_cell(value) is value


def test_a_relative_path_still_leads_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("=1+1.png").touch()
    assert safe_cell(Path("=1+1.png")) == "./=1+1.png" and Path("./=1+1.png").is_file()
    assert safe_cell(Path("a/=b.png")) == "a/=b.png" and safe_cell(Path("/=b.png")) == "/=b.png"


def test_names_come_back_from_a_file(tmp_path: Path) -> None:
    names = [*NAMES, os.fsdecode(b"caf\xe9"), 'a,"b"', "Größe"]
    write_atomically(tmp_path / "names.csv", to_csv(["name", "n"], ([name, -1.5] for name in names)))
    rows = read_csv(tmp_path / "names.csv")
    assert [row["name"] for row in rows] == names and {row["n"] for row in rows} == {"-1.5"}


@pytest.mark.parametrize("line", ["a,1,2", "a,1\nb,2,", f"{'x' * 200_000},1"])
def test_what_fits_no_column_is_an_error_that_names_the_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "names.csv").write_text(f"name,n\n{line}\n")
    with pytest.raises(ValueError, match=r"names.csv: a damaged CSV file \((line [23] has more cells|field larger)"):
        read_csv(tmp_path / "names.csv")


def test_predictions_hold_no_formula_and_every_name(tmp_path: Path) -> None:
    samples = [Sample(Path("=x.png"), True, "=1+1"), Sample(Path(os.fsdecode(b"d/\xff.png")), True, "-crack")]
    Run(tmp_path).write_predictions(samples, [1.0, -2.0])  # type: ignore[arg-type]
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        cells = list(csv.reader(file))[1:]
    assert cells == [["./=x.png", "'=1+1", "1", "1"], [os.fsdecode(b"d/\xff.png"), "'-crack", "1", "-2"]]
    rows = read_csv(tmp_path / "predictions.csv")
    assert [(Path(row["path"]), row["defect"]) for row in rows] == [(s.image, s.defect) for s in samples]
