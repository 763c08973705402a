"""Validating a data set: one line per finding, and an exit code for scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commandline import exit_code
from scripts.validate_data import main

NUT = "train/good", "test/good", "test/cut", "test/dent"


def noise(path: Path, seed: int, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (16, 12), value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[2:6, 3:8] = value
    Image.fromarray(pixels).save(path)
    return path


def make_class(folder: Path, seed: int = 0) -> Path:
    """Three images per folder of NUT, with masks for the bad ones; all images differ."""
    for i, place in enumerate(NUT):
        for number in range(3):
            noise(folder / place / f"{number:03}.png", 1000 * seed + 10 * i + number)
            if place in ("test/cut", "test/dent"):
                mask(folder / "ground_truth" / Path(place).name / f"{number:03}_mask.png")
    return folder


@pytest.fixture
def nut(tmp_path: Path) -> Path:
    """A clean class of one's own, in the MVTec layout."""
    return make_class(tmp_path / "own/nut")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], str]]:
    """The command in-process -> exit code, the lines of findings, the summary line; nothing on stderr."""

    def run(*arguments: object) -> tuple[int, list[str], str]:
        code = exit_code(lambda: main([*map(str, arguments), "--workers", "0"]))
        printed = capsys.readouterr()
        assert printed.err == ""
        *findings, summary = printed.out.splitlines()
        return code, findings, summary

    return run


Check = Callable[..., tuple[int, list[str], str]]


def test_a_clean_tree_has_no_findings(nut: Path, check: Check) -> None:
    assert check("--dataset", "folder", "--data_path", nut.parent) == (
        0,
        [],
        "errors: 0, warnings: 0; checked 12 images of 1 classes",
    )


def test_own_folders_without_a_layout(nut: Path, check: Check) -> None:
    folders = ("--train_dir", nut / "train/good", "--test_dir", nut / "test")
    assert check("--dataset", "folder", *folders, "--mask_dir", nut / "ground_truth")[:2] == (0, [])
    (nut / "ground_truth/cut/001_mask.png").unlink()
    assert check("--dataset", "folder", *folders)[:2] == (0, [])  # without masks: image-level only
    code, findings, _ = check("--dataset", "folder", *folders, "--mask_dir", nut / "ground_truth")
    assert (code, findings) == (1, [f"error: nut: {nut / 'test/cut/001.png'}: has no mask 001_mask.*: add it"])


def halve(nut: Path) -> Path:
    path = nut / "train/good/001.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def point(nut: Path) -> Path:
    path = nut / "test/good/001.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return path


def empty_file(nut: Path) -> Path:
    path = nut / "ground_truth/dent/001_mask.png"
    path.write_bytes(b"")
    return path


def misplace(nut: Path) -> Path:
    return noise(nut / "test/009.png", 9999)


def lose_mask(nut: Path) -> Path:
    (nut / "ground_truth/dent/002_mask.png").unlink()
    return nut / "test/dent/002.png"


def other_shape(nut: Path) -> Path:
    return mask(nut / "ground_truth/cut/001_mask.png", (12, 16))


def leak(nut: Path) -> Path:
    return Path(shutil.copy(nut / "train/good/002.png", nut / "test/good/002.png"))


def once_normal_once_bad(nut: Path) -> Path:
    return Path(shutil.copy(nut / "test/dent/001.png", nut / "test/good/001.png"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (halve, "cannot be decoded"),
        (point, "is a Git-LFS pointer, not an image: run `git lfs pull`"),
        (empty_file, "is empty (0 bytes)"),
        (misplace, "lies beside the folders and is not read"),
        (lose_mask, "has no mask 002_mask.*: add it"),
        (other_shape, "is 12x16, its image 16x12: another shape"),
        (leak, "(train and test): keep one of them"),
        (once_normal_once_bad, "(once normal, once anomalous): keep one of them"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(nut: Path, check: Check, spoil: Callable, says: str) -> None:
    path = spoil(nut)
    code, findings, summary = check("--dataset", "folder", "--data_path", nut.parent)
    (line,) = findings
    # of two equal images the later one is named: train before test, then by folder
    assert line.startswith(f"error: nut: {path}: ") and says in line
    assert (code, summary.split(";")[0]) == (1, "errors: 1, warnings: 0")


def empty_mask(nut: Path) -> Path:
    return mask(nut / "ground_truth/cut/001_mask.png", value=0)


def other_size(nut: Path) -> Path:
    return mask(nut / "ground_truth/cut/001_mask.png", (32, 24))


def rotated_mask(nut: Path) -> Path:
    path = nut / "test/cut/001.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif)
    return mask(nut / "ground_truth/cut/001_mask.png", (12, 16))


def orphan(nut: Path) -> Path:
    return mask(nut / "ground_truth/cut/007_mask.png")


def second_mask(nut: Path) -> Path:
    return mask(nut / "ground_truth/cut/001.png")


def loose_mask(nut: Path) -> Path:
    return mask(nut / "ground_truth/001_mask.png")


def twice_in_train(nut: Path) -> Path:
    return Path(shutil.copy(nut / "train/good/000.png", nut / "train/good/003 (copy).png"))


def bad_in_train(nut: Path) -> Path:
    return noise(nut / "train/bad/000.png", 9999).parent


def too_deep(nut: Path) -> Path:
    return noise(nut / "test/cut/more/000.png", 9999).parent


def no_image(nut: Path) -> Path:
    (nut / "test/cut/notes.txt").write_text("seen on Monday")
    return nut / "test/cut/notes.txt"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (empty_mask, "is empty though its image is anomalous"),
        (other_size, "is 32x24, its image 16x12: both are resized"),
        (rotated_mask, "is 12x16, its image 16x12: fits the EXIF-rotated image"),
        (orphan, "no image under"),
        (second_mask, "a second mask of the same image, not used"),
        (loose_mask, "lies beside the defects' folders"),
        (twice_in_train, "the same image as"),
        (bad_in_train, "1 images are ignored: only good/ is trained on"),
        (too_deep, "1 images one folder too deep are not read"),
        (no_image, "has no image suffix"),
    ],
)
def test_a_warning_is_one_line_and_exit_code_0(nut: Path, check: Check, spoil: Callable, says: str) -> None:
    path = spoil(nut)
    code, findings, _ = check("--dataset", "folder", "--data_path", nut.parent)
    (line,) = (line for line in findings if str(path) in line.split(": ")[2])
    assert line.startswith(f"warning: nut: {path}: ") and says in line
    others = [other for other in findings if other != line]
    assert all("EXIF orientation" in other for other in others)
    assert len(others) == (spoil is rotated_mask)
    assert code == 0


def test_mixed_sizes_and_modes_are_a_line_each(nut: Path, check: Check) -> None:
    noise(nut / "train/good/003.png", 9999, (20, 12))
    with Image.open(nut / "train/good/000.png") as image:
        image.convert("L").save(nut / "train/good/000.png")
    assert check("--dataset", "folder", "--data_path", nut.parent)[:2] == (
        0,
        [
            "warning: nut: mixed sizes: 16x12 (12), 20x12 (1); all are converted to one, but find out why",
            "warning: nut: mixed modes: RGB (12), L (1); all are converted to one, but find out why",
        ],
    )


def test_a_test_split_without_bad_images_gives_no_auroc(nut: Path, check: Check) -> None:
    for kind in ("cut", "dent"):
        shutil.rmtree(nut / "test" / kind)
    shutil.rmtree(nut / "ground_truth")
    assert check("--dataset", "folder", "--data_path", nut.parent)[:2] == (
        0,
        ["warning: nut: 3 normal and 0 anomalous test images: no AUROC"],
    )


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Published counts that a small tree can meet: those of tubes are right, per class and defect."""
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"mpdd": {"tubes": {"train": 3, "good": 3, "bad": {"cut": 3, "dent": 3}}}}))
    monkeypatch.setattr("scripts.validate_data.PUBLISHED", path)
    return path


def test_counts_are_compared_with_the_published_ones(tmp_path: Path, check: Check, published: Path) -> None:
    tubes = make_class(tmp_path / "mpdd/tubes")
    arguments = ("--dataset", "mpdd", "--data_path", tubes.parent, "--class", "tubes")
    assert check(*arguments)[:2] == (0, [])
    (tubes / "train/good/001.png").unlink()
    noise(tubes / "test/good/008.png", 9999)
    (tubes / "test/cut").rename(tubes / "test/slit")
    (tubes / "ground_truth/cut").rename(tubes / "ground_truth/slit")
    code, findings, _ = check(*arguments)
    assert code == 1
    assert findings == [
        f"error: tubes: {what}: {found} images, published {wanted}: unpack the data set again"
        for what, found, wanted in (
            ("train/good", 2, 3),
            ("test/good", 4, 3),
            ("test/cut", 0, 3),
            ("test/dent", 3, 3),
            ("test/slit", 3, 0),
        )
        if found != wanted
    ]
    # where folder names differ between copies, one sum is published
    published.write_text(json.dumps({"mpdd": {"tubes": {"train": 2, "good": 4, "bad": 7}}}))
    (finding,) = check(*arguments)[1]
    assert finding == "error: tubes: anomalous test images: 6 images, published 7: unpack the data set again"


def test_the_real_counts_are_asked_by_default(tmp_path: Path, check: Check) -> None:
    bottle = make_class(tmp_path / "mvtec/bottle")
    code, findings, _ = check("--dataset", "mvtec", "--data_path", bottle.parent, "--class", "bottle")
    assert code == 1
    assert "error: bottle: train/good: 3 images, published 209: unpack the data set again" in findings


def test_a_missing_class_is_an_error_each(tmp_path: Path, check: Check, published: Path) -> None:
    tubes = make_class(tmp_path / "mpdd/tubes")
    code, findings, summary = check("--dataset", "mpdd", "--data_path", tubes.parent)
    absent = ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate")
    assert findings == [
        f"error: {name}: the class is missing: no folder with train/good under {tubes.parent}" for name in absent
    ]
    assert (code, summary) == (1, "errors: 5, warnings: 0; checked 12 images of 1 classes")
    assert check("--dataset", "mpdd", "--data_path", tubes.parent, "--class", "tubes")[0] == 0


def test_classes_outside_the_table_are_looked_at_without_counts(nut: Path, check: Check) -> None:
    code, findings, _ = check("--dataset", "mvtec", "--data_path", nut.parent)
    (line,) = findings
    assert code == 0
    assert line.startswith("warning: all: ") and "checking nut, without published counts" in line


def test_several_classes_are_each_named(nut: Path, check: Check) -> None:
    make_class(nut.parent / "bolt", seed=1)
    leak(nut)
    misplace(nut.parent / "bolt")
    code, findings, summary = check("--dataset", "folder", "--data_path", nut.parent)
    assert code == 1
    assert [line.split(":")[1].strip() for line in findings] == ["bolt", "nut"]
    assert summary == "errors: 2, warnings: 0; checked 24 images of 2 classes"


def test_dashes_and_underscores_are_alike(nut: Path, check: Check) -> None:
    empty_mask(nut)
    written = [
        ("--data_path", nut.parent),
        ("--data-path", nut.parent),
        (f"--data-path={nut.parent}",),
    ]
    first, *others = [check("--dataset", "folder", *flags) for flags in written]
    assert others == [first, first]
    own = [
        (f"--train{s}dir", nut / "train", f"--test{s}dir", nut / "test", f"--mask{s}dir", nut / "ground_truth")
        for s in "-_"
    ]
    assert check("--dataset", "folder", *own[0]) == check("--dataset", "folder", *own[1]) == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "nosuch", "--data_path", "D"], "unknown --dataset 'nosuch': choose from mvtec"),
        (["--dataset", "mvtec", "--data_pat", "D"], "--data_pat"),
        (["--dataset", "mvtec", "--nosuch", "1"], "--nosuch"),
        (["--dataset", "mvtec", "--data_path", "D", "--workers", "two"], "--workers"),
        (["--dataset", "mvtec"], "needs --data_path"),
        (["--dataset", "mvtec", "--data_path", "D"], "--data_path D: no such folder"),
        (["--dataset", "mvtec", "--train_dir", "D"], "belongs to --dataset folder"),
        (["--dataset", "folder", "--test_dir", "D"], "wants --train_dir"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = exit_code(lambda: main(arguments))
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "error: " in line and says in line


@pytest.mark.parametrize(
    "flags", ["--train_dir {}/none", "--train_dir {}/good --test_dir {}/none", "--data_path {}/empty"]
)
def test_a_folder_that_is_not_there_is_an_error_and_not_a_clean_report(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "good").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "good/0.png")
    arguments = ["--dataset", "folder", *flags.replace("{}", str(tmp_path)).split()]
    assert exit_code(lambda: main(arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_workers_below_zero_are_refused(tmp_path: Path) -> None:
    assert exit_code(lambda: main(["--data_path", str(tmp_path), "--workers", "-1"])) == 2
