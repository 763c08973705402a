"""The formula written out, what 0.5 means to the last bit, F1 at the threshold, and sets that have none."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.metrics import f1_score as scikit_f1
from sklearn.metrics import roc_auc_score

from scoring.metrics import compute_metrics
from scoring.normalization import Normalizer, f1_metrics, f1_score, normalizers

Set = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def toy_set(seed: int, kind: type = np.float32, decimals: int = 9) -> Set:
    """Labels, scores, maps and masks of eight images, every second one with a square defect."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((8, 16, 16), bool)
    masks[1::2, 4:9, 5:10] = True
    raw = rng.standard_normal(masks.shape) + masks + rng.normal(0, 0.5, (8, 1, 1))
    maps: np.ndarray = np.round(raw, decimals).astype(kind)
    return np.arange(8) % 2 == 1, maps.max(axis=(1, 2)), maps, masks


# Normalizing and identity


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_formula(kind: type) -> None:
    scores: np.ndarray = np.linspace(-1, 6, 50).astype(kind)
    expected = [min(max((float(x) - 2.0) / (5.0 - 1.0) + 0.5, 0.0), 1.0) for x in scores]
    shares = Normalizer(threshold=2.0, low=1.0, high=5.0).normalized(scores)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-15)
    assert shares.dtype == np.float64 and shares.min() == 0 and shares.max() == 1


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_half_and_above_means_anomalous_to_the_last_bit(kind: type, size: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores: np.ndarray = (rng.standard_normal(30) * size).astype(kind)
        threshold = rng.choice(scores)
        near = [np.nextafter(threshold, kind(side)) for side in (-np.inf, np.inf)]
        scores = np.sort(np.concatenate([scores, near, np.array([-np.inf, np.inf], kind)]))
        normalizer = Normalizer.of(scores[1:-1], float(threshold))
        shares, decisions = normalizer.normalized(scores), normalizer.decide(scores)
        np.testing.assert_array_equal(decisions, scores >= threshold)
        np.testing.assert_array_equal(shares >= 0.5, decisions)
        assert (np.diff(shares) >= 0).all() and shares[0] == 0 and shares[-1] == 1
        assert normalizer.normalized(threshold) == 0.5


def test_single_precision_scores_meet_a_double_threshold_unrounded() -> None:
    scores = np.array([0.1, 0.3], np.float32)  # 0.1 rounds up in single precision, 0.3 does too
    assert Normalizer(float(np.nextafter(float(scores[0]), 1)), 0, 1).decide(scores).tolist() == [False, True]


def test_auroc_changes_only_where_clipping_ties_scores() -> None:
    truth, scores = np.array([0, 0, 1, 0, 1, 1]), np.array([0.0, 1, 2, 7, 8, 9])
    middle = Normalizer.of(scores, 4.5).normalized(scores)  # from 0 to 1: nothing is clipped
    assert roc_auc_score(truth, middle) == roc_auc_score(truth, scores)
    low = Normalizer.of(scores, 2.0).normalized(scores)  # 7, 8 and 9 become 1: two pairs that were right now tie
    assert low.tolist()[3:] == [1, 1, 1]
    assert roc_auc_score(truth, scores) - roc_auc_score(truth, low) == pytest.approx(2 * 0.5 / 9)


def test_one_score_only_leaves_a_step() -> None:
    normalizer = Normalizer.of(np.full((2, 3), 4.0), 4.0)
    scores = [3.0, np.nextafter(4.0, 0), 4.0, 5.0]
    assert normalizer.normalized(scores).tolist() == [0, 0, 0.5, 1]
    assert normalizer.decide(scores).tolist() == [False, False, True, True]


def test_a_saved_normalizer_is_the_same() -> None:
    normalizer = Normalizer.of(np.array([0.1, 0.7], np.float32), float(np.float32(0.3)))
    assert Normalizer(**json.loads(json.dumps(asdict(normalizer), allow_nan=False))) == normalizer
    assert (normalizer.low, normalizer.high) == (float(np.float32(0.1)), float(np.float32(0.7)))


# F1 at the threshold


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_f1_at_thresholds_of_the_same_set_is_f1max_and_elsewhere_no_more(kind: type, decimals: int) -> None:
    changed = fell_short = 0
    for seed in range(10):
        (labels, scores, maps, masks), other = (toy_set(seed + k, kind, decimals) for k in (0, 100))
        report = compute_metrics(labels, scores, maps, masks)
        fitted = normalizers(report.thresholds, scores, maps)
        own = f1_metrics(fitted, labels, scores, maps, masks)
        assert own == {"image_f1": report.values["image_f1max"], "pixel_f1": report.values["pixel_f1max"]}
        best, carried = compute_metrics(*other).values, f1_metrics(fitted, *other)
        assert all(metric <= best[f"{name}max"] for name, metric in carried.items())
        changed += carried["pixel_f1"] < best["pixel_f1max"]
        fell_short += f1_score(masks, maps > fitted["pixel"].threshold) < own["pixel_f1"]  # as anomalib 2 decides
    assert changed >= (5 if decimals else 1) and fell_short == 10


def test_f1_equals_scikit_learn() -> None:
    labels, scores, maps, masks = toy_set(1)
    assert type(f1_score(labels, scores > 2.5)) is float
    assert f1_score(labels, scores > 2.5) == pytest.approx(scikit_f1(labels, scores > 2.5))
    mixed: list = [None if not mask.any() else mask * np.uint8(255) for mask in masks]
    assert f1_score(mixed, maps > 1) == pytest.approx(scikit_f1(masks.ravel(), maps.ravel() > 1))


def test_f1_is_undefined_as_f1max_is() -> None:
    labels, scores, maps, masks = toy_set(2)
    some: list = [mask if mask.any() else None for mask in masks]
    none: list = [None] * len(masks)
    lost = [*some[:-1], None]  # of an anomalous image
    for truth, has_pixels in ((some, True), (none, False), (None, False), (lost, False)):
        report = compute_metrics(labels, scores, maps, truth)
        metrics = f1_metrics(normalizers(report.thresholds, scores, maps), labels, scores, maps, truth)
        assert metrics["image_f1"] == report.values["image_f1max"]
        assert math.isnan(metrics["pixel_f1"]) == math.isnan(report.values["pixel_f1max"]) != has_pixels
    for same in (np.zeros(8), np.ones(8)):
        assert math.isnan(f1_score(same, scores > 1))


# Sets without a threshold


def test_a_missing_threshold_is_the_other_ones_or_the_middle() -> None:
    scores, maps = [1.0, 5.0], np.array([[[0.0, 1]], [[5.0, 2]]])
    both = normalizers({"image": 4.0, "pixel": 3.0}, scores, maps)
    assert both == {"image": Normalizer(4, 1, 5), "pixel": Normalizer(3, 0, 5)}
    assert normalizers({"image": 4.0}, scores, maps)["pixel"] == Normalizer(4, 0, 5)
    assert normalizers({"pixel": 3.0}, scores, maps)["image"] == Normalizer(3, 1, 5)
    assert normalizers({}, scores, maps) == {"image": Normalizer(3, 1, 5), "pixel": Normalizer(2.5, 0, 5)}


@pytest.mark.parametrize("scores", [[0, np.inf], [np.nan, 1]])
def test_scores_that_have_no_finite_range(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        Normalizer.of(scores, 0.5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no scores"):
        Normalizer.of([])
    with pytest.raises(ValueError, match="low <= high"):
        Normalizer(0.0, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"image 1: its mask is \(2, 3\), its decisions \(3, 2\)"):
        f1_score([None, np.ones((2, 3))], [np.ones((3, 2), bool)] * 2)
    with pytest.raises(ValueError):
        f1_score([0, 1], [True])
