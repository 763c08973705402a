"""Detection metrics of one class: image and pixel AUROC, AP and F1-max, and AUPRO two ways. Pure NumPy, one thread.

All but `aupro_per_image` are exact: no grid of thresholds, equal scores enter together, so only the order of the scores
matters. That one keeps the 200 thresholds of the code published with RD4AD, to compare with tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike

from scoring.counting import ScoreCounter

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
SAMPLE_METRICS = ("sample_auroc",)  # where several images show one object
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
METRIC_NAMES = (*IMAGE_METRICS, *PIXEL_METRICS, "aupro_per_image")
LIMIT = 0.3  # the largest false positive rate under `aupro`, and in the published metric


@dataclass(frozen=True)
class Report:
    """Metrics by name, fractions in [0, 1]; NaN where one is undefined, and then `reasons` says why in one line.

    `thresholds` holds the score at which F1-max is reached, of "image" and of "pixel", where that is defined: what
    scores as high or higher is called anomalous. It is a score that occurs, to the bit; of several, the lowest.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    thresholds: dict[str, float] = field(default_factory=dict)

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
    limits: Sequence[float] = (LIMIT,),
    per_image: bool = True,
) -> Report:
    """Every metric: `image_metrics` of labels and scores (n,), `pixel_metrics` of n maps and masks.

    A label says what the image's folder says: an anomalous image may well have an empty mask. Where one has no mask at
    all (None) and others do, the pixel metrics are undefined: its defects would count as normal. Raises as these do.
    """
    if maps is None:
        pixel = _undefined(_pixel_names(limits, per_image), "no anomaly maps")
    else:
        pixel = pixel_metrics(maps, masks, limits, per_image)
    image = image_metrics(labels, scores)
    if maps is not None and len(maps) != np.size(labels):
        raise ValueError(f"{np.size(labels)} labels but {len(maps)} maps: give one map per image")
    masked = [mask is not None for mask in masks] if maps is not None and masks is not None else []
    unmasked = [i for i, found in enumerate(masked) if not found and np.asarray(labels)[i]]
    if any(masked) and unmasked:
        pixel = _undefined(pixel.values, f"image {unmasked[0]} is anomalous and has no mask")
    thresholds = image.thresholds | pixel.thresholds
    return Report(image.values | pixel.values, image.reasons | pixel.reasons, thresholds)


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
    names = _pixel_names(limits, per_image)
    counted = count_pixels(maps, masks)
    if isinstance(counted, str):
        return _undefined(names, counted)
    lower, upper = counted.above / counted.n_normal, (counted.above + counted.equal) / counted.n_normal
    metrics, best = _ranking(counted.hits, counted.above, counted.above + counted.equal, counted.n_normal)
    values = dict(zip(PIXEL_METRICS[:3], metrics, strict=True))
    for limit in (LIMIT, *limits):
        values[_aupro_name(limit)] = _area_under_pro(counted.overlap, lower, upper, limit)
    pairs = counted.pairs
    areas = [_published_aupro(*pair) for pair in pairs if pair[1].places.size < pair[0].size] if per_image else []
    if areas:
        values["aupro_per_image"] = float(np.mean(areas))
    rest = _undefined([name for name in names if name not in values], "no image has both defect and normal pixels")
    return Report(values | rest.values, rest.reasons, {"pixel": float(counted.cuts[best])})


@dataclass(frozen=True)
class PixelCounts:
    """What pixel metrics and curves are made of, at each distinct score of a defect pixel, rising: the `cuts` (c,).

    hits      (c,) defect pixels of this score
    overlap   (c,) what PRO gains at it; the sum is 1
    above     (c,) normal pixels above it
    equal     (c,) normal pixels of this score
    n_normal  all normal pixels
    pairs     of each image with defects the flattened map and its defects
    """

    cuts: np.ndarray
    hits: np.ndarray
    overlap: np.ndarray
    above: np.ndarray
    equal: np.ndarray
    n_normal: int
    pairs: list[tuple[np.ndarray, Defects]]


def count_pixels(
    maps: Sequence[ArrayLike] | np.ndarray, masks: Sequence[ArrayLike | None] | np.ndarray | None
) -> PixelCounts | str:
    """Maps and masks as in `pixel_metrics` -> their counts, or in words why there are none. Raises as it does."""
    checked = [checked_map(i, scores) for i, scores in enumerate(maps)]
    if masks is None or all(mask is None for mask in masks):
        return "no masks"
    if len(masks) != len(checked):
        raise ValueError(
            f"{len(checked)} maps but {len(masks)} masks: give one per image, None where it has no defects"
        )
    defects = [find_defects(i, scores.shape, mask) for i, (scores, mask) in enumerate(zip(checked, masks, strict=True))]
    flat = [scores.reshape(-1) for scores in checked]
    pairs = [(scores, found) for scores, found in zip(flat, defects, strict=True) if found]
    if not pairs:
        return "no defect pixel in any mask"
    anomalous = np.concatenate([scores[found.places] for scores, found in pairs])
    n_normal = sum(scores.size for scores in flat) - anomalous.size
    if not n_normal:
        return "no normal pixel: the masks cover every image"

    n_regions = sum(len(found.areas) for _, found in pairs)
    shares = np.concatenate([(1 / (found.areas * n_regions))[found.regions] for _, found in pairs])
    order = np.argsort(anomalous)
    anomalous = anomalous[order]
    starts = np.flatnonzero(np.append(True, anomalous[1:] != anomalous[:-1]))  # of each distinct score
    cuts, hits = anomalous[starts], np.diff(starts, append=anomalous.size)
    overlap = np.add.reduceat(shares[order], starts)
    above, equal = ScoreCounter(cuts, flat).count(flat, [found.places if found else None for found in defects])
    return PixelCounts(cuts, hits, overlap, above, equal, n_normal, pairs)


def _pixel_names(limits: Iterable[float], per_image: bool) -> list[str]:
    for limit in limits:
        if not 0 < limit <= 1:
            raise ValueError(f"limit {limit:g}: a false positive rate above 0 and up to 1 is wanted")
    return list(dict.fromkeys([*PIXEL_METRICS, *map(_aupro_name, limits), *METRIC_NAMES[-1:] * per_image]))


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


def checked_map(i: int, scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size or scores.dtype.kind not in "biuf":
        raise ValueError(
            f"image {i}: its map must be (H, W) numbers and not empty: found {scores.shape} {scores.dtype}"
        )
    scores = scores.astype(np.float32 if np.can_cast(scores.dtype, np.float32) else np.float64, copy=False)
    if np.isnan(scores.min()):
        raise ValueError(f"image {i}: its map holds {np.isnan(scores).sum()} NaN")
    return scores


@dataclass(frozen=True)
class Defects:
    """Of one image: the defect pixels' places in the flattened map (p,), rising, their regions (p,), the areas (r,)."""

    places: np.ndarray
    regions: np.ndarray
    areas: np.ndarray


def find_defects(i: int, shape: tuple[int, ...], mask: ArrayLike | None) -> Defects | None:
    """None where there are none. Looks only inside the box around the defects, most often a small part of the image."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(f"image {i}: its mask is {mask.shape}, its map {shape}")
    defect = mask != 0
    x, y, width, height = cv2.boundingRect(defect.view(np.uint8))
    if not width:
        return None
    box = (slice(y, y + height), slice(x, x + width))
    defect = np.ascontiguousarray(defect[box]).view(np.uint8)
    inside = np.flatnonzero(defect)
    values = mask[box].reshape(-1)[inside]
    if values[0] not in (1, 255) or (values != values[0]).any():
        raise ValueError(f"image {i}: a mask holds 0 and 1, or 0 and 255: found {np.unique(values)[:3]}")
    regions = cv2.connectedComponents(defect, connectivity=8, ltype=cv2.CV_32S)[1].reshape(-1)[inside] - 1
    rows, columns = np.divmod(inside, width)
    return Defects((rows + y) * shape[1] + columns + x, regions, np.bincount(regions))


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
