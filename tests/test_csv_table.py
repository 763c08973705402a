"""--dataset csv: one file that lists the images; every row that cannot be used is a line with its number."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import CPU, paint, record_of, rows_of, score_again, train

from commandline import exit_code
from config import Config
from dataset import BENCHMARKS, Source, find_classes, locate
from experiment import Experiment
from readers.csv_table import NAMED, Table, find_csv, find_csv_classes, read_csv_table, read_table
from scripts.validate_data import main as validate_data

HEADER = "path,class,split,label,mask,group"


def file(root: Path, *rows: str, header: str = HEADER, content: bytes | None = None) -> Path:
    """images.csv below `root`, with all files that the rows name; they are empty."""
    root.mkdir(exist_ok=True)
    for row in rows:
        for name in row.split(","):
            if name.endswith(".png") and not name.startswith(("absent", "..", "/")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
    (root / "images.csv").write_bytes(content or "\n".join([header, *rows, ""]).encode())
    return root / "images.csv"


def sound(table: Table) -> Table:
    assert not table.problems, table.problems
    return table


def test_samples_are_as_the_rows_say_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        "t/b.png,nut,train,good,,",
        "t/a.png,nut,train,0,,day",
        "x/1.png,nut,test,scratch,m/1.png,night",
        "x/0.png,nut,TEST,Normal,,",
        "v/0.png,nut,validation,ok,,",
        "y.png,axle,train,normal,,",
        "z.png,axle,test,1,,",
    ]
    one = file(tmp_path, *rows)
    source = Source(one)
    nut = {split: read_csv_table(source, "nut", split) for split in ("train", "test", "validation")}
    assert [(s.image, s.group) for s in nut["train"]] == [(tmp_path / "t/a.png", "day"), (tmp_path / "t/b.png", "")]
    good, bad = nut["test"]
    assert (good.anomalous, good.defect, good.mask, good.upright) == (False, "good", None, True)
    assert (bad.anomalous, bad.defect, bad.mask, bad.group) == (True, "scratch", tmp_path / "m/1.png", "night")
    assert [s.image.name for s in nut["validation"]] == ["0.png"]
    assert read_csv_table(source, "axle", "test")[0].defect == "anomalous"
    assert read_csv_table(source, "axle", "validation") == []
    file(tmp_path, *reversed(rows))
    assert {split: read_csv_table(source, "nut", split) for split in nut} == nut
    assert find_csv_classes(one) == ("axle", "nut")  # in order of first occurrence


@pytest.mark.parametrize(
    ("label", "kind"),
    [("0.0", "good"), ("1.0", "anomalous"), ("GOOD", "good"), (" ok ", "good"), ("Loch, groß", "Loch, groß")],
)
def test_a_label_is_a_number_a_word_for_normal_or_the_kind_of_defect(tmp_path: Path, label: str, kind: str) -> None:
    path = file(tmp_path, "a.png,nut,train,good,,", f'b.png,nut,test,"{label}",,')
    (sample,) = read_csv_table(Source(path), "nut", "test")
    assert (sample.defect, sample.anomalous) == (kind, kind != "good")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_marks_line_ends_quotes_and_umlauts_are_read(tmp_path: Path, end: str, mark: bytes) -> None:
    name, odd = "Gerät, groß.png", b"\xff.png".decode(errors="surrogateescape")
    decomposed = unicodedata.normalize("NFD", "Tür.png")
    for image in (name, odd, decomposed, 'a "b".png'):
        (tmp_path / image).touch()
    lines = ["Label,Split , class,path,,", f'good,train,Gehäuse,"{name}",,', f"good,train,Gehäuse,{odd},,"]
    lines += [",,,,,", "", "good,train,Gehäuse,Tür.png,,", 'good,train,Gehäuse,"a ""b"".png",,']
    path = file(tmp_path, content=mark + end.join([*lines, ""]).encode(errors="surrogateescape"))
    found = {s.image.name for s in read_csv_table(Source(path), "Gehäuse", "train")}
    assert found == {name, odd, decomposed, 'a "b".png'}


PROBLEMS = {
    "a.png,nut,train,good,,": "row 3: the image a.png is in row 2 already: remove one of the two rows",
    "./a.png,nut,test,good,,": "row 3: the image ./a.png is in row 2 already",
    "b.png,nut,train,hole,,": "row 3: label 'hole' in train: images to learn from are normal",
    "b.png,nut,validation,1,,": "row 3: label 'anomalous' in validation: images to learn from are normal",
    "b.png,nut,test,good,m.png,": "row 3: the mask m.png of a normal image: leave the cell empty",
    "b.png,nut,tests,good,,": "row 3: split 'tests': wanted train, test, validation; did you mean test?",
    "absent.png,nut,test,good,,": "row 3: no such file {}/absent.png",
    "b.png,nut,test,hole,absent.png,": "row 3: no such file {}/absent.png",
    "absent\\1.png,nut,test,good,,": "row 3: no such file {}/absent\\1.png: write / between folders",
    "../b.png,nut,test,good,,": "row 3: the path '../b.png' leads out of {}: it must stay below",
    "/etc/b.png,nut,test,good,,": "row 3: the path '/etc/b.png' leads out of {}",
    "link.png,nut,test,good,,": "row 3: the path 'link.png' leads out of {}",
    "b.png,nut,test,hole,../m.png,": "row 3: the path '../m.png' leads out of {}",
    "b.png,nut,test,False,,": "row 3: label 'False': wanted good (or ok, normal, 0), 1, or the name of the kind",
    "b.png,nut,test,2,,": "row 3: label '2': wanted good",
    "b.png,nut,test,,,": "row 3: label '': wanted good",
    "b.png,a/b,test,good,,": "row 3: the class name 'a/b' holds a / or \\, and a name is no path: rename the class",
    "b.png,,test,good,,": "row 3: the class name '' is empty",
    ",nut,test,good,,": "row 3: no path of an image",
    "b.png,nut,test,good,,,left, over": "row 3: 8 cells, but 6 columns: quote a name that holds a comma",
    "b.png,nut": "row 3: split '': wanted train, test, validation",
}


@pytest.mark.parametrize("row", PROBLEMS)
def test_what_is_wrong_with_a_row_is_a_line_with_its_number(tmp_path: Path, row: str) -> None:
    root = tmp_path / "data"
    path = file(root, "a.png,nut,train,good,,", row)
    (tmp_path / "outside.png").touch()
    if row.startswith("link"):
        (root / "link.png").unlink()
        (root / "link.png").symlink_to(tmp_path / "outside.png")
    line = read_table(path).problems[0]
    assert line.startswith(f"{path}, {PROBLEMS[row].format(root)}") and "\n" not in line
    with pytest.raises(ValueError, match="row 3"):
        find_classes(BENCHMARKS["csv"], locate(BENCHMARKS["csv"], Source(path)))


def test_bytes_that_are_not_utf8_are_said_where_no_file_has_that_name(tmp_path: Path) -> None:
    path = file(tmp_path, content="path,class,split,label\nGerät.png,nut,train,good\n".encode("latin-1"))
    (tmp_path / "Gerät.png").touch()
    (line,) = read_table(path).problems
    assert line.endswith("Ger\\xe4t.png: the file is not UTF-8, save it as CSV UTF-8")


def test_masks_are_given_for_all_anomalous_images_of_a_class_or_for_none(tmp_path: Path) -> None:
    rows = ["a.png,nut,train,good,,", "b.png,nut,test,hole,m.png,", "c.png,nut,test,hole,,", "d.png,axle,test,hole,,"]
    (line,) = read_table(file(tmp_path, *rows)).problems
    assert ", row 4: no mask, as for 1 of 2 anomalous images of nut: give all of them, or none" in line


HEADERS = {
    "path,class,split": "row 1: wanted the columns path, class, split, label, and any of mask, group, unit; label is",
    "path,class,split,label,masks": "found also 'masks': remove or rename it; did you mean mask?",
    "path,class,split,label,Label": "the column label is there twice",
    "path;class;split;label": "separated by commas; found 'path;class;split;label': save the file with commas",
    "": "is missing",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_another_form_is_one_line(tmp_path: Path, header: str) -> None:
    (line,) = read_table(file(tmp_path, "a.png,nut,train,good", header=header)).problems
    assert HEADERS[header] in line and "\n" not in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEADER + '\n"a.png,nut,train,good,,\n', "line 2: no CSV (unexpected end of data): is a quotation mark"),
        (HEADER + "\n" + "x" * 140_000, "line 2: no CSV (field larger than field limit"),
        (HEADER + "\n", "no row below the header"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (line,) = read_table(file(tmp_path, content=content.encode())).problems
    assert says in line and "\n" not in line


def test_all_problems_are_named_up_to_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, *(f"absent{i}.png,nut,train,good,," for i in range(NAMED + 7)))
    with pytest.raises(ValueError) as problem:
        find_csv_classes(path)
    lines = str(problem.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [f"{path}, row {i}" for i in range(2, NAMED + 2)]
    assert lines[-1] == "and 7 more"
    assert train("--dataset", "csv", "--data_path", path) == 2
    assert len(capsys.readouterr().err.splitlines()) == NAMED + 1
    assert exit_code(lambda: validate_data(["--dataset", "csv", "--data_path", str(path)])) == 1
    *findings, summary = capsys.readouterr().out.splitlines()
    assert len(findings) == NAMED + 7 and all(line.startswith(f"error: all: {path}, row ") for line in findings)
    assert summary == f"errors: {NAMED + 7}, warnings: 0; checked 0 images of 0 classes"


def test_a_folder_stands_for_its_one_csv_file(tmp_path: Path) -> None:
    csv = BENCHMARKS["csv"]
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        locate(csv, Source(tmp_path / "absent.csv"))
    with pytest.raises(FileNotFoundError, match="wanted one .csv file, and it has none"):
        locate(csv, Source(tmp_path))
    path = file(tmp_path, "a.png,nut,train,good,,")
    (tmp_path / "._images.csv").touch()
    assert locate(csv, Source(tmp_path)).root == path == find_csv(tmp_path)
    assert find_classes(csv, locate(csv, Source(tmp_path))) == ("nut",)
    (tmp_path / "other.CSV").touch()
    with pytest.raises(
        FileNotFoundError, match=r"wanted one \.csv file; it has images\.csv, other\.CSV: name the file"
    ):
        locate(csv, Source(tmp_path))
    with pytest.raises(ValueError, match="are for --dataset folder"):
        locate(csv, Source(None, train_dir=tmp_path))


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = file(tmp_path, "a.png,nut,train,good,,")
    assert len(read_csv_table(Source(path), "nut", "train")) == 1
    file(tmp_path, "a.png,nut,train,good,,", "b.png,nut,train,good,,")
    assert len(read_csv_table(Source(path), "nut", "train")) == 2
    with pytest.raises(ValueError, match="no class 'axle'; it has nut"):
        read_csv_table(Source(path), "axle", "train")
    file(tmp_path, "a.png,nut,test,good,,")
    with pytest.raises(FileNotFoundError, match="no row of split train and class nut"):
        read_csv_table(Source(path), "nut", "train")


@pytest.mark.slow
def test_ten_thousand_rows_are_read_in_a_second_or_two(tmp_path: Path) -> None:
    rows = [f"{i % 50}/{i:05}.png,class{i % 8},{'test' if i % 3 else 'train'},good,," for i in range(10_000)]
    path = file(tmp_path, *rows)
    started = time.process_time()
    assert len(find_csv_classes(path)) == 8
    assert sum(len(read_csv_table(Source(path), f"class{c}", s)) for c in range(8) for s in ("train", "test")) == 10_000
    assert time.process_time() - started < 3


# --- commands ---


COUNTS = (("train", "good", 6), ("validation", "good", 4), ("test", "good", 3), ("test", "disc", 3))


def listed(root: Path, classes: tuple[str, ...] = ("nut", "axle")) -> Path:
    """Two classes of toy images in one flat folder, with masks, groups and a validation split."""
    lines = [HEADER]
    for number, name in enumerate(classes):
        rng = np.random.default_rng(number)
        for split, label, count in (
            ("train", "good", 6),
            ("validation", "good", 4),
            ("test", "good", 3),
            ("test", "disc", 3),
        ):
            for i in range(count):
                image = f"images/{name}-{split}-{label}-{i}.png"
                marked = paint(root / image, rng, defect=label == "disc")
                mask = f"masks/{name}-{i}.png" if label == "disc" else ""
                if mask:
                    (root / mask).parent.mkdir(exist_ok=True)
                    Image.fromarray(marked.astype(np.uint8) * 255).save(root / mask)
                lines.append(f"{image},{name},{split},{label},{mask},{'day' if i % 2 else 'night'}")
    (root / "images.csv").write_text("\n".join(lines) + "\n")
    return root / "images.csv"


def experiment(path: Path, class_name: str, **changes: Any) -> Experiment:
    settings: dict[str, Any] = {"net": "efficientnet_lite0", "image_size": 64, "workers": 0, "seeds": (1,)}
    return Experiment(Config("csv", (class_name,), data_path=path, **settings | changes), CPU)


def test_unified_and_shots_see_the_same_images(tmp_path: Path) -> None:
    path = listed(tmp_path / "data")
    unified = experiment(path, "unified", shots=2)
    assert unified.class_names == ("nut", "axle") and unified.counts["n_train"] == 4
    images = [s.image for name in ("nut", "axle") for s in experiment(path, name, shots=2).train_images.samples]
    assert [s.image for s in unified.train_images.samples] == images
    assert {s.class_name for s in unified.test_images.samples} == {"nut", "axle"}
    assert unified.normals is not None and (unified.normals.source, len(unified.normals.images)) == ("validation", 8)


@pytest.mark.slow
def test_a_file_is_trained_on_verified_and_used_from_another_place(
    res10: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path / "data")
    assert exit_code(lambda: validate_data(["--dataset", "csv", "--data_path", str(path), "--workers", "0"])) == 0
    assert capsys.readouterr().out == "errors: 0, warnings: 0; checked 32 images of 2 classes\n"
    flags = [
        "--dataset",
        "csv",
        "--data_path",
        path,
        "--variant",
        "rd4ad",
        "--epochs",
        1,
        "--save_path",
        tmp_path / "r",
    ]
    assert train(*flags, "--class", "nut") == 0
    run = tmp_path / "r/csv/rd4ad/nut/seed111"
    record = record_of(run)
    assert record["n_calibration"] == 4 and record["metrics"]["aupro"] is not None
    assert {row["group"] for row in rows_of(run / "data.csv")} == {"day", "night"}
    assert (run / "threshold.json").is_file()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert score_again(run, "--verify", "--data_path", tmp_path / "moved") == 0
    text = (tmp_path / "moved/images.csv").read_text()
    (tmp_path / "moved/images.csv").write_text(text.replace(",night\n", ",dusk\n"))
    capsys.readouterr()
    flags[3] = tmp_path / "moved"
    assert train(*flags, "--class", "nut") == 2
    assert "another mask or label" in capsys.readouterr().err


SPOILT: dict[str, Callable[[Path], object]] = {
    "is not an image of a format": lambda root: (root / "images/nut-validation-good-1.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
    ),
    "(train and validation): keep one": lambda root: (root / "images/nut-validation-good-1.png").write_bytes(
        (root / "images/nut-train-good-1.png").read_bytes()
    ),
    "another shape, so it cannot fit": lambda root: Image.new("L", (32, 64), 255).save(root / "masks/nut-1.png"),
}


@pytest.mark.parametrize("says", SPOILT)
def test_the_validator_looks_at_every_listed_file(
    tmp_path: Path, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path / "data")
    SPOILT[says](path.parent)
    assert exit_code(lambda: validate_data(["--dataset", "csv", "--data_path", str(path), "--workers", "0"])) == 1
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0] and "nut-" in errors[0]
