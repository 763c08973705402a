"""AUPIMO against its definition, walked threshold by threshold, and against cases by hand."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scoring.aupimo import LOWER, UPPER, NormalTail
from scoring.metrics import compute_metrics

Arrays = list[np.ndarray]


def slow_aupimo(normal: Arrays, scores: np.ndarray, mask: np.ndarray) -> float:
    """The definition: every score that occurs is a threshold, from the highest down, and so is one above all of them.

    From the rate of a threshold up to that of the next lower one the recall is its own; of thresholds with equal rates
    it is the lowest one's. Rates above the upper bound are not looked at.
    """
    occurring = np.unique(np.concatenate([image.ravel().astype(float) for image in [*normal, scores]]))
    steps = {0.0: 0.0}
    for threshold in occurring[::-1]:
        rate = float(np.mean([(image >= threshold).mean() for image in normal]))
        if rate > UPPER:
            break
        steps[rate] = float((scores >= threshold)[mask].mean())
    rates, recalls = [*steps, math.inf], list(steps.values())
    area = 0.0
    for low, high, recall in zip(rates[:-1], rates[1:], recalls, strict=True):
        low, high = max(low, LOWER), min(high, UPPER)
        if low < high:
            area += recall * (math.log(high) - math.log(low))
    return area / (math.log(UPPER) - math.log(LOWER))


def sets(count: int) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
    """Normal maps, anomalous maps and their masks: some thousand pixels and more, of one size or several, with ties."""
    change: dict[str, Any] = {
        "normal": lambda x: x,
        "single precision": lambda x: x.astype(np.float32),
        "many ties": lambda x: np.round(x * 20),
        "few values": np.round,
        "half": lambda x: x.astype(np.float16),
        "infinite": lambda x: np.where(np.abs(x) > 3.6, np.sign(x) * np.inf, x).astype(np.float32),
    }
    rng = np.random.default_rng(0)
    for k in range(count):
        form, mixed = list(change.values())[k % len(change)], k % 2
        shapes = [(100 + 13 * mixed * i, 110) for i in range(int(rng.integers(1, 4)))]
        masks = [rng.random(shapes[0]) < share for share in (0.001, 0.1)]
        shift = rng.uniform(0, 5)
        normal = [form(rng.standard_normal(shape)) for shape in shapes]
        yield normal, [form(rng.standard_normal(mask.shape) + shift * mask) for mask in masks], masks


def test_aupimo_equals_its_slow_definition() -> None:
    found = []
    for normal, maps, masks in sets(36):
        tail = NormalTail([image.ravel() for image in normal])
        assert tail.undefined is None
        for scores, mask in zip(maps, masks, strict=True):
            found.append(tail.aupimo(scores[mask]))
            assert found[-1] == pytest.approx(slow_aupimo(normal, scores, mask), abs=1e-12)
    assert len({round(value, 3) for value in found}) > 20, "the sets tell detectors apart"


def test_the_metric_is_the_mean_over_anomalous_images_that_have_defects() -> None:
    for normal, maps, masks in sets(6):
        empty = np.zeros(maps[0].shape, bool)
        everything = [maps[0], *normal, maps[1], maps[0]]
        labels = [1, *([0] * len(normal)), 1, 1]
        report = compute_metrics(
            labels, np.arange(len(labels)), everything, [masks[0], *([None] * len(normal)), masks[1], empty]
        )
        expected = [slow_aupimo(normal, *pair) for pair in zip(maps, masks, strict=True)]
        each = report.images["aupimo"]
        assert each[[0, -2]] == pytest.approx(expected, abs=1e-12)
        assert np.isnan(each[[*range(1, len(normal) + 1), -1]]).all(), "normal ones, and one with an empty mask"
        assert report.values["aupimo"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_by_hand() -> None:
    """Of 20,000 normal pixels one is a rate of 5e-5, on a logarithmic scale 70 % of the way from 1e-5 to 1e-4."""
    normal = np.zeros((2, 10_000))
    normal[0, 0], normal[1, :3] = 3, (2, 2, 1)
    tail = NormalTail(list(normal))
    share = math.log10(UPPER / 5e-5)
    assert tail.aupimo(np.array([4.0])) == 1, "above all normal pixels"
    assert tail.aupimo(np.array([3.0])) == pytest.approx(share), "tied with the highest: found when that one is"
    assert tail.aupimo(np.array([2.5])) == pytest.approx(share)
    assert tail.aupimo(np.array([2.0])) == 0, "three pixels are a rate above 1e-4"
    assert tail.aupimo(np.array([4.0, 2.5, 0, 0])) == pytest.approx((1 + share) / 4), "a quarter of the pixels each"


def test_too_few_normal_pixels_are_a_reason_in_words() -> None:
    few = NormalTail([np.zeros(4999)] * 2)
    assert few.undefined == "a false positive rate of 0.0001 needs 10,000 pixels of normal images; found 9998"
    just = NormalTail([np.zeros(5000)] * 2)
    assert just.undefined is None and just.aupimo(np.array([1.0, 0.0])) == 0.5, "the share above every normal pixel"
    maps = np.zeros((2, 200, 200))
    maps[1, 0, 0] = 1
    for labels, why in (([1, 1], "no normal image in the test set"), ([0, 0], "no defect pixel in the mask of an")):
        report = compute_metrics(labels, [0, 1], maps, maps)
        assert math.isnan(report.values["aupimo"]) and report.reasons["aupimo"].startswith(why)
        assert report.images == {} and report.values["aupro"] == 1


def test_only_the_order_of_scores_matters() -> None:
    for normal, maps, masks in sets(6):
        cubed = NormalTail([image.astype(float).ravel() ** 3 for image in normal])
        plain = NormalTail([image.ravel() for image in normal])
        assert cubed.aupimo(maps[0].astype(float)[masks[0]] ** 3) == plain.aupimo(maps[0][masks[0]])


def test_memory_is_that_of_an_image_not_of_the_set() -> None:
    maps = np.random.default_rng(1).random((64, 256, 256), np.float32)
    tracemalloc.start()
    try:
        NormalTail([image.reshape(-1) for image in maps])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * maps[0].nbytes
