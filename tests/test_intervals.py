"""Intervals: they cover a known AUROC, agree with scipy, and the grid of thresholds gives the exact metrics."""

from __future__ import annotations

import tracemalloc
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import stats

from scoring.intervals import Bootstrap, _PixelCounts, bootstrap_intervals, explain_intervals
from scoring.metrics import IMAGE_METRICS, compute_metrics, image_metrics
from scoring.metrics import PIXEL_METRICS as DEFAULT_METRICS

PIXEL_METRICS = (*DEFAULT_METRICS, "aupro_0.05")


def binormal(seed: int, normal: int = 40, anomalous: int = 40, shift: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores whose true AUROC is Phi(shift / sqrt 2)."""
    labels = np.arange(normal + anomalous) >= normal
    return labels, np.random.default_rng(seed).normal(size=len(labels)) + shift * labels


def defects(
    seed: int = 0, normal: int = 8, anomalous: int = 12, side: int = 96, strength: float = 4.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores, maps and masks: smooth noise, regions from 5 to 400 pixels of various contrast."""
    draw = np.random.default_rng(seed)
    maps, masks = np.zeros((2, normal + anomalous, side, side), np.float32)
    rows, columns = np.ogrid[:side, :side]
    for i in range(len(maps)):
        maps[i] = np.abs(cv2.GaussianBlur(draw.normal(size=(side, side)), (0, 0), 4) * 8)
        for _ in range(draw.integers(1, 4) if i >= normal else 0):
            y, x = draw.integers(10, side - 10, 2)
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= draw.choice([1, 4, 11]) ** 2
            masks[i][disc] = 1
            maps[i] += cv2.GaussianBlur(disc.astype(np.float32), (0, 0), 3) * strength * draw.uniform(0.2, 2)
    return np.arange(len(maps)) >= normal, maps.max(axis=(1, 2)), maps, masks != 0


@pytest.mark.parametrize(("normal", "anomalous", "shift"), [(40, 40, 1.5), (20, 60, 1.0), (30, 15, 2.0)])
def test_nineteen_of_twenty_intervals_hold_the_true_auroc(normal: int, anomalous: int, shift: float) -> None:
    truth, hits = NormalDist().cdf(shift / 2**0.5), 0
    for seed in range(300):
        drawn = binormal(seed, normal, anomalous, shift)
        low, high = bootstrap_intervals(*drawn, bootstrap=Bootstrap(replicates=500, seed=seed))["image_auroc"]
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_aurocs_interval_is_that_of_scipy() -> None:
    labels, scores = binormal(3)
    ours = bootstrap_intervals(labels, scores, bootstrap=Bootstrap(replicates=10_000))["image_auroc"]

    def auroc(anomalous: np.ndarray, normal: np.ndarray, axis: int) -> np.ndarray:
        return (anomalous[..., :, None] > normal[..., None, :]).mean(axis=(-1, -2))

    sets, draw = (scores[labels], scores[~labels]), np.random.default_rng(0)
    wanted = stats.bootstrap(
        sets, auroc, n_resamples=10_000, batch=500, method="BCa", random_state=draw
    ).confidence_interval
    assert ours == pytest.approx(tuple(wanted), abs=0.01)


def test_the_interval_of_f1max_which_is_biased_is_that_of_scipy() -> None:
    labels, scores = binormal(1, 25, 25, 0.8)

    def f1max(anomalous: np.ndarray, normal: np.ndarray) -> float:
        kinds = np.arange(len(anomalous) + len(normal)) < len(anomalous)
        return image_metrics(kinds, np.append(anomalous, normal)).values["image_f1max"]

    sets, draw = (scores[labels], scores[~labels]), np.random.default_rng(0)
    options = {"n_resamples": 5000, "method": "BCa", "vectorized": False, "random_state": draw}
    wanted = stats.bootstrap(sets, f1max, **options).confidence_interval
    ours = bootstrap_intervals(labels, scores, bootstrap=Bootstrap(replicates=10_000))["image_f1max"]
    assert ours == pytest.approx(tuple(wanted), abs=0.01)


def test_the_aurocs_interval_is_near_that_of_delong() -> None:
    """The variance from the placements of each score among the other kind, by hand."""
    labels, scores = binormal(5, normal=150, anomalous=150)
    above = (scores[labels][:, None] > scores[~labels]).astype(float)
    variance = above.mean(axis=1).var(ddof=1) / 150 + above.mean(axis=0).var(ddof=1) / 150
    low, high = bootstrap_intervals(labels, scores, bootstrap=Bootstrap(0.9, 4000))["image_auroc"]
    assert high - low == pytest.approx(2 * 1.6449 * variance**0.5, rel=0.05)
    assert (low + high) / 2 == pytest.approx(above.mean(), abs=0.005)


@pytest.mark.parametrize(
    "changes", [{}, {"strength": 0.3}, {"strength": 20.0}, {"seed": 1, "normal": 0}, {"seed": 2, "side": 256}]
)
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_on_the_grid_of_thresholds_are_the_exact_ones(changes: dict[str, Any], ties: bool) -> None:
    labels, scores, maps, masks = defects(**changes)
    maps = np.round(maps * 4) if ties else maps**3  # cubed: only the order of scores matters
    counts = _PixelCounts.of(maps, masks)
    assert counts is not None
    found, exact = counts.metrics(np.ones((1, len(labels)))), compute_metrics(labels, scores, maps, masks).values
    for name in PIXEL_METRICS:
        error = 1e-12 if ties else 3e-4 if name == "pixel_f1max" else 1e-4
        assert found[name][0] == pytest.approx(exact[name], abs=error), name


def test_a_replicate_is_the_metrics_of_the_images_that_were_drawn() -> None:
    """Drawn images are repeated, left-out ones are missing: computed from the maps anew."""
    labels, scores, maps, masks = defects()
    weights = np.random.default_rng(1).integers(0, 3, len(labels))
    picked = np.repeat(np.arange(len(labels)), weights)
    counts = _PixelCounts.of(maps, masks)
    assert counts is not None and len(picked) > 10
    found = counts.metrics(weights[None].astype(float))
    exact = compute_metrics(labels[picked], scores[picked], maps[picked], masks[picked]).values
    for name in PIXEL_METRICS:
        assert found[name][0] == pytest.approx(exact[name], abs=5e-4 if name == "pixel_f1max" else 1e-4), name


def test_image_metrics_of_replicates_are_exact_with_ties() -> None:
    labels, scores = binormal(0, 9, 7)
    scores = np.round(scores)
    got = []
    for seed in range(20):
        low, high = bootstrap_intervals(labels, scores, bootstrap=Bootstrap(0.5, 100, seed))["image_ap"]
        got.append((low, high))
    exact = image_metrics(labels, scores).values["image_ap"]
    assert np.mean([low < exact < high for low, high in got]) == 1 and len(set(got)) > 1


def test_intervals_hold_the_metrics_repeat_with_their_seed_and_widen_with_the_level() -> None:
    data = defects()
    exact = compute_metrics(*data).values
    found = bootstrap_intervals(*data)
    assert list(found) == [*IMAGE_METRICS, *PIXEL_METRICS]
    assert all(0 <= low <= exact[name] <= high <= 1 for name, (low, high) in found.items())
    assert found == bootstrap_intervals(*data) != bootstrap_intervals(*data, bootstrap=Bootstrap(seed=1))
    wide = bootstrap_intervals(*data, bootstrap=Bootstrap(0.99))
    assert all(wide[n][0] < found[n][0] and found[n][1] < wide[n][1] for n in ("pixel_ap", "aupro"))
    images = bootstrap_intervals(*data[:2])
    assert images == {name: found[name] for name in IMAGE_METRICS}, "whether there are maps moves no image metric"


def test_more_images_make_narrower_intervals() -> None:
    widths = []
    for count in (25, 400):
        low, high = bootstrap_intervals(*binormal(0, count, count))["image_auroc"]
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_perfect_separation_has_no_width_and_says_so() -> None:
    labels = np.arange(24) >= 12
    masks = np.zeros((24, 8, 8), bool)
    masks[labels, 2:4, 2:4] = True
    found = bootstrap_intervals(labels, labels + 0.5, masks.astype(np.float32), masks)
    assert found == dict.fromkeys([*IMAGE_METRICS, *PIXEL_METRICS], pytest.approx((1, 1)))
    (note,) = explain_intervals(found, labels)
    assert "without width says little" in note


def test_one_anomalous_image_is_drawn_every_time_and_said() -> None:
    labels, scores, maps, masks = defects(normal=20, anomalous=1)
    found = bootstrap_intervals(labels, scores, maps, masks)
    assert set(found) == {*IMAGE_METRICS, *PIXEL_METRICS}
    assert all(0 <= low <= high <= 1 for low, high in found.values())
    assert any("only 1 anomalous image:" in note for note in explain_intervals(found, labels))
    assert explain_intervals(bootstrap_intervals(*binormal(0)), binormal(0)[0]) == []


def test_undefined_metrics_have_no_interval() -> None:
    labels, scores, maps, masks = defects(normal=3, anomalous=3)
    assert bootstrap_intervals(np.zeros(6), scores) == {}
    assert set(bootstrap_intervals(labels, scores, maps, np.zeros_like(masks))) == set(IMAGE_METRICS)
    unmasked = [*masks[:5], None]
    assert set(bootstrap_intervals(labels, scores, maps, unmasked)) == set(IMAGE_METRICS)
    assert set(bootstrap_intervals(np.ones(3), scores[3:], maps[3:], masks[3:])) == set(PIXEL_METRICS)
    empty = masks.copy()
    empty[3:5] = False  # anomalous by their folder: some replicates have no defect pixel at all
    assert all(np.isfinite(bootstrap_intervals(labels, scores, maps, empty)["aupro"]))


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"level": float("nan")}, {"replicates": 10}])
def test_a_level_or_number_without_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="level|replicates"):
        Bootstrap(**wrong)
    with pytest.raises(ValueError, match="image 1: its score is NaN"):
        bootstrap_intervals([0, 1], [0.0, np.nan])


def test_memory_is_a_share_of_the_maps() -> None:
    data = defects(normal=60, anomalous=20, side=256)
    tracemalloc.start()
    bootstrap_intervals(*data, bootstrap=Bootstrap(replicates=4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * data[2].nbytes, f"{peak / 2**20:.0f} MiB beside maps of {data[2].nbytes / 2**20:.0f} MiB"
