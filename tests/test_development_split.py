"""ELPV's development split: inside the training blocks, in the MVTec layout, never over other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toys import paint

from commandline import exit_code
from dataset import BENCHMARKS, Source, find_classes, locate
from readers.elpv import read_cells
from scripts import development_split

MVTEC = BENCHMARKS["mvtec"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A stand-in for the package: cells of both kinds and all probabilities in each of six blocks."""
    lines, rng = [], np.random.default_rng(0)
    for block in range(6):
        for i, probability in enumerate((0.0, 1.0, 1 / 3, 2 / 3, 0.0, 1.0)):
            number, kind = 30 * block + i + 1, "mono" if i < 4 else "poly"
            lines.append(f"images/cell{number:04}.png  {probability}  {kind}")
            paint(tmp_path / f"elpv/images/cell{number:04}.png", rng, defect=probability > 0.5)
    (tmp_path / "elpv/labels.csv").write_text("\n".join(lines))
    return tmp_path / "elpv"


def run(*arguments: object) -> int:
    return exit_code(lambda: development_split.main([str(argument) for argument in arguments]))


def part(path: Path) -> int:
    """The third of the blocks of 30 cells, from the file name."""
    return (int(path.stem.removeprefix("cell")) - 1) // 30 % 3


def test_the_split_is_read_as_two_classes_in_the_mvtec_layout(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "made/elpv_dev"
    assert run("--out", out, "--data_path", data) == 0
    source = locate(MVTEC, Source(out))
    assert find_classes(MVTEC, source) == ("mono", "poly")
    for name in ("mono", "poly"):
        train, test = (MVTEC.read(source, name, split) for split in ("train", "test"))
        assert {part(s.image) for s in train} == {0} and {part(s.image) for s in test} == {1}
        assert [(s.defect, s.anomalous, s.mask) for s in train] == 2 * [("good", False, None)]
        assert [(s.defect, s.anomalous, s.mask) for s in test] == [
            *(2 * [("defect", True, None)]),
            *(2 * [("good", False, None)]),
        ]
        for sample in (*train, *test):
            assert sample.image.read_bytes() == (data / "images" / sample.image.name).read_bytes()


def test_no_cell_of_the_test_blocks_is_in_the_split() -> None:
    """On the real data set."""
    benchmark = BENCHMARKS["elpv"]
    source = locate(benchmark, Source(None))
    assert source.root is not None
    images = development_split.list_images_of_split(source.root)
    labels = {cell.image: cell for cell in read_cells(source.root)}
    for name in ("mono", "poly"):
        own = {path: image for path, image in images.items() if path.parts[0] == name}
        train, test = ({s.image for s in benchmark.read(source, name, split)} for split in ("train", "test"))
        assert own and not test & set(own.values())
        assert {image for path, image in own.items() if path.parts[1] == "train"} < train
        for path, image in own.items():
            assert (labels[image].kind, labels[image].probability) == (name, float(path.parts[2] == "defect"))
            assert part(image) == {"train": 0, "test": 1}[path.parts[1]]


def test_it_can_be_written_again_and_copies_where_links_cannot_be_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "elpv_dev"
    assert run("--out", out, "--data_path", data) == 0
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    image = out / "mono/train/good/cell0001.png"
    assert image.is_symlink()

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert run("--out", out, "--data_path", data) == 0
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == files
    assert not image.is_symlink() and image.read_bytes() == (data / "images/cell0001.png").read_bytes()


def test_a_folder_with_anything_else_is_left_as_it_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elpv_dev"
    assert run("--out", out, "--data_path", data) == 0
    (out / "mono/notes.txt").write_text("mine")
    before = sorted(out.rglob("*"))
    capsys.readouterr()
    assert run("--out", out, "--data_path", data) == 2
    error = capsys.readouterr().err
    assert "holds something else, e.g. mono/notes.txt" in error and error.count("\n") == 1
    assert sorted(out.rglob("*")) == before and (out / "mono/notes.txt").read_text() == "mine"
    assert run("--out", out / "mono/notes.txt", "--data_path", data) == 2
    assert (out / "mono/notes.txt").read_text() == "mine"


def test_missing_images_are_named_and_nothing_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images/cell0001.png").unlink()
    assert run("--out", tmp_path / "out", "--data_path", data) == 2
    assert "cell0001.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
