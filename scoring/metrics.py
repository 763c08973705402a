"""Detection metrics of one class: image and pixel AUROC, AP and F1-max, AUPRO two ways, AUPIMO. NumPy, one thread.

All but `aupro_per_image` are exact: no grid of thresholds, equal scores enter together, so only the order of the scores
matters. That one keeps the 200 thresholds of the code published with RD4AD, to compare with tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from scoring.aupimo import NormalTail
from scoring.counting import ScoreCounter
from scoring.pixels import Defects, PixelCounts, count_pixels, count_subsets

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
SAMPLE_METRICS = ("sample_auroc",)  # where several images show one object
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
AUPIMO = "aupimo"
METRIC_NAMES = (*IMAGE_METRICS, *PIXEL_METRICS, "aupro_0.05", AUPIMO, "aupro_per_image")
LIMIT = 0.3  # the largest false positive rate under `aupro`, and in the published metric
RECORDED_LIMITS = (LIMIT, 0.05)  # of what a run records


@dataclass(frozen=True)
class Report:
    """Metrics by name, fractions in [0, 1]; NaN where one is undefined, and then `reasons` says why in one line.

    `thresholds` holds the score at which F1-max is reached, of "image" and of "pixel", where that is defined: what
    scores as high or higher is called anomalous. It is a score that occurs, to the bit; of several, the lowest.
    `images` holds the metrics (n,) of single images by name, NaN where an image has none: aupimo, where it is defined.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    thresholds: dict[str, float] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)

    def __or__(self, other: Report) -> Report:
        """The metrics of both."""
        return Report(self.values | other.values, self.reasons | other.reasons, {**self.thresholds, **other.thresholds})

    def defined(self) -> dict[str, float | None]:
        """The metrics as JSON takes them: None where one is undefined."""
        return {name: None if math.isnan(value) else float(value) for name, value in self.values.items()}


def compute_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | np.ndarray | None = None,
    masks: Sequence[ArrayLike | None] | np.ndarray | None = None,
    limits: Sequence[float] = RECORDED_LIMITS,
    per_image: bool = True,
) -> Report:
    """Every metric: `image_metrics` of labels and scores (n,), `pixel_metrics` of n maps and masks.

    `per_image` adds the metrics that are means over images, aupimo and aupro_per_image. For AUPIMO an image is normal
    by its label, with all its pixels.

    A label says what the image's folder says: an anomalous image may well have an empty mask. Where one has no mask at
    all (None) and others do, the pixel metrics are undefined: its defects would count as normal. Raises as these do.
    """
    return compute_subsets(labels, scores, maps, masks, (), limits, per_image)[0]


def compute_subsets(
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | np.ndarray | None,
    masks: Sequence[ArrayLike | None] | np.ndarray | None,
    subsets: Sequence[np.ndarray],
    limits: Sequence[float] = RECORDED_LIMITS,
    per_image: bool = True,
) -> list[Report]:
    """`compute_metrics` of all n images, and then of each subset of them, given as (n,) bool.

    The pixels are counted once, whatever the number of subsets. Raises as `compute_metrics`.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    chosen = [np.ones(labels.shape, bool), *(np.asarray(subset, bool) for subset in subsets)]
    names = _pixel_names(limits, per_image, AUPIMO)
    if maps is None:
        pixels = [_undefined(names, "no anomaly maps")] * len(chosen)
    else:
        counted = count_subsets(maps, masks, subsets)
        if len(maps) != labels.size:
            raise ValueError(f"{labels.size} labels but {len(maps)} maps: give one map per image")
        areas = _published_areas(counted[0]) if per_image else {}
        pixels = [_pixel_report(found, names, limits, areas) for found in counted]
        if per_image:
            pixels = _with_aupimo(pixels, counted, labels == 1, chosen, maps)
    given = np.zeros(labels.shape, np.bool_)
    if maps is not None and masks is not None:
        given[:] = [mask is not None for mask in masks]
    reports = []
    for own, pixel in zip(chosen, pixels, strict=True):
        image = image_metrics(labels[own], scores[own])
        masked = own & given
        if masked.any() and (unmasked := np.flatnonzero(own & ~given & (labels == 1))).size:
            pixel = _undefined(pixel.values, f"image {unmasked[0]} is anomalous and has no mask")
        thresholds = image.thresholds | pixel.thresholds
        reports.append(Report(image.values | pixel.values, image.reasons | pixel.reasons, thresholds, pixel.images))
    return reports


def mean_over_classes(reports: Sequence[Report]) -> Report:
    """Each metric's mean over the classes that have it; undefined where none has, with the reasons of all classes.

    It has no thresholds: those of one class say nothing of another.
    """
    values, reasons = {}, {}
    for name in dict.fromkeys(name for report in reports for name in report.values):
        found = [value for report in reports if not math.isnan(value := report.values.get(name, math.nan))]
        values[name] = math.fsum(found) / len(found) if found else math.nan
        if not found:
            reasons[name] = "; ".join(dict.fromkeys(r.reasons[name] for r in reports if name in r.reasons))
    return Report(values, reasons)


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> Report:
    """Labels (n,) of 0/1 or bool and scores (n,), higher is more anomalous -> image_auroc, image_ap, image_f1max.

    Undefined where the set lacks normal or anomalous images. Raises ValueError on unequal lengths, and naming the image
    on a NaN score or another label.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must be two rows of one length: found {labels.shape} and {scores.shape}")
    for i in np.flatnonzero((labels != 0) & (labels != 1)):
        raise ValueError(f"image {i}: label {labels[i]} is neither 0 (normal) nor 1 (anomalous)")
    for i in np.flatnonzero(np.isnan(scores)):
        raise ValueError(f"image {i}: its score is NaN")
    anomalous, normal = scores[labels == 1], np.sort(scores[labels == 0])
    for kind, found in (("anomalous", anomalous), ("normal", normal)):
        if not found.size:
            return _undefined(IMAGE_METRICS, f"no {kind} image in the test set")
    cuts, hits = np.unique(anomalous, return_counts=True)
    above, at_least = (len(normal) - np.searchsorted(normal, cuts, side) for side in ("right", "left"))
    metrics, best = _ranking(hits, above, at_least, len(normal))
    return Report(dict(zip(IMAGE_METRICS, metrics, strict=True)), {}, {"image": float(cuts[best])})


def sample_metrics(labels: ArrayLike, scores: ArrayLike, units: Sequence[str]) -> Report:
    """Labels and scores (n,) of images, and the unit that each shows -> sample_auroc, the image AUROC of the units.

    A unit's score is the largest of its images', and it is anomalous if any of them is: the sample score of Real-IAD,
    whose objects are seen by five cameras. Undefined and raises as `image_metrics`.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores)
    names, places = np.unique(np.asarray(units, object).astype(str), return_inverse=True)
    if not len(labels) == len(scores) == len(places):
        raise ValueError(f"{len(labels)} labels, {len(scores)} scores and {len(places)} units: give one per image")
    anomalous, highest = np.zeros(len(names), bool), np.full(len(names), -np.inf, scores.dtype)
    np.logical_or.at(anomalous, places, labels)
    np.maximum.at(highest, places, scores)
    report = image_metrics(anomalous, highest)
    reasons = {name: why.replace("image", "sample") for name, why in report.reasons.items()}
    (name,), (source, *_) = SAMPLE_METRICS, IMAGE_METRICS
    return Report({name: report.values[source]}, {name: reasons[source]} if source in reasons else {})


def pixel_metrics(
    maps: Sequence[ArrayLike] | np.ndarray,
    masks: Sequence[ArrayLike | None] | np.ndarray | None,
    limits: Sequence[float] = (LIMIT,),
    per_image: bool = False,
) -> Report:
    """Maps and masks, n of (H, W) of any sizes or one array (n, H, W) -> pixel_auroc, pixel_ap, pixel_f1max, aupro.

    Maps: any real numbers but NaN, infinities too; float32 and float64 are compared as they are, others widened.
    Masks: bool, 0/1 or 0/255; None for an image without defects; None for all: the benchmark has none, nothing defined.

    aupro is the area under the per-region overlap (PRO) against the false positive rate, from 0 to 0.3, over 0.3.
    Regions are the 8-connected parts of a mask, all of the set weighted equally; the rate is over all pixels of the set
    outside masks, those of normal images too. Other `limits` in (0, 1] give aupro_0.05, aupro_1 and so on beside it.
    `per_image` adds aupro_per_image.

    Raises ValueError naming the image: NaN, an empty map, a mask of another shape or with other values.
    Source: Bergmann et al., The MVTec Anomaly Detection Dataset (IJCV 2021).
    """
    counted = count_pixels(maps, masks)
    areas = _published_areas(counted) if per_image else {}
    return _pixel_report(counted, _pixel_names(limits, per_image), limits, areas)


def _pixel_report(
    counted: PixelCounts | str, names: Sequence[str], limits: Sequence[float], areas: Mapping[int, float]
) -> Report:
    """The pixel metrics of these names; `areas` are the published AUPRO of each image that has one."""
    if isinstance(counted, str):
        return _undefined(names, counted)
    lower, upper = counted.above / counted.n_normal, (counted.above + counted.equal) / counted.n_normal
    metrics, best = _ranking(counted.hits, counted.above, counted.above + counted.equal, counted.n_normal)
    values = dict(zip(PIXEL_METRICS[:3], metrics, strict=True))
    for limit in (LIMIT, *limits):
        values[_aupro_name(limit)] = _area_under_pro(counted.overlap, lower, upper, limit)
    own = [areas[i] for i in counted.images.tolist() if i in areas]
    if own:
        values["aupro_per_image"] = float(np.mean(own))
    rest = _undefined([name for name in names if name not in values], "no image has both defect and normal pixels")
    values = {name: (values | rest.values)[name] for name in names}
    return Report(values, rest.reasons, {"pixel": float(counted.cuts[best])})


def _published_areas(counted: PixelCounts | str) -> dict[int, float]:
    """{image: its AUPRO as published} of those that have both defect and normal pixels."""
    if isinstance(counted, str):
        return {}
    pairs = zip(counted.images.tolist(), counted.pairs, strict=True)
    return {i: _published_aupro(*pair) for i, pair in pairs if pair[1].places.size < pair[0].size}


def _with_aupimo(
    pixels: Sequence[Report],
    counted: Sequence[PixelCounts | str],
    anomalous: np.ndarray,
    subsets: Sequence[np.ndarray],
    maps: Sequence[ArrayLike] | np.ndarray,
) -> list[Report]:
    """The reports with AUPIMO, each from the normal images of its subset; anomalous (n,), subsets (n,) each."""
    tails: dict[bytes, NormalTail] = {}  # kinds of defects have the same normal images
    reports = []
    for report, found, own in zip(pixels, counted, subsets, strict=True):
        if isinstance(found, str):
            reports.append(report)
            continue
        normal = own & ~anomalous
        key = normal.tobytes()
        if key not in tails:
            tails[key] = NormalTail([np.asarray(maps[i]).reshape(-1) for i in np.flatnonzero(normal).tolist()])
        pairs = zip(found.images.tolist(), found.pairs, strict=True)
        with_defects = {i: scores[defects.places] for i, (scores, defects) in pairs if anomalous[i]}
        why = tails[key].undefined or ("" if with_defects else "no defect pixel in the mask of an anomalous image")
        if why:
            reports.append(replace(report, reasons=report.reasons | {AUPIMO: why}))
            continue
        each = np.full(anomalous.shape, math.nan)
        for i, scores in with_defects.items():
            each[i] = tails[key].aupimo(scores)
        values = report.values | {AUPIMO: float(np.nanmean(each))}
        reasons = {name: why for name, why in report.reasons.items() if name != AUPIMO}
        reports.append(replace(report, values=values, reasons=reasons, images={AUPIMO: each}))
    return reports


def _pixel_names(limits: Iterable[float], per_image: bool, *labeled: str) -> list[str]:
    """The names in their order; `labeled` are those that need labels."""
    for limit in limits:
        if not 0 < limit <= 1:
            raise ValueError(f"limit {limit:g}: a false positive rate above 0 and up to 1 is wanted")
    means = (*labeled, "aupro_per_image") if per_image else ()
    return list(dict.fromkeys([*PIXEL_METRICS, *map(_aupro_name, limits), *means]))


def _aupro_name(limit: float) -> str:
    return "aupro" if limit == LIMIT else f"aupro_{limit:g}"


def _undefined(names: Iterable[str], why: str) -> Report:
    return Report(dict.fromkeys(names, math.nan), dict.fromkeys(names, why))


def _ranking(
    hits: np.ndarray, above: np.ndarray, at_least: np.ndarray, n_normal: int
) -> tuple[tuple[float, float, float], int]:
    """Anomalous ones at each distinct anomalous score, rising, normal ones above it, and not below -> metrics, place.

    The metrics are AUROC, AP and F1max; the place is that of the lowest score at which F1max is reached. Thresholds
    between these scores need no look: they find nothing more than the score above, at more false alarms.
    """
    found = np.cumsum(hits[::-1])[::-1]
    auroc = 1 - np.dot(hits, (above + at_least) / 2) / hits.sum() / n_normal
    ap = np.dot(hits, found / (found + at_least)) / hits.sum()
    f1 = 2 * found / (found + at_least + hits.sum())
    best = int(np.argmax(f1))
    return (float(auroc), float(ap), float(f1[best])), best


def _area_under_pro(overlap: np.ndarray, lower: np.ndarray, upper: np.ndarray, limit: float) -> float:
    """PRO is a sum of ramps: each score lifts it by its overlap while the false positive rate goes from lower to upper.

    So this is the trapezoid rule from (0, 0), equal scores merged, cut by a straight line at the limit.
    """
    area = np.where(upper <= limit, limit - (lower + upper) / 2, 0)
    cut = (lower < limit) & (limit < upper)
    area[cut] = (limit - lower[cut]) ** 2 / (2 * (upper[cut] - lower[cut]))
    return min(float(np.dot(overlap, area) / limit), 1.0)


def _published_aupro(scores: np.ndarray, defects: Defects) -> float:
    """AUPRO of one image (its map flattened) as the code published with RD4AD defines it, but by counting.

    Thresholds climb from the map's minimum by 1/200 of its range; what lies strictly above is found. Of the points with
    a false positive rate under 0.3, the rates are divided by their largest and the trapezoids summed, without (0, 0).
    Where that code fails: if all kept rates are 0, the largest PRO kept; if no point is kept or the map is constant, 0;
    infinite scores: the range is that of the finite ones.
    """
    finite = scores if np.isfinite([scores.min(), scores.max()]).all() else scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if finite.size else (scores.dtype.type(0),) * 2
    with np.errstate(over="ignore"):
        step = (high - low) / 200
    fractions = np.arange(200) / 200  # for a constant map, or a range too wide for the type
    thresholds = np.arange(low, high, step) if 0 < step < np.inf else low * (1 - fractions) + high * fractions
    cuts = thresholds.astype(scores.dtype)  # rounded down, so that the same scores exceed them
    np.nextafter(cuts, -np.inf, out=cuts, where=cuts > thresholds)
    passed = np.searchsorted(cuts, scores[defects.places])  # how many thresholds lie below each defect pixel
    n_regions, n_steps = len(defects.areas), len(cuts) + 1
    hits = np.bincount(defects.regions * n_steps + passed, minlength=n_regions * n_steps).reshape(n_regions, n_steps)
    pro = (hits[:, :0:-1].cumsum(axis=1)[:, ::-1] / defects.areas[:, None]).mean(axis=0)

    cuts, which = np.unique(cuts, return_inverse=True)
    above, _ = ScoreCounter(cuts, [scores]).count([scores], [defects.places])
    rates = above[which] / (scores.size - defects.places.size)
    pro, rates = pro[rates < LIMIT], rates[rates < LIMIT]
    if not rates.any():
        return float(pro.max(initial=0))
    return float(np.dot(rates[:-1] - rates[1:], pro[:-1] + pro[1:]) / 2 / rates.max())
