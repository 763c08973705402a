"""Detection figures of one class: image and pixel AUROC, AP, F1-max, and AUPRO two ways. NumPy in, numbers out.

Every figure but `aupro_per_image` is exact: it depends on the order of the scores alone, equal scores enter together,
and no threshold is chosen. That one keeps the 200 thresholds of the code published with RD4AD, to compare with tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

FIGURES = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "aupro",
    "aupro_per_image",
)
LIMIT = 0.3  # largest false positive rate under `aupro`, and under the published figure
CHUNK = 1 << 15  # pixels counted at a time: the buffers stay in the processor's cache


@dataclass(frozen=True)
class Report:
    """Figures by name, fractions in [0, 1]; NaN where one is undefined, and then `reasons` has one line of why."""

    values: dict[str, float]
    reasons: dict[str, str]


def evaluate(labels, scores, maps=None, masks=None, limits=(LIMIT,), per_image=True) -> Report:
    """Every figure: `image_figures` of labels and scores, `pixel_figures` of maps and masks.

    A label says what the folder says: an anomalous image may have an empty mask. One without any mask (None) where others
    have theirs leaves the pixel figures undefined: its defect would count as normal. Raises ValueError on bad input.
    """
    image = image_figures(labels, scores)
    if maps is not None and len(maps) != len(labels):
        raise ValueError(f"{len(labels)} labels but {len(maps)} maps: one map per image, please")
    why = "no anomaly maps" if maps is None else ""
    if masks is not None and maps is not None and not all(mask is None for mask in masks):
        unmasked = [i for i, mask in enumerate(masks) if mask is None and i < len(labels) and labels[i]]
        why = f"image {unmasked[0]} is anomalous and has no mask" if unmasked else ""
    if why:
        pixel = _undefined(_pixel_names(limits, per_image), why)
    else:
        pixel = pixel_figures(maps, masks, limits, per_image)
    return Report(image.values | pixel.values, image.reasons | pixel.reasons)


def image_figures(labels, scores) -> Report:
    """Labels (n,) of 0/1 or bool and scores (n,), higher is more anomalous -> image_auroc, image_ap, image_f1max.

    Undefined where a class of labels is missing. Raises ValueError on a NaN score, another label, unequal lengths.
    """
    names = FIGURES[:3]
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must be two rows of one length: found {labels.shape} and {scores.shape}")
    for i in np.flatnonzero((labels != 0) & (labels != 1)):
        raise ValueError(f"image {i}: label {labels[i]} is neither 0 (normal) nor 1 (anomalous)")
    for i in np.flatnonzero(np.isnan(scores)):
        raise ValueError(f"image {i}: its score is NaN")
    anomalous, normal = scores[labels == 1], np.sort(scores[labels == 0])
    for kind, found in (("anomalous", anomalous), ("normal", normal)):
        if not len(found):
            return _undefined(names, f"no {kind} image in the test set")
    cuts, hits = np.unique(anomalous, return_counts=True)
    above = len(normal) - np.searchsorted(normal, cuts, "right")
    not_below = len(normal) - np.searchsorted(normal, cuts, "left")
    return Report(dict(zip(names, _ranking(hits, above, not_below, len(normal)), strict=True)), {})


def pixel_figures(maps, masks, limits=(LIMIT,), per_image=False) -> Report:
    """Maps and masks, each n arrays (H, W) of any sizes or one (n, H, W) -> pixel_auroc, pixel_ap, pixel_f1max, aupro.

    Maps: any real numbers, infinities too, compared in their own precision (integers and half floats are widened).
    Masks: bool, 0/1 or 0/255; None for an image without defect; no masks at all (None): every figure is undefined.

    `aupro` is the area under the per-region overlap (PRO) against the false positive rate, from 0 to 0.3, over 0.3.
    Regions are the 8-connected parts of a mask, all of the set weighted equally; the rate is over all pixels of the set
    outside masks. Other `limits` in (0, 1] give `aupro_0.05`, `aupro_1`. `per_image` adds `aupro_per_image`.

    Raises ValueError naming the image on a NaN, an empty map, unequal shapes or a mask of other values.
    Source: Bergmann et al., The MVTec Anomaly Detection Dataset (IJCV 2021), section 5.
    """
    names = _pixel_names(limits, per_image)
    maps = [_checked_map(i, scores) for i, scores in enumerate(maps)]
    if masks is None:
        return _undefined(names, "no masks")
    if len(masks) != len(maps):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks: one mask per image, None where it has no defect")
    if all(mask is None for mask in masks):
        return _undefined(names, "no masks")
    defects = [_find_defects(i, scores, mask) for i, (scores, mask) in enumerate(zip(maps, masks, strict=True))]
    n_defect = sum(len(d.scores) for d in defects if d)
    n_normal = sum(scores.size for scores in maps) - n_defect
    if not n_defect:
        return _undefined(names, "no defect pixel in any mask")
    if not n_normal:
        return _undefined(names, "no normal pixel: the masks cover every image")

    cuts, hits = np.unique(np.concatenate([d.scores for d in defects if d]), return_counts=True)
    counter = _Counter(cuts)
    above, equal = counter.count(maps)  # over all pixels; the defects' own are known and taken off
    above -= n_defect - np.cumsum(hits)
    not_below = above + equal - hits
    values = dict(zip(names, _ranking(hits, above, not_below, n_normal), strict=False))

    overlap, n_regions = np.zeros(len(cuts)), 0
    for found in filter(None, defects):
        np.add.at(overlap, counter.rank(found.scores), 1 / found.areas[found.regions])
        n_regions += len(found.areas)
    for limit in (LIMIT, *limits):
        values[_aupro_name(limit)] = _area_under_pro(overlap / n_regions, above / n_normal, not_below / n_normal, limit)
    reasons = {}
    if per_image:
        areas = [_published_aupro(m, d) for m, d in zip(maps, defects, strict=True) if d and len(d.scores) < m.size]
        values["aupro_per_image"] = float(np.mean(areas)) if areas else math.nan
        if not areas:
            reasons["aupro_per_image"] = "no image has both defect and normal pixels"
    return Report(values, reasons)


def _aupro_name(limit: float) -> str:
    return "aupro" if limit == LIMIT else f"aupro_{limit:g}"


def _pixel_names(limits: Iterable[float], per_image: bool) -> list[str]:
    for limit in limits:
        if not 0 < limit <= 1:
            raise ValueError(f"limit {limit:g}: a false positive rate must lie in (0, 1]")
    aupros = dict.fromkeys(_aupro_name(limit) for limit in (LIMIT, *limits))
    return [*FIGURES[3:6], *aupros, *(["aupro_per_image"] if per_image else [])]


def _undefined(names: Iterable[str], why: str) -> Report:
    names = list(names)
    return Report(dict.fromkeys(names, math.nan), dict.fromkeys(names, why))


def _ranking(hits, above, not_below, n_negative) -> tuple[float, float, float]:
    """Positives at each distinct positive score, ascending, and negatives above it and not below -> AUROC, AP, F1-max.

    Nothing else is needed: a threshold between two positive scores only adds false alarms to the upper one.
    """
    n_positive = hits.sum()
    found = np.cumsum(hits[::-1])[::-1]  # positives at or above each score
    auroc = 1 - np.dot(hits, (above + not_below) / 2) / n_positive / n_negative
    ap = np.dot(hits, found / (found + not_below)) / n_positive
    f1max = np.max(2 * found / (found + not_below + n_positive))
    return float(auroc), float(ap), float(f1max)


def _area_under_pro(steps, lower, upper, limit) -> float:
    """The PRO curve is a sum of ramps: each score lifts it by its step while the rate grows from lower to upper."""
    area = np.where(upper <= limit, limit - (lower + upper) / 2, 0)
    cut = (lower < limit) & (limit < upper)
    area[cut] = (limit - lower[cut]) ** 2 / (2 * (upper[cut] - lower[cut]))
    return float(np.dot(steps, area) / limit)


def _checked_map(i: int, scores) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"image {i}: its map must be (H, W) and not empty: found {scores.shape}")
    wide = np.float32 if np.can_cast(scores.dtype, np.float32) else np.float64
    scores = scores.astype(wide, copy=False)
    if np.isnan(scores.min()):
        raise ValueError(f"image {i}: its map has {np.isnan(scores).sum()} NaN")
    return scores


@dataclass(frozen=True)
class _Defects:
    """The defect pixels of one image: their scores (p,) and region numbers (p,), and each region's area in pixels."""

    scores: np.ndarray
    regions: np.ndarray
    areas: np.ndarray


def _find_defects(i: int, scores: np.ndarray, mask) -> _Defects | None:
    """None where the image has none. Labels inside the box around them only: defects are small."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != scores.shape:
        raise ValueError(f"image {i}: its mask is {mask.shape} but its map {scores.shape}")
    defect = mask != 0
    x, y, width, height = cv2.boundingRect(defect.view(np.uint8))
    if not width:
        return None
    box = (slice(y, y + height), slice(x, x + width))
    defect = defect[box]
    found = mask[box][defect]
    if found[0] not in (1, 255) or (found != found[0]).any():
        raise ValueError(f"image {i}: a mask holds 0 and 1, or 0 and 255: found {np.unique(found)[:5]}")
    _, labels = cv2.connectedComponents(defect.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    regions = labels[defect] - 1
    return _Defects(scores[box][defect], regions, np.bincount(regions))


def _published_aupro(scores: np.ndarray, defects: _Defects, steps: int = 200) -> float:
    """AUPRO of one image as the code published with RD4AD computes it, by counting instead of 200 passes.

    Thresholds climb from the map's minimum by 1/200 of its range; a pixel counts as found strictly above. Of the points
    with a false positive rate under 0.3 the rates are divided by their largest, and the trapezoids summed; there is no
    point (0, 0). Where that code divides by zero: every kept rate is 0 -> the largest PRO kept; no point is kept -> 0.
    Infinite scores: the range is that of the finite ones.
    """
    finite = scores[np.isfinite(scores)] if np.isinf([scores.min(), scores.max()]).any() else scores
    low, high = (finite.min(), finite.max()) if finite.size else (scores.dtype.type(0),) * 2
    with np.errstate(over="ignore"):
        step = (high - low) / steps
    if 0 < step < np.inf:
        thresholds = np.arange(low, high, step)
    else:  # a constant map, or a range beyond the type's
        thresholds = low * (1 - np.arange(steps) / steps) + high * (np.arange(steps) / steps)
    cuts, which = np.unique(thresholds, return_inverse=True)
    found = _Counter(cuts).count([scores])[0][which]

    n_regions = len(defects.areas)
    passed = np.searchsorted(thresholds, defects.scores)  # thresholds below each defect pixel
    slots = len(thresholds) + 1
    table = np.bincount(defects.regions * slots + passed, minlength=n_regions * slots).reshape(n_regions, slots)
    hits = table[:, :0:-1].cumsum(axis=1)[:, ::-1]
    pro = (hits / defects.areas[:, None]).mean(axis=0)
    rate = (found - hits.sum(axis=0)) / (scores.size - len(defects.scores))
    kept = rate < LIMIT
    pro, rate = pro[kept], rate[kept]
    if not rate.any():
        return float(pro.max(initial=0))
    rate = rate / rate.max()
    return float(np.sum((rate[:-1] - rate[1:]) * (pro[:-1] + pro[1:]) / 2))


class _Counter:
    """Counts, for each of some sorted distinct scores (the cuts), how many of a stream of scores exceed or equal it.

    Sorting the stream, or searching each score among the cuts, would cost several times more. Scores are laid into bins,
    a few per cut, by a rising function, so that nearly every bin holds one cut or none, and comparing with that one
    settles a score. Only scores in a bin of several cuts are searched for. The function is linear, or where that crowds
    the `sample` of the stream (products of distances do) a root of the score.
    """

    def __init__(self, cuts: np.ndarray, sample: np.ndarray, bins_per_cut: int = 3) -> None:
        self.cuts = cuts
        self.n_bins = min(max(bins_per_cut * len(cuts), 1 << 12), 1 << 24)
        self.padded = np.append(cuts, cuts.dtype.type(np.inf))
        crowding = []
        for self.roots in range(4):
            self._lay_bins()
            crowding.append(np.isnan(self.only[self.bins(sample)]).mean())
            if crowding[-1] < 0.1:
                return
        self.roots = int(np.argmin(crowding))
        self._lay_bins()

    def _lay_bins(self) -> None:
        """Bins from the first cut to the one above 999 of 1,000: a few outliers must not squeeze the others."""
        finite = self.cuts[np.isfinite(self.cuts)][[0, -1]]
        number = self.cuts.dtype.type
        finite = self.cuts[np.isfinite(self.cuts)]
        low, high = (finite[0], finite[int(0.999 * (len(finite) - 1))]) if len(finite) else (number(0), number(1))
        with np.errstate(over="ignore"):
            self.low, self.span = low, min(high - low, np.finfo(number).max)
        width = float(self.span) ** (0.5**self.roots)
        self.scale = number(min(self.n_bins / width if width else 1, np.finfo(number).max))
        self.bin_of_cut = self.bins(self.cuts)
        held = np.bincount(self.bin_of_cut, minlength=self.n_bins)
        self.first = np.zeros(self.n_bins + 1, np.int32)  # how many cuts lie in lower bins
        np.cumsum(held, out=self.first[1:])
        self.only = np.full(self.n_bins + 2, np.inf, number)  # a bin's cut; NaN where it has several
        self.only[self.bin_of_cut] = self.cuts
        self.only[:-2][held > 1] = np.nan

    def bins(self, scores: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Scores (n,) -> bins (n,) as int32; a higher score never lies in a lower bin."""
        with np.errstate(over="ignore"):
            places = np.subtract(scores, self.low, out=places)
        np.clip(places, 0, self.span, out=places)
        for _ in range(self.roots):
            np.sqrt(places, out=places)
        np.multiply(places, self.scale, out=places)
        np.minimum(places, self.n_bins-1, out=places)
        return places.astype(np.int32)

    def rank(self, scores: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """Scores (n,) and their bins -> how many cuts lie below each."""
        rank, end = self.first[bins], self.first[bins + 1]
        crowded = np.flatnonzero(end - rank > 8)
        rank[crowded] = np.searchsorted(self.cuts, scores[crowded])
        lower = np.flatnonzero(self.padded[rank] < scores)
        while len(lower):
            rank[lower] += 1
            lower = lower[self.padded[rank[lower]] < scores[lower]]
        return rank

    def count(self, stream, CH=CHUNK) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of scores (n,) and sorted positions to leave out -> counts above and equal to each cut, (cuts,) each."""
        dump = self.n_bins + 1
        tally = np.zeros(dump + 2, np.int32)
        ties = np.zeros(dump + 1, np.int32)
        one = np.int32(1)
        gaps, ties_in_crowd = np.zeros(len(self.cuts) + 1, np.int64), np.zeros(len(self.cuts) + 1, np.int64)
        places_, only_ = np.empty((2, CH), self.cuts.dtype)
        slots_ = np.empty(CH, np.intp)
        above_ = np.empty(CH, bool)
        crowd = []
        waiting = 0

        def settle():
            scores, bins = map(np.concatenate, zip(*crowd, strict=True))
            rank = self.rank(scores, bins)
            np.add.at(gaps, rank, 1)
            np.add.at(ties_in_crowd, rank[self.padded[rank] == scores], 1)
            crowd.clear()

        for scores, left_out in stream:
            for start in range(0, len(scores), CH):
                v = scores[start : start + CH]
                n = len(v)
                slots, only, above = slots_[:n], only_[:n], above_[:n]
                slots[...] = self.bins(v, places_[:n])
                if left_out is not None:
                    i,k=np.searchsorted(left_out, (start, start+n))
                    slots[left_out[i:k]-start] = dump
                self.only.take(slots, out=only, mode="clip")
                np.greater(v, only, out=above)
                several = np.flatnonzero(np.isnan(only))
                equal = np.flatnonzero(np.equal(v, only))
                if len(equal):
                    np.add.at(ties, slots[equal], one)
                if len(several):
                    crowd.append((v[several], slots[several]))
                    waiting += len(several)
                    slots[several] = dump
                    if waiting > 1<<15:
                        self.special+=waiting
                        settle()
                        waiting = 0
                np.add(slots, above, out=slots)
                np.add.at(tally, slots, one)
        if crowd:
            settle()
        below = np.cumsum(tally[:dump], dtype=np.int64)
        total = below[-1]
        b = self.bin_of_cut
        return total - below[b] + gaps.sum() - np.cumsum(gaps)[:-1], ties[b] + ties_in_crowd[:-1]
    special=0
