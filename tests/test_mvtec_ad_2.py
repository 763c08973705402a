"""MVTec AD 2: layout, lights, validation images, private sets, and what the validator finds in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import CPU, make_mvtec_ad_2, record_of, train

from commandline import exit_code
from config import Config
from dataset import BENCHMARKS, Source, find_classes, locate
from experiment import Experiment
from readers.mvtec_ad_2 import PRIVATE, light_of, list_private, private_stems, read_mvtec_ad_2
from scripts import validate_data

AD2 = BENCHMARKS["mvtec_ad_2"]
COUNTS = {"train": 5, "validation": 4, "good": 3, "bad": {"bad": 3}, "private": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_mvtec_ad_2(tmp_path / "mvtec_ad_2", ("can", "vial"))


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], list[str]]:
    """The validator on the class can, as if its toy counts were published -> its lines but the last."""

    def run(root: Path) -> list[str]:
        monkeypatch.setattr(validate_data, "published_counts", lambda name: {"can": COUNTS})
        flags = ["--dataset", "mvtec_ad_2", "--data_path", root, "--class", "can", "--workers", 0]
        code = exit_code(lambda: validate_data.main([*map(str, flags)]))
        *lines, _ = capsys.readouterr().out.splitlines()
        assert code == any(line.startswith("error: ") for line in lines)
        return lines

    return run


def test_samples_have_their_light_and_their_mask(root: Path) -> None:
    stray_mask(root / "can")  # ground_truth lies among the kinds of test images, and is none
    source = locate(AD2, Source(root))
    assert find_classes(AD2, source) == ("can", "vial") and len(AD2.classes) == 8
    test = read_mvtec_ad_2(source, "can", "test")
    named = [(s.image.parent.name, s.image.stem, s.group, s.mask and s.mask.name) for s in test]
    assert named == [
        ("bad", "000_overexposed", "overexposed", "000_overexposed_mask.png"),
        ("bad", "000_regular", "regular", "000_regular_mask.png"),
        ("bad", "000_shift_1", "shift_1", "000_shift_1_mask.png"),
        ("good", "000_overexposed", "overexposed", None),
        ("good", "000_regular", "regular", None),
        ("good", "000_shift_1", "shift_1", None),
    ]
    assert {(s.defect, s.anomalous) for s in test} == {("good", False), ("bad", True)}
    for split, count in (("train", 5), ("validation", 4)):
        assert {s.group for s in read_mvtec_ad_2(source, "can", split)} == {"regular"}
        assert len(read_mvtec_ad_2(source, "can", split)) == count
    assert light_of(Path("7.png")) == light_of(Path("a_b.png")) == ""


def test_a_doubled_class_folder_is_found(root: Path) -> None:
    (root / "can").rename(root / "inner")
    (root / "can").mkdir()
    (root / "inner").rename(root / "can/can")
    assert len(read_mvtec_ad_2(Source(root), "can", "test")) == 6
    assert find_classes(AD2, Source(root)) == ("can", "vial")


def test_a_missing_mask_and_a_class_without_public_images_are_one_line(root: Path) -> None:
    (root / "can/test_public/ground_truth/bad/000_shift_1_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask for 1 of 3 images, the first .*000_shift_1\.png"):
        read_mvtec_ad_2(Source(root), "can", "test")
    with pytest.raises(FileNotFoundError, match=r"no test images under .*walnuts.test_public: .* found can, vial"):
        read_mvtec_ad_2(Source(root), "walnuts", "test")


def test_private_images_are_those_that_were_published(root: Path) -> None:
    assert private_stems("test_private_mixed", 2) == ["000_mixed", "001_mixed"]
    for split, light in PRIVATE.items():
        assert [path.stem for path in list_private(root, "can", split, 3)] == [f"{i:03}_{light}" for i in range(3)]
    with pytest.raises(FileNotFoundError, match=r"test_private: 318 of 321 images are missing, the first 003_regular"):
        list_private(root, "can", "test_private", 321)
    (root / "can/test_private/002_regular.png").rename(root / "can/test_private/002_mixed.png")
    with pytest.raises(FileNotFoundError) as problem:
        list_private(root, "can", "test_private", 3)
    assert "1 of 3 images are missing" in str(problem.value) and "the first 002_mixed.png" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_published_counts_sum_to_the_images_of_the_paper() -> None:
    published = validate_data.published_counts("mvtec_ad_2")
    assert tuple(published) == AD2.classes
    assert [c["private"] for c in published.values()] == [321, 314, 255, 277, 142, 276, 232, 228]


def stray_mask(can: Path) -> None:
    Image.new("L", (64, 64), 255).save(can / "test_public/ground_truth/000_regular_mask.png")


def spoil_mask(can: Path) -> None:
    mask = np.zeros((64, 32), np.uint8)
    mask[10:20] = 255
    Image.fromarray(mask).save(can / "test_public/ground_truth/bad/000_regular_mask.png")


def lose_mask(can: Path) -> None:
    (can / "test_public/ground_truth/bad/000_regular_mask.png").unlink()


def orphan_mask(can: Path) -> None:
    (can / "test_public/bad/000_regular.png").rename(can / "test_public/good/001_regular.png")


def lose_private(can: Path) -> None:
    (can / "test_private/000_regular.png").unlink()


def rename_private(can: Path) -> None:
    (can / "test_private_mixed/002_mixed.png").rename(can / "test_private_mixed/002_regular.png")


def break_private(can: Path) -> None:
    (can / "test_private/001_regular.png").write_bytes(b"")


def lose_private_folder(can: Path) -> None:
    (can / "test_private").rename(can.parent / "away")


def lose_validation(can: Path) -> None:
    (can / "validation/good/000_regular.png").unlink()


def rename_light(can: Path) -> None:
    (can / "test_public/good/000_regular.png").rename(can / "test_public/good/000.png")


def leak_validation(can: Path) -> None:
    (can / "validation/good/000_regular.png").write_bytes((can / "train/good/000_regular.png").read_bytes())


SPOILT: dict[Callable[[Path], None], list[str]] = {
    spoil_mask: [
        "error: can: {}/test_public/ground_truth/bad/000_regular_mask.png: is 32x64, its image 64x64: another"
    ],
    stray_mask: ["warning: can: {}/test_public/ground_truth/000_regular_mask.png: lies beside the defects' folders"],
    lose_mask: ["error: can: {}/test_public/bad/000_regular.png: has no mask 000_regular_mask.*: add it"],
    orphan_mask: [
        "error: can: test_public/good: 4 images, published 3: unpack the data set again",
        "error: can: test_public/bad: 2 images, published 3: unpack the data set again",
        "warning: can: {}/test_public/ground_truth/bad/000_regular_mask.png: no image under {}/test_public/bad",
    ],
    lose_private: ["error: can: {}/test_private: 1 of 3 images are missing, the first 000_regular.png: unpack"],
    rename_private: [
        "error: can: {}/test_private_mixed: 1 of 3 images are missing, the first 002_mixed.png: unpack",
        "error: can: {}/test_private_mixed: 1 images with other names than 000_mixed to 002_mixed, the first 002_reg",
    ],
    break_private: ["error: can: {}/test_private/001_regular.png: is empty (0 bytes)"],
    lose_private_folder: ["warning: can: {}/test_private: no such folder: a submission needs its images"],
    lose_validation: ["error: can: validation/good: 3 images, published 4: unpack the data set again"],
    rename_light: [
        "warning: can: {}/test_public/good/000.png: its name tells no light, as 000_regular does (1 images)"
    ],
    leak_validation: [
        "error: can: {}/validation/good/000_regular.png: the same image as {}/train/good/000_regular.png"
    ],
}


def test_a_clean_tree_has_no_findings(root: Path, check: Callable[[Path], list[str]]) -> None:
    assert check(root) == []


@pytest.mark.parametrize("spoil", SPOILT)
def test_the_validator_has_a_line_for_each_problem(
    spoil: Callable[[Path], None], root: Path, check: Callable[[Path], list[str]]
) -> None:
    spoil(root / "can")
    lines = check(root)
    wanted = [line.replace("{}", str(root / "can")) for line in SPOILT[spoil]]
    assert len(lines) == len(wanted), lines
    for line, beginning in zip(lines, wanted, strict=True):
        assert line.startswith(beginning)


def test_the_threshold_comes_from_the_validation_images(root: Path) -> None:
    settings: dict[str, Any] = {"net": "efficientnet_lite0", "image_size": 64, "workers": 0, "seeds": (1,)}
    one = Experiment(Config("mvtec_ad_2", ("unified",), data_path=root, shots=2, **settings), CPU)
    assert one.normals is not None and (one.normals.source, len(one.normals.images)) == ("validation", 8)
    assert one.counts["n_train"] == 4 and {s.class_name for s in one.test_images.samples} == {"can", "vial"}
    assert {row.group for row in one.data.rows} == {"regular", "overexposed", "shift_1"}


def test_a_broken_validation_image_is_told_before_the_first_epoch(root: Path) -> None:
    settings: dict[str, Any] = {"net": "efficientnet_lite0", "image_size": 64, "workers": 0, "seeds": (1,)}
    (root / "can/validation/good/002_regular.png").write_bytes(b"")
    one = Experiment(Config("mvtec_ad_2", ("can",), data_path=root, **settings), CPU)
    with pytest.raises(ValueError, match=r"validation.good.002_regular\.png: is empty \(0 bytes\)"):
        one.check_data()
    one.check_data(with_training=False)


@pytest.mark.slow
def test_a_class_is_trained_with_its_threshold(root: Path, res10: str, tmp_path: Path) -> None:
    flags = ["--dataset", "mvtec_ad_2", "--data_path", root, "--class", "can", "--variant", "rd4ad", "--epochs", 1]
    assert train(*flags, "--net", res10, "--weights", "random", "--save_path", tmp_path / "runs") == 0
    run = tmp_path / "runs/mvtec_ad_2/rd4ad/can/seed111"
    assert (record_of(run)["n_calibration"], record_of(run)["n_test"]) == (4, 6)
    threshold = json.loads((run / "threshold.json").read_text())
    assert threshold["source"] == "validation" and threshold["test"]["n_bad"] == 3
