"""Metrics by kind of defect and by group: those of the subset alone, counted in one pass over the maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scoring import counting
from scoring.counting import ScoreCounter
from scoring.groups import by_title, record_groups, subsets_of
from scoring.metrics import METRIC_NAMES, compute_metrics, compute_subsets

KINDS = ["good", "scratch", "hole", "good", "scratch", "good", "dirt", "hole"]
LIGHTS = ["dark", "dark", "bright", "bright", "bright", "dark", "", "dark"]


def toy_set(seed: int, form: Any = lambda x: x) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores, maps and masks of eight images, every one with 5,400 pixels."""
    rng = np.random.default_rng(seed)
    labels = np.array([kind != "good" for kind in KINDS])
    masks = rng.random((8, 60, 90)) < 0.03 * labels[:, None, None]
    maps = form(rng.standard_normal(masks.shape) + 2 * masks)
    return labels, maps.max(axis=(1, 2)), maps, masks


def test_the_subsets_are_those_of_the_definition() -> None:
    labels = np.array([kind != "good" for kind in KINDS])
    subsets = subsets_of(labels, KINDS, LIGHTS, "light")
    found = {key: np.flatnonzero(own).tolist() for key, own in subsets.items()}
    assert found == {
        ("defect", "dirt"): [0, 3, 5, 6],
        ("defect", "hole"): [0, 2, 3, 5, 7],
        ("defect", "scratch"): [0, 1, 3, 4, 5],
        ("light", "bright"): [2, 3, 4],
        ("light", "dark"): [0, 1, 5, 7],
    }
    assert subsets_of(labels, ["good" if not bad else "bad" for bad in labels], [""] * 8) == {}, "a single kind"
    assert list(subsets_of(labels, ["bad"] * 8, LIGHTS)) == [("group", "bright"), ("group", "dark")]


@pytest.mark.parametrize("form", [np.float32, lambda x: np.round(x * 4), lambda x: np.abs(x) ** 7])
def test_metrics_of_a_subset_are_those_of_its_images_alone(form: Any) -> None:
    for seed in range(4):
        labels, scores, maps, masks = toy_set(seed, form)
        subsets = list(subsets_of(labels, KINDS, LIGHTS).values())
        whole, *reports = compute_subsets(labels, scores, maps, masks, subsets)
        assert whole.values == compute_metrics(labels, scores, maps, masks).values
        for own, report in zip(subsets, reports, strict=True):
            alone = compute_metrics(labels[own], scores[own], maps[own], masks[own])
            assert tuple(report.values) == METRIC_NAMES
            assert report.values == pytest.approx(alone.values, abs=1e-12, nan_ok=True)
            assert report.reasons == alone.reasons and report.thresholds == alone.thresholds


def test_every_pixel_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    count = ScoreCounter.count

    def counted(self: ScoreCounter, others: Any, left_out: Any) -> Any:
        nonlocal compared
        compared += sum(scores.size for scores in others)
        return count(self, others, left_out)

    monkeypatch.setattr(counting.ScoreCounter, "count", counted)
    labels, scores, maps, masks = toy_set(0)
    subsets = list(subsets_of(labels, KINDS, LIGHTS).values())
    compute_subsets(labels, scores, maps, masks, subsets, per_image=False)
    assert compared == maps.size


def test_a_group_without_normal_or_without_masked_images_says_why() -> None:
    labels, scores, maps, masks = toy_set(0)
    lights = ["a" if bad else "b" for bad in labels]
    subsets = subsets_of(labels, KINDS, lights)
    groups = by_title(labels, subsets, compute_subsets(labels, scores, maps, masks, list(subsets.values()))[1:])
    bad, good = groups["group"]["a"], groups["group"]["b"]
    assert (bad.n_test, bad.n_anomalous, good.n_test, good.n_anomalous) == (5, 5, 3, 0)
    assert bad.report.reasons["image_auroc"] == "no normal image in the test set"
    assert bad.report.reasons["aupimo"] == "no normal image in the test set" and bad.report.values["aupro"] > 0
    assert good.report.reasons["aupro"] == "no defect pixel in any mask"
    unmasked = [None if i == 2 else mask for i, mask in enumerate(masks)]
    reports = compute_subsets(labels, scores, maps, unmasked, list(subsets.values()))
    assert math.isnan(reports[0].values["aupro"]) and not math.isnan(reports[3].values["aupro"])
    assert reports[2].reasons["aupro"] == "image 2 is anomalous and has no mask"


def test_without_maps_there_are_image_metrics_and_records_are_json() -> None:
    labels, scores, *_ = toy_set(0)
    subsets = subsets_of(labels, KINDS, [""] * 8)
    groups = by_title(labels, subsets, compute_subsets(labels, scores, None, None, list(subsets.values()))[1:])
    record = record_groups(groups)["groups"]["defect"]["hole"]
    assert (record["n_test"], record["n_anomalous"]) == (5, 2)
    own = subsets["defect", "hole"]
    assert record["metrics"]["image_auroc"] == compute_metrics(labels[own], scores[own]).values["image_auroc"]
    assert record["metrics"]["aupro"] is None and record["reasons"]["aupro"] == "no anomaly maps"
    assert record_groups({}) == {}
