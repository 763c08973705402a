"""Curves against scikit-learn and the project's own metrics; thinning against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from scoring.curves import area, image_curves, pixel_curves, thinned
from scoring.metrics import pixel_metrics
from scoring.pixels import PixelCounts, count_pixels


def scored(n: int, seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores that overlap, rounded so that some are equal."""
    draw = np.random.default_rng(seed)
    labels = np.append(draw.random(n - 2) < 0.4, [True, False])
    return labels, np.round((draw.normal(size=n) + labels) * levels) / levels


@pytest.mark.parametrize("levels", [3, 10**6], ids=["with ties", "distinct"])
def test_image_curves_equal_scikit_learn_at_its_thresholds(levels: int) -> None:
    labels, scores = scored(200, 0, levels)
    curves = image_curves(labels, scores)
    rates = np.stack(roc_curve(labels, scores, drop_intermediate=False)[:2], axis=1)
    np.testing.assert_array_equal(curves["roc"], rates)
    precision, recall, _ = precision_recall_curve(labels, scores)
    unique = np.stack([recall, precision], axis=1)
    unique = unique[np.append(True, (unique[1:] != unique[:-1]).any(axis=1))]
    np.testing.assert_array_equal(curves["pr"], unique)


def test_without_both_kinds_of_images_there_is_no_curve() -> None:
    assert image_curves([True, True], [1, 2]) == image_curves([False], [1]) == {} == image_curves([], [])


def toy_maps(levels: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    masks = np.zeros((6, 64, 64), bool)
    masks[0, 3:29, 4:40], masks[0, 50:52, 5:6], masks[1, 10:60, 10:40] = True, True, True
    return np.round((draw.normal(size=masks.shape) + 1.5 * masks) * levels).astype(np.float32) / levels, masks


@pytest.mark.parametrize("levels", [2, 10**6], ids=["with ties", "distinct"])
def test_pixel_curves_equal_scikit_learn_and_the_projects_own_metrics(levels: int) -> None:
    maps, masks = toy_maps(levels)
    counts = count_pixels(maps, masks)
    assert isinstance(counts, PixelCounts)
    curves, metrics = pixel_curves(counts), pixel_metrics(maps, masks, limits=(0.05, 1)).values
    assert area(curves["pixel_roc"]) == pytest.approx(metrics["pixel_auroc"], abs=1e-12)
    assert area(curves["pro"], 0.3) / 0.3 == pytest.approx(metrics["aupro"], abs=1e-12)
    assert area(curves["pro"], 0.05) / 0.05 == pytest.approx(metrics["aupro_0.05"], abs=1e-12)
    assert area(curves["pro"]) == pytest.approx(metrics["aupro_1"], abs=1e-12)
    found = {tuple(point) for point in np.stack(roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)[:2], 1)}
    assert {tuple(point) for point in curves["pixel_roc"]} <= found
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    assert {tuple(point) for point in curves["pixel_pr"]} <= set(zip(recall, precision, strict=True))


@pytest.mark.parametrize("name", ["pixel_roc", "pro"])
def test_thinning_leaves_the_ends_and_the_area(name: str) -> None:
    counts = count_pixels(*toy_maps(10**6))
    assert isinstance(counts, PixelCounts)
    points = pixel_curves(counts)[name]
    few = thinned(points)
    assert len(few) < len(points) / 2 and len(few) <= 300
    np.testing.assert_array_equal(few[[0, -1]], points[[0, -1]])
    assert {tuple(point) for point in few} <= {tuple(point) for point in points}
    assert abs(area(few) - area(points)) < 5e-4
    heights = np.interp(points[:, 0], *few.T)
    flat = np.append(True, np.diff(points[:, 0]) > 0) & np.append(np.diff(points[:, 0]) > 0, True)
    assert np.abs(heights - points[:, 1])[flat].max() < 0.05


def test_thinning_takes_at_most_so_many_points_and_keeps_corners() -> None:
    noise = np.stack([np.arange(5000), np.random.default_rng(0).normal(size=5000)], axis=1)
    assert len(thinned(noise, most=100)) == 100
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 2]], float)
    between = np.concatenate([np.linspace(a, b, 50) for a, b in zip(corners, corners[1:], strict=False)])
    np.testing.assert_array_equal(np.unique(thinned(between), axis=0), corners)
