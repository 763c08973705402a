"""Pixel metrics at the images' own sizes: maps are enlarged, masks are not resized, image scores stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import CPU, Command, paint, record_of, score_again

from config import Config
from dataset import ImageSet
from detector import Detector
from experiment import Experiment
from model import Distiller
from report.predictions import read_maps
from report.results import collect
from run_files import Run, SavedMaps
from scoring.anomaly_map import at_size
from scoring.metrics import compute_metrics
from scripts import report, score_maps, summarize
from utils import ragged

SIZES = ((80, 120), (96, 72), (64, 64))  # height, width


def make_tree(root: Path) -> Path:
    """A class whose test images have three sizes, none of them that of the network but the last."""
    rng = np.random.default_rng(0)
    for i in range(6):
        paint(root / f"bottle/train/good/{i:03}.png", rng, defect=False)
    for i, (height, width) in enumerate(SIZES):
        for kind, defect in (("good", False), ("disc", True)):
            path = root / f"bottle/test/{kind}/{i:03}.png"
            mask = Image.fromarray(paint(path, rng, defect)).resize((width, height))
            Image.open(path).resize((width, height)).save(path)
            if defect:
                (root / "bottle/ground_truth/disc").mkdir(parents=True, exist_ok=True)
                mask.save(root / f"bottle/ground_truth/disc/{i:03}_mask.png")
    return root


def test_a_map_is_interpolated_between_the_centers_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    for shape in ((7, 11), (5, 4), (3, 3), (2, 2)):
        small = rng.random((3, 4)).astype(np.float32)
        places = [(np.arange(n) + 0.5) * k / n - 0.5 for n, k in zip(shape, small.shape, strict=True)]
        rows = np.array([np.interp(places[0], np.arange(3), column) for column in small.T]).T
        wanted = np.array([np.interp(places[1], np.arange(4), row) for row in rows])
        found = at_size(small, *shape)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert found.dtype == np.float32 and found.max() <= small.max() + 1e-6
    np.testing.assert_array_equal(at_size(small, 3, 4), small)


def test_pixel_metrics_are_those_of_enlarged_maps_and_untouched_masks(tmp_path: Path, distiller: Distiller) -> None:
    settings: dict[str, Any] = {
        "data_path": make_tree(tmp_path),
        "classes": ("bottle",),
        "image_size": 64,
        "workers": 0,
    }
    resized, own = (Detector(Config(**settings, map_size=size), distiller) for size in ("resized", "own"))
    images = Experiment(own.config, CPU).test_images
    usual, found = resized.evaluate(images, keep_maps=True), own.evaluate(images, keep_maps=True)
    assert usual.maps is not None and found.maps is not None and found.masks is not None
    np.testing.assert_array_equal(usual.scores, found.scores)
    for i, sample in enumerate(images.samples):
        size = Image.open(sample.image).size[::-1]
        assert found.maps[i].shape == size == images.own_size(i)
        np.testing.assert_array_equal(found.maps[i], at_size(usual.maps[i], *size))
        drawn = np.asarray(Image.open(sample.mask)) > 0 if sample.mask is not None else np.zeros(size, bool)
        np.testing.assert_array_equal(found.masks[i], drawn)
    wanted = compute_metrics(images.labels, found.scores, list(found.maps), found.masks)
    assert found.report.defined() == wanted.defined() and found.report.thresholds == wanted.thresholds
    image_metrics = {name: value for name, value in usual.metrics().items() if name.startswith("image_")}
    assert image_metrics.items() <= found.metrics().items() and found.metrics() != usual.metrics()
    assert own.evaluate(images).metrics() == found.metrics() and own.evaluate(images).intervals("x").keys()


def test_a_mask_of_another_size_than_its_image_is_resized_to_it(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    mask = root / "bottle/ground_truth/disc/000_mask.png"
    whole = np.asarray(Image.open(mask)) > 0
    Image.open(mask).resize((60, 40)).save(mask)
    config = Config(data_path=root, classes=("bottle",), image_size=64, workers=0)
    images: ImageSet = Experiment(config, CPU).test_images
    found = images.mask(0, own_size=True)
    assert images.samples[0].mask == mask and found is not None and found.shape == whole.shape
    assert (found != whole).mean() < 0.02


def test_a_finished_run_is_scored_at_own_sizes_without_training(
    tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data_path", make_tree(tmp_path / "data"), "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train_command(*arguments) == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    assert score_again(run, "--map_size", "own", "--vis", "--save_maps") == 0
    other = tmp_path / "runs/mvtec/sk_rd4ad-own/bottle/seed111"
    assert f"scored with --map_size own: {other}" in capsys.readouterr().out
    assert (other / "predictions.csv").read_text() == (run / "predictions.csv").read_text()
    record = record_of(other)
    assert record["map_size"] == "own" and record["scored_from"] == str(run) and "map_size" not in record_of(run)
    assert record["metrics"]["image_auroc"] == record_of(run)["metrics"]["image_auroc"]
    assert record["metrics"]["pixel_auroc"] != record_of(run)["metrics"]["pixel_auroc"]
    assert Run(other).read("config.json")["identity"]["map_size"] == "own"
    assert "map_size" not in Run(run).read("config.json")["identity"]
    assert len(list((other / "overlays").glob("*.png"))) == 6

    capsys.readouterr()
    assert score_maps.main([str(other / "maps.npz"), "--json"]) == 0
    assert f'"pixel_auroc": {record["metrics"]["pixel_auroc"]}' in capsys.readouterr().out
    maps, problem = read_maps(other, collect([other])[0])
    assert maps is not None and problem is None and [found.shape for found in maps.maps] == [*SIZES, *SIZES]
    assert report.main([str(other)]) == 0
    assert "ROC of pixels" in (other / "report.html").read_text()
    capsys.readouterr()
    assert score_again(other, "--verify") == 0
    assert score_again(other) == 0
    assert score_again(other, "--map_size", "own") == 2
    assert f"--map_size own: {other} is scored with it already" in capsys.readouterr().err
    assert score_again(run, "--map_size", "own", "--images", run) == 2
    assert score_again(run, "--map_size", "own", "--intervals") == 2
    assert "--intervals goes with the run's own metrics" in capsys.readouterr().err
    assert score_again(run, "--map_size", "own", "--anomaly_map", "multiply") == 0
    assert record_of(tmp_path / "runs/mvtec/sk_rd4ad-multiply-own/bottle/seed111")["map_size"] == "own"
    capsys.readouterr()
    assert summarize.main([str(run), str(other), "--compare"]) == 0
    assert "these rows differ in map size: own, resized" in " ".join(capsys.readouterr().out.split())


def test_saved_maps_of_several_sizes_are_read_as_they_were_written(tmp_path: Path) -> None:
    maps = ragged([np.ones((2, 3), np.float32), np.full((4, 2), 2, np.float32)])
    masks = [found > 1 for found in maps]
    facts = np.array([False, True]), (1.0, 2.0), "a" * 64
    for saved in (SavedMaps.of(maps, masks, *facts), SavedMaps.of(maps, None, *facts)):
        saved.write(tmp_path)
        read = SavedMaps.read(tmp_path, 2)
        assert (read.masks is None) == (saved.masks is None)
        for name in ("maps", "masks")[: 1 if read.masks is None else 2]:
            for one, other in zip(getattr(read, name), getattr(saved, name), strict=True):
                np.testing.assert_array_equal(one, other)
    SavedMaps.of(maps, masks[::-1], *facts).write(tmp_path)
    with pytest.raises(ValueError, match=r"mask_0 must be \(2, 3\): found \(4, 2\) bool"):
        SavedMaps.read(tmp_path, 2)
    SavedMaps.of(ragged([maps[0], maps[1] * np.inf]), masks, *facts).write(tmp_path)
    with pytest.raises(ValueError, match=r"map_1 must be \(H, W\), finite"):
        SavedMaps.read(tmp_path, 2)
    SavedMaps.of(maps, masks, *facts).write(tmp_path)
    with pytest.raises(ValueError, match=r"maps must be \(3, H, W\)"):
        SavedMaps.read(tmp_path, 3)
