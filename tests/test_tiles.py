"""Large images by windows: where they lie, how their maps are joined, and that all commands know them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import CPU, Command, paint, record_of, rows_of, score_again

import detector as detector_module
from config import Config
from dataset import ImageSet, Windows, load_image
from detector import Detector
from experiment import Experiment
from feature_cache import CachePolicy, FeatureCache
from model import Distiller
from readers.image_io import limit_pixels
from report.overlays import overlay
from report.panels import ScoredImage
from run_files import SavedMaps
from scoring.anomaly_map import Pair, at_size, color_scale
from scoring.modes import MAP_MODES
from scoring.tiles import Grid, Tiling
from scripts import export as export_command
from training.sweep import Sweep, samples_of

TRAIN, TEST = 4, 4
HEIGHT, WIDTH = 96, 160  # of the images: 2 x 3 windows of 64 pixels that overlap by a quarter or more


def make_tree(root: Path, classes: tuple[str, ...] = ("bottle",)) -> Path:
    """Classes of images that are wider than high; a defect is a bright square."""
    for number, name in enumerate(classes):
        rng = np.random.default_rng(number)
        for kind, count in (("train/good", TRAIN), ("test/good", TEST // 2), ("test/disc", TEST // 2)):
            for i in range(count):
                path = root / name / kind / f"{i:03}.png"
                paint(path, rng, defect=False, size=WIDTH)
                pixels = np.array(Image.open(path))[:HEIGHT]
                if kind == "test/disc":
                    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
                    mask[30:50, 60:85] = 255
                    pixels[mask > 0] = 255
                    target = root / name / f"ground_truth/disc/{i:03}_mask.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(target)
                Image.fromarray(pixels).save(path)
    return root


def tiled(root: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {"data_path": root, "classes": ("bottle",), "image_size": 64, "workers": 0, "tiles": 1.0}
    return Config(**settings | changes)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(64, 64), (64, 65), (100, 333), (127, 512)])
def test_windows_cover_an_image_evenly_and_share_what_they_should(size: tuple[int, int], overlap: float) -> None:
    grid = Grid(size, 64, overlap)
    assert len(set(grid.corners)) == len(grid) == len(grid.corners)
    for axis, length in enumerate(size):
        starts = np.array(sorted({corner[axis] for corner in grid.corners}))
        assert starts[0] == 0 and starts[-1] == length - 64
        assert (np.diff(starts) <= 64 * (1 - overlap)).all() and np.ptp(np.diff(starts)) <= 1 if len(starts) > 1 else 1
        fewest = 1 + -(-(length - 64) // max(1, int(64 * (1 - overlap) + 1e-9)))
        assert len(starts) == fewest


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75])
def test_a_scorer_that_looks_at_single_pixels_gives_the_map_of_the_whole_image(overlap: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 150, 201), np.uint8)
    grid = Grid((150, 201), 64, overlap)
    joined = np.zeros(grid.size, np.float32)
    for number in range(len(grid)):
        grid.add(joined, number, grid.cut(pixels, number).mean(axis=0, dtype=np.float32))
    np.testing.assert_allclose(joined, pixels.mean(axis=0, dtype=np.float32), rtol=1e-6)
    alone = Grid((64, 64), 64, overlap)
    whole, found = np.random.default_rng(1).random((64, 64)).astype(np.float32), np.zeros((64, 64), np.float32)
    alone.add(found, 0, whole)
    np.testing.assert_array_equal(found, whole)


def test_an_image_is_scaled_by_its_own_size_and_never_below_a_window() -> None:
    tiling = Tiling(0.5, 0.25)
    assert tiling.scaled((3000, 4000), 256) == (1500, 2000)
    assert tiling.scaled((100, 4000), 256) == (256, 2000)
    assert len(Tiling(1.0, 0.25).grid((3000, 4000), 256)) == 16 * 21


@pytest.mark.parametrize("changes", [{"anomaly_map": mode, "refine": mode == "mean"} for mode in MAP_MODES])
def test_one_window_is_the_whole_image_to_the_bit(
    distiller: Distiller, images: ImageSet, changes: dict[str, Any]
) -> None:
    squares, windows = (Detector(tiled(Path(), tiles=tiles, **changes), distiller) for tiles in (None, 1.0))
    large = ImageSet(images.samples, images.size, tiling=windows.config.tiling)
    squares.fit_map_statistics(images)
    windows.fit_map_statistics(large)
    paths = [sample.image for sample in images.samples]
    for path, found in zip(paths, windows.predict(paths), strict=True):
        wanted = squares.predict(path)
        np.testing.assert_array_equal(found.anomaly_map, wanted.anomaly_map)
        assert found.score == wanted.score


def slow_map(squares: Detector, pixels: np.ndarray, overlap: float) -> tuple[np.ndarray, list[float]]:
    """The weighted mean of the windows' maps, pixel by pixel; and the windows' scores."""
    height, width = pixels.shape[1:]
    total, weights, scores = np.zeros((height, width)), np.zeros((height, width)), []
    tent = np.minimum(np.arange(64) + 1, np.arange(64)[::-1] + 1)
    for top, left in Grid((height, width), 64, overlap).corners:
        window = pixels[:, top : top + 64, left : left + 64].transpose(1, 2, 0)
        found = squares.predict(window)
        total[top : top + 64, left : left + 64] += np.outer(tent, tent) * found.anomaly_map
        weights[top : top + 64, left : left + 64] += np.outer(tent, tent)
        scores.append(found.score)
    return total / weights, scores


@pytest.mark.parametrize("overlap", [0.25, 0.6])
def test_the_joined_map_is_the_weighted_mean_of_the_windows(
    tmp_path: Path, distiller: Distiller, overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_module, "BATCH_PIXELS", 3 * 64**2)
    config = tiled(make_tree(tmp_path), tiles=0.8, tile_overlap=overlap, score_num=5)
    windows, squares = Detector(config, distiller), Detector(replace(config, tiles=None, tile_overlap=0.25), distiller)
    sizes = []
    one_batch = windows._pairs

    def counted(pixels: np.ndarray) -> list[Pair]:
        sizes.append(len(pixels))
        return one_batch(pixels)

    monkeypatch.setattr(windows, "_pairs", counted)
    images = Experiment(config, CPU).test_images
    (score, *_), (found, *_) = windows.score_all(images)
    pixels = load_image(images.samples[0].image, (77, 128))
    assert images.scaled_size(0) == found.shape == (77, 128)
    wanted, _ = slow_map(squares, pixels, overlap)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert score == pytest.approx(np.sort(found, axis=None)[-5:].mean(), rel=1e-6)
    assert max(sizes) == 3, "never more windows at once than a batch has"


def test_the_refinement_factor_is_the_largest_of_the_windows(tmp_path: Path, distiller: Distiller) -> None:
    config = tiled(make_tree(tmp_path), refine=True, anomaly_map="mean")
    plain = Detector(replace(config, refine=False), distiller)
    path = Experiment(config, CPU).test_images.samples[0].image
    found, unrefined = Detector(config, distiller).predict(path), plain.predict(path)
    squares = [Detector(replace(config, tiles=None, refine=refine), distiller) for refine in (True, False)]
    refined, usual = (slow_map(square, load_image(path, (HEIGHT, WIDTH)), 0.25)[1] for square in squares)
    largest = max(a / b for a, b in zip(refined, usual, strict=True))
    np.testing.assert_array_equal(found.anomaly_map, unrefined.anomaly_map)
    assert found.score == pytest.approx(unrefined.score * largest, rel=1e-5) and largest > 1


def test_statistics_of_the_standardized_map_are_those_of_all_windows(tmp_path: Path, distiller: Distiller) -> None:
    config = tiled(make_tree(tmp_path), anomaly_map="standardized")
    images = Experiment(config, CPU).train_images
    windows = Detector(config, distiller)
    windows.fit_map_statistics(images)
    squares = Detector(replace(config, tiles=None), distiller)
    by_hand = [load_image(s.image, (HEIGHT, WIDTH)) for s in images.samples]
    corners = Grid((HEIGHT, WIDTH), 64, 0.25).corners
    cut = [pixels[:, y : y + 64, x : x + 64] for pixels in by_hand for y, x in corners]

    class Cut(ImageSet):
        def image(self, index: int) -> np.ndarray:
            return cut[index]

    squares.fit_map_statistics(Cut([images.samples[0]] * len(cut), 64))
    assert windows.map_statistics is not None and squares.map_statistics is not None
    assert windows.map_statistics.mean.shape == (3, 64, 64)
    for name in ("mean", "spread"):
        assert torch.equal(getattr(windows.map_statistics, name), getattr(squares.map_statistics, name))


def test_every_cache_gives_the_same_windows_and_decodes_an_image_once(
    tmp_path: Path, distiller: Distiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Experiment(tiled(make_tree(tmp_path)), CPU).train_images
    windows = images.training_samples
    assert isinstance(windows, Windows) and len(windows) == 6 * TRAIN and windows.training_samples is windows
    assert ImageSet(images.samples, 64).training_samples.geometry == {"size": 64}
    read: list[Path] = []

    def counted(path: Path, *arguments: Any) -> np.ndarray:
        read.append(path)
        return load_image(path, *arguments)

    monkeypatch.setattr("dataset.load_image", counted)
    order = list(np.random.default_rng(0).permutation(len(windows)))
    found = []
    for kind in ("features", "file", "images", "none"):
        read.clear()
        fresh = Windows(images)
        cache = FeatureCache(distiller.teacher, fresh, CachePolicy(kind, folder=tmp_path / "cache"), 4, workers=3)
        if kind != "none":
            assert len(read) == TRAIN, kind
        found.append([level for batch in cache.batches(order, 5) for level in batch.clean])
    for other in found[1:]:
        for one, level in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, level, atol=1e-5, rtol=1e-5)
    (key,) = (json.loads(path.read_text())["key"] for path in (tmp_path / "cache").glob("*/key.json"))
    assert key["tiles"] == [1.0, 0.25] and len(key["files"]) == TRAIN and key["count"] == 6 * TRAIN


def test_the_time_that_is_left_counts_windows(tmp_path: Path) -> None:
    config = tiled(make_tree(tmp_path), net="res18", weights="random", steps=12, batch_size=4)
    assert samples_of(Experiment(config, CPU)) == (6 * TRAIN, 6 * TEST)
    assert samples_of(Experiment(replace(config, tiles=None), CPU)) == (TRAIN, TEST)
    sweep = Sweep([config])
    sweep.check(CPU)
    assert sweep._work_left() == 2 * 6 * TRAIN + 6 * TEST  # 12 steps of 4 windows are two epochs


def test_sizes_of_a_cache_are_those_of_all_windows(tmp_path: Path, distiller: Distiller) -> None:
    windows = Experiment(tiled(make_tree(tmp_path)), CPU).train_images.training_samples
    assert FeatureCache(distiller.teacher, windows, CachePolicy("auto", gib=1.0)).kind == "features"
    pixels = len(windows) * 3 * 64**2
    assert FeatureCache(distiller.teacher, windows, CachePolicy("auto", gib=pixels / 2**30)).kind == "images"
    assert FeatureCache(distiller.teacher, windows, CachePolicy("auto", gib=(pixels - 1) / 2**30)).kind == "none"


def test_a_narrow_image_does_not_become_a_huge_one(tmp_path: Path, distiller: Distiller) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "line.png")
    detector = Detector(tiled(tmp_path), distiller)
    try:
        limit_pixels(100_000)
        with pytest.raises(ValueError, match=r"line.png: with --tiles 1 becomes 5000 x 64 = 320000 pixels, more than"):
            detector.predict(tmp_path / "line.png")
    finally:
        limit_pixels(Config().max_pixels)
    assert detector.predict(tmp_path / "line.png").anomaly_map.shape == (64, 5000)


def test_flags_of_windows_belong_together_and_leave_other_runs_as_they_were(tmp_path: Path) -> None:
    usual = tiled(tmp_path, tiles=None)
    assert not {"tiles", "tile_overlap", "map_size"} & usual.identity().keys()
    assert tiled(tmp_path).identity() == usual.identity() | {"tiles": 1.0}
    assert tiled(tmp_path, tile_overlap=0.5).identity()["tile_overlap"] == 0.5
    for wrong, text in (
        ({"tiles": None, "tile_overlap": 0.5}, "--tile_overlap 0.5: belongs to --tiles"),
        ({"tiles": 0.0}, "--tiles 0.0: must be above 0"),
        ({"tiles": 1.5}, "--tiles 1.5: must be above 0 and at most 1"),
        ({"tile_overlap": 0.95}, "--tile_overlap 0.95"),
    ):
        with pytest.raises(ValueError, match=text):
            tiled(tmp_path, **wrong)


def test_the_color_scale_takes_maxima_from_whole_maps_and_the_median_from_some_pixels() -> None:
    maps = [np.random.default_rng(i).random((90, 120)).astype(np.float32) for i in range(3)]
    whole, thinned = color_scale(maps, 90 * 120), color_scale(maps, 1000)
    assert whole[0] == np.median(np.stack(maps)) and thinned[0] == pytest.approx(whole[0], abs=0.05)
    usual = np.median([found.max() for found in maps])
    for low, high in (whole, thinned):
        assert high == pytest.approx(4 * usual - 3 * low)


def test_an_overlay_of_a_large_map_is_drawn_on_the_image() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    anomaly_map = np.zeros((48, 80), np.float32)
    anomaly_map[40:, 70:] = 1
    drawn = overlay(ScoredImage(image, anomaly_map, 1.0), (0.0, 1.0))
    panel = drawn[:, 288 + 4 : 2 * 288 + 4].astype(int)
    colored = np.argwhere(np.ptp(panel, axis=2)[:170] > 60)
    assert len(colored) and colored[:, 0].min() > 130 and colored[:, 1].min() > 230


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 training images, three of them trained on as 18 windows; one gives the threshold."""
    from toys import train

    folder = tmp_path_factory.mktemp("tiles")
    arguments = ["--data_path", make_tree(folder / "data"), "--save_path", folder / "runs", "--epochs", 1]
    assert train(*arguments, "--tiles", 1, "--holdout", 0.25, "--vis", "--save_maps", "--intervals") == 0
    return folder / "runs/mvtec/sk_rd4ad/bottle/seed111"


def test_a_run_on_windows_is_recorded_and_scored_again_to_the_bit(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(run)
    assert (record["n_train"], record["n_windows"], record["n_calibration"]) == (3, 18, 1)
    assert (record["tiles"], record["tile_overlap"]) == (1.0, 0.25)
    assert record["metrics"]["pixel_auroc"] is not None and "pixel_auroc" in record["intervals"]["metrics"]
    saved = SavedMaps.read(run, TEST)
    assert {found.shape for found in saved.maps} == {(HEIGHT, WIDTH)} and saved.masks is not None
    (mask,) = (run.parents[4] / "data/bottle/ground_truth/disc").glob("000_mask.png")
    np.testing.assert_array_equal(saved.masks[0], np.asarray(Image.open(mask)) > 0)
    scores = [float(row["score"]) for row in rows_of(run / "predictions.csv")]
    assert scores == pytest.approx([float(found.max()) for found in saved.maps], rel=1e-6)
    assert len(list((run / "overlays").glob("*.png"))) == TEST
    assert "18 windows of 3 images" in (run / "log.txt").read_text()
    capsys.readouterr()
    assert score_again(run) == 0
    assert score_again(run, "--verify") == 0
    assert "verified: the run is as recorded" in capsys.readouterr().out


def test_new_images_of_other_sizes_are_predicted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    for name, size in (("small", (40, 30)), ("large", (300, 200)), ("same", (WIDTH, HEIGHT))):
        paint(tmp_path / f"new/{name}.png", rng, defect=False, size=320)
        Image.open(tmp_path / f"new/{name}.png").crop((0, 0, *size)).save(tmp_path / f"new/{name}.png")
    (tmp_path / "new/broken.png").write_bytes(b"no image")
    assert score_again(run, "--images", tmp_path / "new", "--out", tmp_path / "out") == 3
    rows = {Path(row["path"]).stem: row for row in rows_of(tmp_path / "out/predictions.csv")}
    assert rows["broken"]["decision"] == "??" and all(rows[name]["score"] for name in ("small", "large", "same"))
    assert len(list((tmp_path / "out/overlays").glob("*.png"))) == 3
    assert "have a size that no training image had" in capsys.readouterr().err
    detector = Detector.load(run, device="cpu")
    found = detector.predict([tmp_path / "new/large.png", np.zeros((70, 90), np.uint8)])
    assert [one.anomaly_map.shape for one in found] == [(200, 300), (70, 90)]
    assert found[0].score == pytest.approx(float(rows["large"]["score"]))
    upright = Image.open(tmp_path / "new/large.png")
    assert detector.predict(upright).score == found[0].score


def test_a_run_on_windows_is_not_exported_and_not_continued_with_others(
    run: Path, train_command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.check_packages", lambda formats: None)  # it is refused before they are needed
    with pytest.raises(ValueError, match="was trained with --tiles, and an export scores one square"):
        export_command.main([str(run), "--format", "onnx"])
    assert not (run / "export").exists()
    arguments = ["--data_path", run.parents[4] / "data", "--save_path", run.parents[3], "--epochs", 1]
    arguments += ["--holdout", 0.25]
    assert train_command(*arguments, "--tiles", 1) == 0
    assert "finished already" in capsys.readouterr().out
    for others, line in (((), "tiles is 1.0 there, the default here"), ((1, "--tile_overlap", 0.5), "tile_overlap is")):
        assert train_command(*arguments, *(("--tiles", *others) if others else ())) == 2
        assert line in capsys.readouterr().err


def test_joined_maps_are_scored_at_the_images_own_sizes_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_again(run, "--map_size", "own", "--save_maps") == 0
    other = run.parents[2] / "sk_rd4ad-own/bottle/seed111"
    one, own = SavedMaps.read(run, TEST), SavedMaps.read(other, TEST)
    for before, after in zip(one.maps, own.maps, strict=True):
        np.testing.assert_array_equal(at_size(before, HEIGHT, WIDTH), after)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--variant", "drd"), ("--variant", "rdpp", "--patience", 1), ("--net", "res18")])
def test_variants_train_on_windows(tmp_path: Path, train_command: Command, flags: tuple[Any, ...]) -> None:
    arguments = ["--data_path", make_tree(tmp_path / "data"), "--save_path", tmp_path / "runs", "--epochs", 1]
    assert train_command(*arguments, "--tiles", 0.8, "--weights", "random", *flags) == 0
    (run,) = (tmp_path / "runs").rglob("metrics.json")
    assert record_of(run.parent)["metrics"]["image_auroc"] is not None


@pytest.mark.slow
def test_one_model_over_all_classes_has_windows_of_all(tmp_path: Path, train_command: Command) -> None:
    root = make_tree(tmp_path / "data", ("bottle", "cable"))
    arguments = ["--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1, "--class", "unified"]
    assert train_command(*arguments, "--tiles", 1, "--anomalib_scores", 0, "--save_maps") == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/unified/seed111"
    assert record_of(run)["n_windows"] == 2 * 6 * TRAIN and len(SavedMaps.read(run, 2 * TEST).maps) == 2 * TEST
    assert score_again(run, "--verify") == 0


@pytest.mark.slow
def test_a_resumed_run_on_windows_ends_as_an_undisturbed_one(
    tmp_path: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "data")
    arguments: Callable[[str, int], list[Any]] = lambda name, epochs: [  # noqa: E731
        *("--data_path", root, "--save_path", tmp_path / name, "--epochs", epochs, "--tiles", 1, "--cache", "none")
    ]
    assert train_command(*arguments("whole", 2)) == 0
    assert train_command(*arguments("parts", 1)) == 0 and train_command(*arguments("parts", 2)) == 0
    one, other = (record_of(tmp_path / f"{name}/mvtec/sk_rd4ad/bottle/seed111") for name in ("whole", "parts"))
    assert one["metrics"] == other["metrics"]
    log = (tmp_path / "whole/mvtec/sk_rd4ad/bottle/seed111/log.txt").read_text()
    assert "every window decodes its whole image anew in every epoch: give --cache_dir" in log
