"""The table of benchmarks, where they are looked for, and images as arrays."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from dataset import BENCHMARKS, ImageSet, MeasuredImages, Source, find_classes, load_image, locate, resize_mask
from readers.expected import PUBLISHED


def make_classes(root: Path, *names: str) -> Path:
    for name in names:
        folder = root / name / "train/good"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "000.png")
    return root


@pytest.mark.parametrize("size", [8, 64])
def test_an_image_is_resized_as_torchvision_resizes_it(tmp_path: Path, size: int) -> None:
    """Bilinear with antialiasing, the sides independently: what the published transforms do."""
    pixels = np.random.default_rng(0).integers(0, 256, (33, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    wanted = functional.pil_to_tensor(functional.resize(Image.fromarray(pixels), [size, size])).numpy()
    np.testing.assert_array_equal(load_image(tmp_path / "0.png", size), wanted)


def test_a_mask_is_resized_as_published() -> None:
    """To a tensor in [0, 1] after a bilinear resize, then > 0.5."""
    mask = np.random.default_rng(0).random((45, 60)) < 0.5
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    wanted = functional.to_tensor(functional.resize(image, [32, 32]))[0].numpy() > 0.5
    resized, vanished = resize_mask(mask, 32)
    np.testing.assert_array_equal(resized, wanted)
    assert not vanished


def test_published_counts_name_the_classes_of_the_table() -> None:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    del published["_source"]
    for name, classes in published.items():
        assert set(classes) == set(BENCHMARKS[name].classes)
    totals = {
        name: [sum(c[k] if isinstance(c[k], int) else sum(c[k].values()) for c in classes.values()) for k in c0]
        for name, classes in published.items()
        for c0 in [("train", "good", "bad")]
    }
    assert totals["mvtec"] == [3629, 467, 1258]
    assert totals["visa"] == [8659, 962, 1200]
    assert totals["mvtec_ad_2"] == [2528, 379, 705]
    assert sum(c["validation"] + 2 * c["private"] for c in published["mvtec_ad_2"].values()) + 2528 + 379 + 705 == 8004
    assert totals["vad"] == [2000, 1000, 1000]
    assert sum(totals["btad"]) == 2540
    assert sum(len(c["bad"]) for c in published["mvtec"].values()) == 73


def test_classes_come_in_the_tables_order_others_sorted(tmp_path: Path) -> None:
    mvtec = BENCHMARKS["mvtec"]
    assert len(mvtec.classes) == 15
    known = make_classes(tmp_path / "known", "zipper", "bottle", "carpet", "own")
    assert find_classes(mvtec, Source(known)) == ("carpet", "bottle", "zipper")
    other = make_classes(tmp_path / "other", "wheel", "axle")
    assert find_classes(mvtec, Source(other)) == ("axle", "wheel")
    assert find_classes(BENCHMARKS["folder"], Source(known)) == ("bottle", "carpet", "own", "zipper")


def test_no_class_and_no_images_say_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no class under --data_path .*each with train/good; found images"):
        find_classes(BENCHMARKS["mvtec"], Source(tmp_path))
    make_classes(tmp_path, "bottle", "cable")
    with pytest.raises(
        FileNotFoundError,
        match=r"no training images under .*botle.train.good: --data_path must hold one folder per class; "
        "found bottle, cable",
    ):
        BENCHMARKS["mvtec"].read(Source(tmp_path), "botle", "train")
    with pytest.raises(FileNotFoundError, match=r"no test images under .*bottle.test"):
        BENCHMARKS["mvtec"].read(Source(tmp_path), "bottle", "test")


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("mvtec", Source(None), "needs --data_path"),
        ("folder", Source(None), "needs --data_path, .* or --train_dir"),
        ("mvtec", Source(Path("nowhere")), "--data_path nowhere: no such folder"),
        ("mvtec", Source(None, train_dir=Path("a")), "are for --dataset folder"),
        ("folder", Source(None, test_dir=Path("a")), "--test_dir and --bad go with --train_dir"),
        ("folder", Source(None, train_dir=Path("a"), mask_dir=Path("b")), "--mask_dir goes with --test_dir"),
    ],
)
def test_a_source_that_is_none_is_one_line_naming_the_flag(
    name: str, source: Source, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as problem:
        locate(BENCHMARKS[name], source)
    assert "\n" not in str(problem.value)


def test_elpv_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install elpv-dataset"):
        locate(BENCHMARKS["elpv"], Source(None))


def test_ones_own_folders_are_named_after_what_lies_above_train(tmp_path: Path) -> None:
    for below in ("", "train", "good", "train/good", "Train/OK"):
        source = Source(None, train_dir=tmp_path / "widgets" / below)
        source.train_dir.mkdir(parents=True, exist_ok=True)  # type: ignore[union-attr]
        assert find_classes(BENCHMARKS["folder"], source) == ("widgets",)


def test_an_image_set_keeps_the_order_and_the_folders_labels(tmp_path: Path) -> None:
    root = make_classes(tmp_path, "nut")
    for kind, gray in (("good", 10), ("cut", 20)):
        (root / "nut/test" / kind).mkdir(parents=True)
        Image.new("L", (9, 5), gray).save(root / "nut/test" / kind / "000.png")
    images = ImageSet(BENCHMARKS["folder"].read(Source(root), "nut", "test"), 4)
    assert len(images) == 2 and not images.has_masks and images.vanished == ()
    assert images.labels.tolist() == [True, False]
    assert [int(images.image(i).mean()) for i in range(2)] == [20, 10]
    assert images.mask(0) is None and images.mask(1) is not None
    measured = MeasuredImages(images.samples, 4)
    measured.image(0)
    assert measured.brightness == {0: 20} and measured.brightness_range == [20, 20]
    measured.image(1)
    assert measured.brightness_range == [10, 20]
