"""The embedded benchmark: whole or not at all, the same every time, masks exact, train and test apart, not trivial."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from toys import files_below

from dataset import BENCHMARKS, ImageSet, Source, find_classes, locate
from readers import demo, scenes
from readers.demo_defects import Mask, RGBImage, draw_patch
from scripts.controls import z_score_maps

DEMO = BENCHMARKS["demo"]
KINDS = [(name, kind) for name, shown in scenes.CLASSES.items() for kind in shown.defects]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data/demo"
    demo.prepare_demo(root)
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image of each kind, so that making the benchmark takes a second."""
    for name in ("TRAIN", "GOOD", "PER_DEFECT"):
        monkeypatch.setattr(demo, name, 1)


def pixels_below(root: Path) -> dict[str, bytes]:
    return {name: Image.open(root / name).tobytes() for name in files_below(root) if name.endswith(".png")}


def scene_with_defect(class_name: str, kind: str, number: int) -> tuple[RGBImage, RGBImage, Mask]:
    """A scene, the same with a defect, and the mask."""
    shown, rng = scenes.CLASSES[class_name], np.random.default_rng(number)
    scene = shown.draw(rng, "test")
    return scene.image, *shown.defects[kind](scene, rng)


def test_it_has_the_layout_that_it_shows_to_users(made: Path) -> None:
    assert find_classes(DEMO, Source(made)) == ("brick", "denim", "gear")
    for class_name, shown in scenes.CLASSES.items():
        train, test = (DEMO.read(Source(made), class_name, split) for split in ("train", "test"))
        assert len(train) == demo.TRAIN and not any(s.anomalous for s in train)
        defects = [s.defect for s in test]
        assert {d: defects.count(d) for d in set(defects)} == {
            "good": demo.GOOD,
            **dict.fromkeys(shown.defects, demo.PER_DEFECT),
        }
        images = ImageSet(test, 256)
        assert images.has_masks
        assert all(images.image(i).shape == (3, 256, 256) for i in (0, len(images) - 1))
        masks = [images.mask(i) for i in range(len(images))]
        assert [bool(m.any()) for m in masks if m is not None] == [s.anomalous for s in test]


def test_a_comparison_pixel_by_pixel_finds_little(made: Path) -> None:
    """The benchmark is not trivial: |x - mean| / std against the training images stays under 0.75 image AUROC."""
    for class_name in scenes.CLASSES:
        train, test = (ImageSet(DEMO.read(Source(made), class_name, s), 256) for s in ("train", "test"))
        scores = [m.max() for m in z_score_maps(train, test, workers=2)]
        assert roc_auc_score(test.labels, scores) < 0.75, class_name


def test_images_vary_in_light_and_content(made: Path) -> None:
    for class_name in scenes.CLASSES:
        train = ImageSet(DEMO.read(Source(made), class_name, "train"), 64)
        images = np.stack([train.image(i) for i in range(0, len(train), 2)]).astype(float)
        assert images.mean(axis=(1, 2, 3)).std() > 5
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize(("class_name", "kind"), KINDS)
def test_masks_are_exact(class_name: str, kind: str) -> None:
    """Outside its mask an image is unchanged to the bit, inside it was changed."""
    for number in range(3):
        before, after, mask = scene_with_defect(class_name, kind, number)
        changed = (before != after).any(axis=-1)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.9
        assert 40 < mask.sum() < 0.1 * mask.size


def test_the_camera_keeps_masks_exact() -> None:
    """It acts pixel by pixel, so what was equal before it is equal after it."""
    before, after, mask = scene_with_defect("denim", "hole", 0)
    one, other = (scenes.apply_camera(p, np.random.default_rng(5), exposure=0.2) for p in (before, after))
    assert not (one != other).any(axis=-1)[~mask].any()
    assert (one != other).any(axis=-1)[mask].mean() > 0.9
    assert (one != before).any()


def test_a_patch_that_fits_is_passed_over() -> None:
    """Of several moves the most different is taken: half of this donor equals the image, no patch does."""
    image = np.full((128, 128, 3), 100, dtype=np.uint8)
    donor = image.copy()
    donor[:, :64] = 200
    for seed in range(20):
        after, mask = draw_patch(image, np.random.default_rng(seed), np.ones((128, 128), bool), 8, donor)
        assert (after[mask] > 100).any()


def test_train_and_test_show_disjoint_parts_of_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(512) // 2
    monkeypatch.setattr(scenes, "brick_photograph", lambda: np.tile(rows[:, None], (1, 512)).astype(np.uint8))
    reds = {
        split: np.concatenate(
            [scenes.brick_scene(np.random.default_rng(i), split).image[..., 0].ravel() for i in range(40)]
        )
        for split in ("train", "test")
    }
    assert reds["train"].max() < reds["test"].min()
    # and they are what the photograph shows: its first and last rows are reached
    assert reds["train"].min() < 50 and reds["test"].max() == 255


def test_the_photograph_is_real() -> None:
    photograph = scenes.brick_photograph()
    assert photograph.shape == (512, 512) and photograph.dtype == np.uint8
    assert 15 < photograph.std() < 60


@pytest.mark.usefixtures("small")
def test_it_is_the_same_every_time_and_every_image_stands_for_itself(tmp_path: Path) -> None:
    for name in ("one", "other"):
        demo.prepare_demo(tmp_path / name)
    assert pixels_below(tmp_path / "one") == pixels_below(tmp_path / "other")
    single, mask = demo.make_image("gear", "test", "rust", 0)
    np.testing.assert_array_equal(single, np.asarray(Image.open(tmp_path / "one/gear/test/rust/000.png")))
    stored = np.asarray(Image.open(tmp_path / "one/gear/ground_truth/rust/000_mask.png"))
    assert mask is not None and sorted(np.unique(stored)) == [0, 255]
    np.testing.assert_array_equal(mask, stored > 0)
    assert (demo.make_image("gear", "test", "rust", 1)[0] != single).any()


@pytest.mark.usefixtures("small")
def test_it_is_made_on_first_use_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = locate(DEMO, Source(None))
    assert source.root == Path("data/demo")
    assert len(DEMO.read(source, "brick", "train")) == 1

    def again(*arguments: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(demo, "make_image", again)
    assert locate(DEMO, Source(None)) == source


@pytest.mark.usefixtures("small")
def test_an_interruption_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = demo.write_image, iter(range(1000))

    def stop_after_three(root: Path, which: tuple[str, str, str, int]) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        write(root, which)

    monkeypatch.setattr(demo, "write_image", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        demo.prepare_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "write_image", write)
    demo.prepare_demo(tmp_path / "demo")
    assert demo.is_made(tmp_path / "demo")


@pytest.mark.usefixtures("small")
def test_what_a_killed_process_left_is_no_hindrance_and_goes_away(tmp_path: Path) -> None:
    old, young = tmp_path / ".demo.making-0", tmp_path / ".demo.making-1"
    for folder in (old, young):
        (folder / "brick/train/good").mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    demo.prepare_demo(tmp_path / "demo")
    # the young one may belong to a process that is at work
    assert sorted(p.name for p in tmp_path.iterdir()) == [".demo.making-1", "demo"]
    assert demo.is_made(tmp_path / "demo")


@pytest.mark.usefixtures("small")
def test_two_processes_may_make_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, root = demo.write_image, tmp_path / "demo"

    def be_overtaken(making: Path, which: tuple[str, str, str, int]) -> None:
        monkeypatch.setattr(demo, "write_image", write)
        demo.prepare_demo(root)
        write(making, which)

    monkeypatch.setattr(os, "cpu_count", lambda: 0)  # one after the other, so that only the first is overtaken
    monkeypatch.setattr(demo, "write_image", be_overtaken)
    demo.prepare_demo(root)
    assert demo.is_made(root)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("small")
def test_a_folder_of_somebody_else_is_refused_and_an_old_version_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"--data_path .*mine holds something else"):
        demo.prepare_demo(mine)
    assert list(files_below(mine)) == ["thesis.txt"]

    root = tmp_path / "demo"
    root.mkdir()  # an empty folder is welcome
    demo.prepare_demo(root)
    whole = list(files_below(root))
    monkeypatch.setattr(demo, "README", demo.README.replace("version 1", "version 2"))
    (root / "brick/train/good/000.png").write_bytes(b"old")
    demo.prepare_demo(root)
    assert list(files_below(root)) == whole
    assert (root / "readme.txt").read_text().startswith("demo benchmark, version 2")
    assert Image.open(root / "brick/train/good/000.png").size == (256, 256)
    (root / "gear").rename(tmp_path / "lost")
    demo.prepare_demo(root)
    assert list(files_below(root)) == whole
