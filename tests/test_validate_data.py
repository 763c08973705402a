"""Validating a data set: one line per finding, and an exit code for scripts."""

from __future__ import annotations

import json
import os
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
    return mask(nut / "ground_truth/cut/001_mask.png")


def gray_mask(nut: Path) -> Path:
    path = mask(nut / "ground_truth/cut/001_mask.png")
    with Image.open(path) as image:
        image.resize((8, 6), Image.Resampling.BILINEAR).resize((16, 12), Image.Resampling.BILINEAR).save(path)
    return path


def inverted_mask(nut: Path) -> Path:
    path = mask(nut / "ground_truth/cut/001_mask.png")
    pixels = np.full((12, 16), 255, np.uint8)
    pixels[2:4, 3:6] = 0
    Image.fromarray(pixels).save(path)
    return path


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
        (rotated_mask, "is 16x12, its image 12x16: fits only before or after its image's EXIF rotation"),
        (gray_mask, "has more than two values"),
        (inverted_mask, "covers nearly all of its image"),
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
    assert [other.split(";")[-1] if "EXIF" in other else other.split(": ")[2] for other in others] == (
        ["mixed sizes", " 1 images have one: images are read rotated by it"] if spoil is rotated_mask else []
    )
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
    monkeypatch.setattr("readers.expected.PUBLISHED", path)
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


def test_a_class_that_was_asked_for_and_is_absent_is_an_error(tmp_path: Path, check: Check, published: Path) -> None:
    tubes = make_class(tmp_path / "mpdd/tubes")
    arguments = ("--dataset", "mpdd", "--data_path", tubes.parent, "--class")
    assert check(*arguments, "tubes")[0] == 0
    code, findings, summary = check(*arguments, "tubes", "connector")
    absent = f"error: connector: the class is missing: no folder with train/good under {tubes.parent}"
    assert (code, findings) == (1, [absent])
    assert summary == "errors: 1, warnings: 0; checked 12 images of 1 classes"


def test_a_root_with_some_of_a_benchmarks_classes_is_no_fault(tmp_path: Path, check: Check, published: Path) -> None:
    tubes = make_class(tmp_path / "mpdd/tubes")
    absent = "bracket_black, bracket_brown, bracket_white, connector, metal_plate"
    assert check("--dataset", "mpdd", "--data_path", tubes.parent) == (
        0,
        [f"note: all: {tubes.parent}: 5 of the 6 classes of MPDD are not here: {absent}"],
        "errors: 0, warnings: 0; checked 12 images of 1 classes",
    )


def rotated(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_90)


def brightened(image: Image.Image) -> Image.Image:
    return image.point(lambda value: round(0.9 * value + 12))


def halved(image: Image.Image) -> Image.Image:
    return image.resize((64, 48), Image.Resampling.BOX)


def of_another_scene(image: Image.Image) -> Image.Image:
    return Image.fromarray(scene(8))


def scene(seed: int) -> np.ndarray:
    """(96, 128, 3): broad stripes at a place of their own, under noise."""
    rng = np.random.default_rng(seed)
    stripes = 120 + 60 * np.sin(np.arange(128) / 9 + rng.uniform(0, 6)) * np.cos(np.arange(96) / 7)[:, None]
    return np.repeat((stripes + rng.normal(0, 8, (96, 128)))[..., None], 3, axis=2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [rotated, brightened, halved, of_another_scene])
def test_a_changed_copy_of_a_training_image_is_found_and_another_scene_is_not(
    nut: Path, check: Check, change: Callable[[Image.Image], Image.Image]
) -> None:
    original = Image.fromarray(scene(7))
    original.save(nut / "train/good/007.png")
    change(original).save(nut / "test/good/007.png")
    _, findings, _ = check("--dataset", "folder", "--data_path", nut.parent)
    found = [line for line in findings if "near-duplicates" in line]
    near = f"warning: nut: {nut / 'test/good/007.png'}: nearly equals {nut / 'train/good/007.png'}: near-duplicates, "
    assert found == ([] if change is of_another_scene else [near + "perhaps rotated or mirrored?"])


def test_of_many_near_duplicates_the_closest_pairs_are_named(nut: Path, check: Check) -> None:
    for number in range(5):
        Image.fromarray(scene(number)).save(nut / f"train/good/{number:03}.png")
        brightened(Image.fromarray(scene(number))).save(nut / f"test/good/{number:03}.png")
    (line,) = (x for x in check("--dataset", "folder", "--data_path", nut.parent)[1] if "near-duplicates" in x)
    assert "as 5 test images do: " in line
    assert line.count(" and ") == 2 and line.count("test/good") == line.count("train/good") == 3


def test_plain_surfaces_are_no_near_duplicates(nut: Path, check: Check) -> None:
    """Their thumbnails differ by less than a gray level."""
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "test")):
        pixels = (120 + rng.normal(0, 3, (96, 96, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(nut / split / f"good/00{number}.png")
    assert not any("near-duplicates" in line for line in check("--dataset", "folder", "--data_path", nut.parent)[1])


def test_one_image_in_two_kinds_of_defect_is_told(nut: Path, check: Check) -> None:
    shutil.copy(nut / "test/cut/001.png", nut / "test/dent/001.png")
    (line,) = check("--dataset", "folder", "--data_path", nut.parent)[1]
    assert line.startswith(f"warning: nut: {nut / 'test/dent/001.png'}: the same image as {nut / 'test/cut/001.png'}")
    assert "(two kinds of defect)" in line


def test_training_images_that_are_all_but_black_are_an_error_with_their_depth(nut: Path, check: Check) -> None:
    for path in (nut / "train/good").iterdir():
        rng = np.random.default_rng(int(path.stem))
        Image.fromarray(rng.integers(0, 4096, (12, 16), dtype=np.uint16)).save(path)
    code, findings, _ = check("--dataset", "folder", "--data_path", nut.parent)
    (line,) = (line for line in findings if line.startswith("error"))
    assert code == 1
    assert "brighter than 16 of 255, and the files have 16 bits" in line


def test_a_name_that_is_not_utf8_is_written_escaped(nut: Path, check: Check) -> None:
    shutil.copy(nut / "train/good/000.png", os.fsdecode(bytes(nut / "test/good") + b"/\xff\n.png"))
    code, (line,), _ = check("--dataset", "folder", "--data_path", nut.parent)
    assert code == 1
    assert line.startswith(f"error: nut: {nut}/test/good/\\xff\\n.png: the same image as")


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
        (["--dataset", "folder", "--test_dir", "D"], "needs --train_dir"),
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
