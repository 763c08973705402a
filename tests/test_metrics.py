"""The metrics against scikit-learn, against their slow definitions written out here, and against cases by hand."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from scipy.ndimage import label as label_regions
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from scoring import counting
from scoring.counting import ScoreCounter
from scoring.metrics import METRIC_NAMES, compute_metrics, image_metrics, pixel_metrics

EIGHT = np.ones((3, 3))  # neighbors that make one region
Arrays = list[np.ndarray]


def slow_aupro(maps: Arrays, masks: Arrays, limit: float) -> float:
    """The definition: walk every distinct score as a threshold, join the points by straight lines, cut at the limit."""
    regions = []
    for i, mask in enumerate(masks):
        labels, n = label_regions(mask > 0, EIGHT)
        regions += [(i, labels == region) for region in range(1, n + 1)]
    normal = sum(int((mask == 0).sum()) for mask in masks)
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([scores.ravel().astype(float) for scores in maps]))[::-1]:
        found = [scores >= threshold for scores in maps]
        rates.append(sum(int((hit & (mask == 0)).sum()) for hit, mask in zip(found, masks, strict=True)) / normal)
        overlaps.append(float(np.mean([found[i][region].mean() for i, region in regions])))
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x0 < limit < x1:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += max(min(x1, limit) - x0, 0) * (y0 + y1) / 2
    return area / limit


def slow_published(scores: np.ndarray, mask: np.ndarray) -> float:
    """One image as published: 200 thresholds, strictly above, rates under 0.3 divided by the largest of them."""
    labels, n = label_regions(mask > 0, EIGHT)
    rates, overlaps = [], []
    for threshold in np.arange(scores.min(), scores.max(), (scores.max() - scores.min()) / 200):
        found = scores.astype(float) > threshold  # in double precision, as NumPy 2 compares
        rate = found[mask == 0].mean()
        if rate < 0.3:
            rates.append(rate)
            overlaps.append(np.mean([found[labels == region].mean() for region in range(1, n + 1)]))
    x, y = np.array(rates) / max(rates), np.array(overlaps)
    return float(np.sum((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2))


def random_sets(n_sets: int, side: int = 20) -> Iterator[tuple[Arrays, Arrays]]:
    """Small sets of mixed sizes, strong and weak detectors, few and many ties, tame and wild distributions."""
    shapes = {
        "normal": lambda x: x,
        "float32": lambda x: x.astype(np.float32),
        "ties": lambda x: np.round(x * 2),
        "8 bit": lambda x: np.clip(x * 40 + 100, 0, 255).astype(np.uint8),
        "products": lambda x: (np.abs(x) ** 5).astype(np.float32),
        "wild": lambda x: np.exp(20 * x),
        "outliers": lambda x: np.where(np.abs(x) > 2.5, x * 1e30, x).astype(np.float32),
        "half": lambda x: x.astype(np.float16),
    }
    rng = np.random.default_rng(0)
    for k in range(n_sets):
        change = list(shapes.values())[k % len(shapes)]
        strength, share = rng.uniform(0, 3), rng.choice([0.02, 0.2, 0.6])
        maps, masks = [], []
        for i in range(rng.integers(2, 6)):
            height, width = rng.integers(2, side, 2)
            mask = rng.random((height, width)) < (share if i % 2 == 0 else 0)
            if i == 0:
                mask[0, 0], mask[-1, -1] = True, False
            masks.append(mask)
            maps.append(change(rng.standard_normal(mask.shape) + strength * mask))
        yield maps, masks


def together(arrays: Arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays]).astype(float)


def f1max(truth: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(truth, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))


def slow_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """The lowest of all distinct scores at which F1 = 2 hits / (found + anomalous) is largest, in exact fractions."""
    best, threshold = Fraction(0), math.nan
    for score in np.unique(scores):
        found = scores >= score
        f1 = Fraction(2 * int((found & truth).sum()), int(found.sum() + truth.sum()))
        if f1 > best:
            best, threshold = f1, float(score)
    return threshold


def curve_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """The same from scikit-learn's curve, as anomalib chooses it, its rates turned back into the counts they are of."""
    precision, recall, thresholds = (rates[: np.unique(scores).size] for rates in precision_recall_curve(truth, scores))
    hits = np.rint(recall * truth.sum())
    found = np.rint(np.divide(hits, precision, out=np.ones_like(hits), where=hits > 0))
    return float(thresholds[np.argmax(2 * hits / (found + truth.sum()))])


# Against independent implementations


def test_image_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    for k in range(200):
        n = int(rng.integers(2, 60))
        truth = np.append([0, 1], rng.random(n - 2) < rng.uniform(0.05, 0.95))
        scores = np.round(rng.standard_normal(n) + truth, k % 3)
        report = image_metrics(truth, scores)
        expected = roc_auc_score(truth, scores), average_precision_score(truth, scores), f1max(truth, scores)
        assert tuple(report.values.values()) == pytest.approx(expected, abs=1e-12)
        assert not report.reasons


def test_pixel_metrics_equal_scikit_learn() -> None:
    for maps, masks in random_sets(160):
        truth, scores = together(masks), together(maps)
        expected = roc_auc_score(truth, scores), average_precision_score(truth, scores), f1max(truth, scores)
        values = pixel_metrics(maps, masks).values
        assert [values[name] for name in METRIC_NAMES[3:6]] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_image_threshold_is_the_lowest_score_of_the_best_f1(kind: type, decimals: int) -> None:
    rng = np.random.default_rng(9)
    for _ in range(60):
        n = int(rng.integers(2, 40))
        truth = np.append([False, True], rng.random(n - 2) < rng.uniform(0.05, 0.95))
        scores = np.round(rng.standard_normal(n) + truth, decimals).astype(kind)
        threshold = image_metrics(truth, scores).thresholds["image"]
        assert threshold == slow_threshold(truth, scores) == curve_threshold(truth, scores)
        assert type(threshold) is float and threshold in scores.astype(float)  # to the bit


def test_pixel_threshold_is_the_lowest_score_of_the_best_f1() -> None:
    for maps, masks in random_sets(80):
        truth, scores = together(masks) > 0, together(maps)
        threshold = pixel_metrics(maps, masks).thresholds["pixel"]
        assert threshold == slow_threshold(truth, scores) == curve_threshold(truth, scores)


def test_aupro_equals_its_slow_definition_at_every_limit() -> None:
    rng = np.random.default_rng(2)
    for maps, masks in random_sets(48, side=12):
        limits = [0.05, 1.0, round(float(rng.uniform(0.01, 1)), 4)]
        values = pixel_metrics(maps, masks, limits).values
        for limit in [0.3, *limits]:
            name = "aupro" if limit == 0.3 else f"aupro_{limit:g}"
            assert values[name] == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("on_thresholds", [False, True])
def test_per_image_metric_equals_the_published_definition(kind: type, on_thresholds: bool) -> None:
    """`on_thresholds`: every score is a threshold, or the float32 next to it, where strictly above shows."""
    rng = np.random.default_rng(3)
    for _ in range(12):
        masks = [rng.random((24, 31)) < share for share in (0.03, 0.2, 0)]
        maps: Arrays = [rng.lognormal(mask, 0.5).astype(kind) for mask in masks]
        if on_thresholds:
            steps = [np.append(np.arange(m.min(), m.max(), (m.max() - m.min()) / 200), m.max()) for m in maps]
            maps = [s[np.searchsorted(s, m).clip(0, 200)].astype(kind) for s, m in zip(steps, maps, strict=True)]
        expected = np.mean([slow_published(*pair) for pair in zip(maps[:2], masks[:2], strict=True)])
        value = pixel_metrics(maps, masks, per_image=True).values["aupro_per_image"]
        assert value == pytest.approx(expected, abs=1e-12)


# The counting, where the sets above are too small for it: full tables, crowds, batches


def counting_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(4)
    cuts, others = rng.standard_normal(100_000) + 1, rng.standard_normal(300_000)
    near_one = 1 + rng.random(5_000, dtype=np.float32) / 1_000
    return {
        "more cuts than bins": (cuts, np.append(others, cuts[:1_000])),
        "single precision": (cuts.astype(np.float32), np.append(others, cuts[::7]).astype(np.float32)),
        "products crowd": (np.abs(cuts) ** 9, np.abs(others) ** 9),
        "one far below, all crowd, in batches": (
            np.append(near_one, np.float32(-1e6)),
            1 + rng.random(2_500_000, dtype=np.float32) / 1_000,
        ),
        "one far above": (np.append(near_one, np.float32(3e38)), np.append(near_one, np.float32(np.inf))),
        "infinite": (np.array([-np.inf, 0, np.inf]), np.array([-np.inf, -1, 0, 1, np.inf, np.inf])),
        "only infinite": (np.array([-np.inf, np.inf]), np.array([-np.inf, 5, np.inf])),
        "widest": (np.array([-1.7e308, 1.7e308]), np.array([-1.7e308, 0, 1.7e308])),
        "smallest": (np.array([0, 5e-324, 1e-323]), np.array([-5e-324, 5e-324, 1e-323, 2e-323])),
        "one cut": (np.array([0.0]), np.array([-1.0, -0.0, 0.0, 1.0])),
    }


@pytest.mark.parametrize("case", counting_cases())
def test_counts_equal_those_of_sorting(case: str) -> None:
    cuts, others = counting_cases()[case]
    cuts = np.unique(cuts)
    left_out = np.arange(0, len(others), 3)
    parts = [slice(0, len(others) // 2), slice(len(others) // 2, None)]
    places = [left_out[left_out < parts[0].stop], None]
    exceed, equal = ScoreCounter(cuts, [others]).count([others[part] for part in parts], places)
    kept = np.sort(np.delete(others, places[0]))
    upper, lower = np.searchsorted(kept, cuts, "right"), np.searchsorted(kept, cuts, "left")
    np.testing.assert_array_equal(exceed, len(kept) - upper)
    np.testing.assert_array_equal(equal, upper - lower)


def test_counts_do_not_depend_on_chunks_or_on_how_images_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    masks = rng.random((7, 33, 41)) < 0.1
    maps = rng.standard_normal(masks.shape).astype(np.float32) + masks
    whole = pixel_metrics(maps, masks, (0.05, 1), per_image=True).values
    monkeypatch.setattr(counting, "CHUNK", 100)
    assert pixel_metrics(maps, masks, (0.05, 1), per_image=True).values == whole
    turned = [np.asfortranarray(scores) for scores in maps]
    assert pixel_metrics(turned, [m.astype(np.uint8) * 255 for m in masks], (0.05, 1), per_image=True).values == whole


def test_memory_stays_a_small_multiple_of_the_maps() -> None:
    rng = np.random.default_rng(6)
    masks = np.zeros((64, 256, 256), bool)
    masks[::2, 40:80, 100:130] = True
    maps = rng.standard_normal(masks.shape, dtype=np.float32) + masks
    pixel_metrics(maps[:1], masks[:1])  # what a first call loads
    tracemalloc.start()
    try:
        pixel_metrics(maps, masks, per_image=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * maps.nbytes


# Laws


def test_only_the_order_of_scores_matters_but_for_the_published_metric() -> None:
    rng = np.random.default_rng(7)
    masks = [rng.random((30, 30)) < 0.1 for _ in range(4)]
    maps = [rng.lognormal(0.5 * mask, 0.8) for mask in masks]
    labels = [0, 1, 0, 1]
    plain, cubed = (
        compute_metrics(labels, [m.max() for m in changed], changed, masks, (0.05, 0.3, 1)).values
        for changed in (maps, [m**3 for m in maps])
    )
    assert abs(plain.pop("aupro_per_image") - cubed.pop("aupro_per_image")) > 0.01
    assert plain == cubed


def test_double_precision_is_not_rounded() -> None:
    """Scores that differ in the last bit only: in single precision they would tie."""
    maps = [np.array([[1.0, 1 + 2**-52]])]
    assert pixel_metrics(maps, [np.array([[0, 1]])]).values["pixel_auroc"] == 1
    mixed = [*maps, np.array([[1, 2]], np.float32)]
    assert pixel_metrics(mixed, [np.array([[0, 1]]), None]).values["pixel_auroc"] == pytest.approx(2 / 3)


# Worked by hand


def test_constant_maps() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:2, :5] = True  # one pixel in ten
    values = pixel_metrics([np.full((10, 10), 0.7)], [mask], (0.3, 1), per_image=True).values
    assert values == pytest.approx(
        {
            "pixel_auroc": 0.5,
            "pixel_ap": 0.1,
            "pixel_f1max": 0.2 / 1.1,
            "aupro": 0.15,
            "aupro_1": 0.5,
            "aupro_per_image": 0,
        }
    )


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    report = image_metrics([1, 0, 0, 1, 0], [3, 2, 2, 1, 0])  # F1 is 2/3 at 3, where one of one is right, and at 1
    assert report.values["image_f1max"] == pytest.approx(2 / 3)
    assert report.thresholds == {"image": 1.0}


def test_perfect_and_inverted_maps() -> None:
    mask = np.zeros((8, 9), np.uint8)
    mask[0, 0] = mask[4:6, 8] = 255  # a region of one pixel in a corner, one along the border
    good, bad = (pixel_metrics([scores], [mask], (0.3, 1), True).values for scores in (mask, 255 - mask))
    assert set(good.values()) == {1.0}
    assert {bad["pixel_auroc"], bad["aupro"], bad["aupro_1"], bad["aupro_per_image"]} == {0.0}
    assert bad["pixel_ap"] == pytest.approx(3 / 72)


def test_the_limit_is_met_by_a_straight_line_and_ties_make_a_ramp() -> None:
    """One defect pixel; five of ten normal pixels tie with it: PRO climbs from 0 to 1 while the rate goes to 0.5."""
    scores, mask = np.array([[1] * 6 + [0] * 5]), np.array([[1] + [0] * 10])
    values = pixel_metrics([scores], [mask], (0.3, 0.5, 1)).values
    assert values["aupro"] == pytest.approx(0.3)  # 0.3 squared / (2 x 0.5) / 0.3
    assert values["aupro_0.5"] == pytest.approx(0.5)
    assert values["aupro_1"] == pytest.approx(0.75)


def test_pixels_that_touch_at_a_corner_are_one_region_and_regions_weigh_the_same() -> None:
    scores, mask = np.zeros((5, 5)), np.zeros((5, 5), int)
    mask[0, 0] = mask[1, 1] = mask[4, 4] = 1
    scores[4, 4] = 1
    values = pixel_metrics([scores], [mask], (1,)).values
    assert values["aupro_1"] == pytest.approx(0.75)  # half at once, half on the ramp; 2/3 if the corners parted them


def test_defect_free_images_count_in_the_false_positive_rate() -> None:
    scores, mask = np.array([[2.0, 1, 0]]), np.array([[0, 1, 0]])
    alone = pixel_metrics([scores], [mask], (1,)).values["aupro_1"]
    joined = pixel_metrics([scores, np.zeros((1, 8))], [mask, None], (1,)).values["aupro_1"]
    assert (alone, joined) == (pytest.approx(0.5), pytest.approx(0.9))


def test_published_metric_where_the_published_code_divides_by_zero() -> None:
    mask = np.zeros((10, 10), int)
    mask[0, :4] = 1
    half = np.zeros((10, 10))
    half[0, :2] = 1  # half the region found, never a false alarm
    assert pixel_metrics([half], [mask], per_image=True).values["aupro_per_image"] == 0.5
    half[1:] = 1  # above every threshold: no rate stays under 0.3
    assert pixel_metrics([half], [mask], per_image=True).values["aupro_per_image"] == 0
    wide = np.where(mask, np.float32(3e38), np.float32(-3e38))
    assert pixel_metrics([wide], [mask], per_image=True).values["aupro_per_image"] == 1


def test_published_metric_keeps_rates_under_the_limit_only() -> None:
    """Ten normal pixels, 0 to 9: 3/10 is not kept, so 1/10 and 2/10 become 1/2 and 1; PRO is 1/5 up to the half.

    Between 1/2 and 1 it is 3/5: that is where the last threshold of 2/10 and the first of 1/10 meet.
    """
    scores = np.array([[*range(10), 9.5, 8.5, 8.5, 7.5, 6.5]])
    mask = np.array([[0] * 10 + [1] * 5])
    assert slow_published(scores, mask) == pytest.approx(0.4)
    assert pixel_metrics([scores], [mask], per_image=True).values["aupro_per_image"] == pytest.approx(0.4)


def test_infinite_scores_and_signed_zeros() -> None:
    scores = np.array([[-np.inf, -0.0, 0.0, 1.0, np.inf, np.inf]], np.float32)
    mask = np.array([[0, 0, 1, 0, 0, 1]])
    values = pixel_metrics([scores], [mask], (1,), per_image=True).values
    assert values["pixel_auroc"] == pytest.approx((1 + 0.5 + 3 + 0.5) / 8)
    assert values["pixel_ap"] == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert math.isfinite(values["aupro_per_image"])
    assert image_metrics([0, 1, 1], [0, -0.0, np.inf]).values["image_auroc"] == 0.75


@pytest.mark.parametrize("form", [bool, np.uint8, np.int64, np.float32])
def test_forms_of_masks(form: type) -> None:
    rng = np.random.default_rng(8)
    mask = rng.random((20, 20)) < 0.2
    maps = [rng.random((20, 20))]
    expected = pixel_metrics(maps, [mask]).values
    assert pixel_metrics(maps, [mask.astype(form)]).values == expected
    if form is not bool:
        assert pixel_metrics(maps, [mask.astype(form) * form(255)]).values == expected


# Undefined metrics, and errors


def test_every_metric_in_its_order() -> None:
    maps = np.zeros((2, 100, 100), int)
    maps[1, 0, 0] = 1
    report = compute_metrics([0, 1], [0.0, 1.0], maps, maps)
    assert tuple(report.values) == METRIC_NAMES
    assert set(report.values.values()) == {1.0}
    assert report.reasons == {}
    assert report.thresholds == {"image": 1.0, "pixel": 1.0}
    assert list(compute_metrics([0], [0], limits=(1, 0.05), per_image=False).values) == [
        *METRIC_NAMES[:7],
        "aupro_1",
        "aupro_0.05",
    ]


@pytest.mark.parametrize(
    ("masks", "why"),
    [
        (None, "no masks"),
        ([None, None], "no masks"),
        ([None, np.zeros((1, 2))], "no defect pixel in any mask"),
        ([np.ones((1, 2)), np.ones((1, 2))], "no normal pixel: the masks cover every image"),
        ([np.array([[0, 1]]), None], "image 1 is anomalous and has no mask"),
    ],
)
def test_undefined_pixel_metrics_say_why(masks: list | None, why: str) -> None:
    report = compute_metrics([0, 1], [0, 1], [np.array([[0.0, 1]])] * 2, masks)
    assert [name for name, value in report.values.items() if math.isnan(value)] == list(METRIC_NAMES[3:])
    assert report.reasons == dict.fromkeys(METRIC_NAMES[3:], why)
    assert report.thresholds == {"image": 1.0}


def test_undefined_image_metrics_say_why() -> None:
    for labels, why in (([1, 1], "no normal image"), ([0, 0], "no anomalous image"), ([], "no anomalous image")):
        report = compute_metrics(labels, labels)
        assert all(math.isnan(value) for value in report.values.values())
        assert {report.reasons[name] for name in METRIC_NAMES[:3]} == {f"{why} in the test set"}
        assert {report.reasons[name] for name in METRIC_NAMES[3:]} == {"no anomaly maps"}
        assert report.thresholds == {}


def test_a_vanished_mask_leaves_an_anomalous_image_whose_pixels_are_normal() -> None:
    maps = [np.array([[0.0, 3]]), np.array([[1.0, 2]])]
    report = compute_metrics([1, 0], [3, 2], maps, [np.zeros((1, 2)), None])
    assert report.values["image_auroc"] == 1
    assert report.reasons["aupro"] == "no defect pixel in any mask"
    masks = [np.zeros((1, 2)), np.array([[0, 1]])]
    assert compute_metrics([1, 1], [3, 2], maps, masks).values["pixel_auroc"] == pytest.approx(2 / 3)


def test_a_mask_over_a_whole_image_counts_except_per_image() -> None:
    maps = [np.array([[2.0, 3]]), np.array([[1.0, 2]])]
    report = pixel_metrics(maps, [np.ones((1, 2), bool), None], per_image=True)
    assert report.values["pixel_auroc"] == pytest.approx(3.5 / 4)
    assert report.values["aupro"] > 0
    assert report.reasons == {"aupro_per_image": "no image has both defect and normal pixels"}


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        ([np.zeros((2, 2)), np.array([[0, np.nan]])], None, "image 1: its map holds 1 NaN"),
        ([np.zeros((2, 2)), np.zeros((2, 0))], None, r"image 1: its map must be \(H, W\)"),
        ([np.zeros((2, 2)), np.zeros(4)], None, r"image 1: .*found \(4,\)"),
        ([np.array([["a"]])], None, "image 0: .*numbers"),
        ([np.zeros((2, 2))] * 2, [None, np.zeros((2, 3))], r"image 1: its mask is \(2, 3\), its map \(2, 2\)"),
        ([np.zeros((2, 2))], [np.array([[0, 2], [0, 0]])], r"image 0: a mask holds 0 and 1, or 0 and 255: found \[2\]"),
        ([np.zeros((2, 2))], [np.array([[0, 1], [255, 0]])], r"image 0: .*found \[  1 255\]"),
        ([np.zeros((2, 2))], [np.array([[0, 0.5], [0, 0]])], "image 0: a mask"),
        ([np.zeros((2, 2))], [np.array([[0, np.nan], [0, 1]])], "image 0: a mask"),
        ([np.zeros((2, 2))], [np.zeros((2, 2))] * 2, "1 maps but 2 masks"),
    ],
)
def test_bad_maps_and_masks_name_the_image(maps: list, masks: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_metrics(maps, masks)


def test_bad_labels_scores_and_limits() -> None:
    with pytest.raises(ValueError, match="image 1: its score is NaN"):
        image_metrics([0, 1], [0, np.nan])
    with pytest.raises(ValueError, match="image 2: label 2 is neither"):
        image_metrics([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="one length"):
        image_metrics([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="2 labels but 1 maps"):
        compute_metrics([0, 1], [0, 1], [np.zeros((2, 2))])
    for limit in (0, -0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="false positive rate above 0 and up to 1"):
            pixel_metrics([np.zeros((2, 2))], None, (limit,))
