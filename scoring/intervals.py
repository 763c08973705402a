"""Confidence intervals of one class's metrics, and of their differences: a bootstrap over its test images. Pure NumPy.

The unit that is drawn is an image with all its pixels: the pixels of one image resemble each other, so to draw pixels
would promise too much. Normal and anomalous images are drawn apart, each as often as there are, so AUROC stays defined.
The intervals are BCa (bias-corrected and accelerated; Efron, Better bootstrap confidence intervals, JASA 1987), since
metrics near 1 are skewed and F1-max, a maximum, is biased.

Image metrics are exact. For pixel metrics every image is reduced once to counts between the thresholds of a grid; a
replicate is then a sum of these counts, weighted by how often each image was drawn: a matrix product, no map is read
again. The grid has some thousand scores of defect pixels and of all pixels, evenly spread by rank and by the weight of
regions, and denser among the highest; scores that are equal stay apart from the others. Between two thresholds a curve
is taken as straight. On the grid a metric differs from the exact one by less than 1e-4 (F1-max by up to 5e-4 where
there are few pixels), as the tests have it; an interval is a hundred times as wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from scoring.metrics import IMAGE_METRICS, LIMIT, PIXEL_METRICS, image_metrics
from scoring.pixels import Defects, checked_map, find_defects

PRO_LIMITS = {"aupro": LIMIT, "aupro_0.05": 0.05}  # areas under PRO, and their largest false positive rate
METHOD = "BCa bootstrap over test images, normal and anomalous apart"
QUANTILES = 800  # thresholds of the grid, of each kind
SAMPLE = 1 << 20  # pixels, at most, from which the thresholds among all pixels are chosen
ELEMENTS = 1 << 18  # of one array while replicates are computed: 2 MB

Values = dict[str, np.ndarray]
Statistic = Callable[[np.ndarray], Values]  # weights (r, n) of the images -> each metric's values (r,), NaN: undefined


@dataclass(frozen=True)
class Bootstrap:
    """`level` of the intervals, in (0, 1), the number of replicates, at least 100, and the seed of what is drawn."""

    level: float = 0.95
    replicates: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level {self.level:g}: intervals need one above 0 and below 1, such as 0.95")
        if self.replicates < 100:
            raise ValueError(f"{self.replicates} replicates: at least 100 are needed")


def bootstrap_intervals(
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | np.ndarray | None = None,
    masks: Sequence[ArrayLike | None] | np.ndarray | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)} of the image and pixel metrics that are defined, fractions in [0, 1].

    Labels and scores are (n,), maps and masks n of (H, W), as `compute_metrics` takes them; an anomalous image without
    a mask leaves out the pixel metrics, as there. The interval of a metric that no replicate changes has no width:
    `explain_intervals` says what that is worth. Raises ValueError as `compute_metrics`.
    """
    statistic, strata = metric_statistic(labels, scores, maps, masks), _strata(labels)
    resampled = resample(labels, statistic, bootstrap)
    if not resampled:
        return {}
    left_out = _joined(map(statistic, _weights_leaving_one_out(np.size(labels))))
    return {
        name: _bca_interval(one.found, one.drawn, [left_out[name][places] for places in strata], bootstrap)
        for name, one in resampled.items()
    }


def mean_statistic(name: str, values: np.ndarray) -> Statistic:
    """The mean of a metric of single images (n,), NaN where an image has none, under the images' weights."""
    have = np.flatnonzero(~np.isnan(values))

    def evaluate(weights: np.ndarray) -> Values:
        with np.errstate(invalid="ignore"):
            return {name: weights[:, have] @ values[have] / weights[:, have].sum(axis=1)}

    return evaluate


def joint_statistic(statistics: Sequence[Statistic]) -> Statistic:
    """The metrics of several statistics together."""

    def evaluate(weights: np.ndarray) -> Values:
        return {name: values for statistic in statistics for name, values in statistic(weights).items()}

    return evaluate


def metric_statistic(
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | np.ndarray | None = None,
    masks: Sequence[ArrayLike | None] | np.ndarray | None = None,
) -> Statistic:
    """The metrics of one run as a function of how often each image counts. Arguments, errors: `bootstrap_intervals`.

    The maps are reduced to counts here and are not needed afterwards.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    defined = not image_metrics(labels, scores).reasons  # checks both
    anomalous = labels == 1
    statistics = [_image_statistic(anomalous, scores)] if defined else []
    if maps is not None and masks is not None:
        if not len(maps) == len(masks) == len(labels):
            raise ValueError(f"{len(labels)} labels, {len(maps)} maps and {len(masks)} masks: give one per image")
        if all(mask is not None for mask, defective in zip(masks, anomalous, strict=True) if defective):
            statistics += [counts.metrics for counts in [_PixelCounts.of(maps, masks)] if counts is not None]
    return joint_statistic(statistics)


def difference_statistic(first: Sequence[Statistic], second: Sequence[Statistic]) -> Statistic:
    """The mean metrics of some runs less those of others, on the same images; of the metrics that all of them have.

    The runs of a side are a method's seeds. An image that is drawn is drawn for all runs, so what makes it hard for
    both sides cancels.
    """

    def evaluate(weights: np.ndarray) -> Values:
        sides = [[statistic(weights) for statistic in side] for side in (first, second)]
        every = [values for side in sides for values in side]
        names = [name for name in every[0] if all(name in values for values in every)]
        means = [{name: np.mean([values[name] for values in side], axis=0) for name in names} for side in sides]
        return {name: means[0][name] - means[1][name] for name in names}

    return evaluate


@dataclass(frozen=True)
class Resampled:
    """A metric, or a difference: `found` on the images, `drawn` (R,) on replicates of them, NaN: undefined."""

    found: float
    drawn: np.ndarray

    @classmethod
    def mean(cls, parts: Sequence[Resampled]) -> Resampled:
        """The mean over sets of images that were drawn independently, such as those of several classes."""
        found = float(np.mean([part.found for part in parts]))
        return cls(found, np.mean([part.drawn for part in parts], axis=0))

    def interval(self, level: float) -> tuple[float, float]:
        """(low, high) of a difference: percentiles.

        A difference of metrics is neither skewed nor biased as the metrics are. BCa would correct it for noise: in
        simulations its 95 % intervals of differences in F1-max missed in 9 %, percentiles in 3 %.
        """
        drawn = self.drawn[~np.isnan(self.drawn)]
        if not drawn.size:
            return self.found, self.found
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Of the hypothesis that a difference is 0: the level, from 1, of the interval that ends there."""
        drawn = self.drawn[~np.isnan(self.drawn)]
        beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
        return float(min(1.0, 2 * (beyond + 1) / (drawn.size + 1)))


def resample(labels: ArrayLike, statistic: Statistic, bootstrap: Bootstrap) -> dict[str, Resampled]:
    """{metric: its values on resampled images} of those that are defined on the labeled images (n,) themselves."""
    n = np.size(labels)
    found = statistic(np.ones((1, n)))
    if not found:
        return {}
    drawn = _joined(map(statistic, _drawn_weights(_strata(labels), n, bootstrap)))
    return {name: Resampled(float(value[0]), drawn[name]) for name, value in found.items() if not np.isnan(value[0])}


def _strata(labels: ArrayLike) -> list[np.ndarray]:
    """The places of the normal and of the anomalous images, without a kind that does not occur."""
    anomalous = np.asarray(labels) == 1
    return [places for places in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous)) if places.size]


def explain_intervals(intervals: Mapping[str, tuple[float, float]], labels: ArrayLike) -> list[str]:
    """A line for each reason to trust the intervals less than they look; none in the usual case."""
    labels = np.asarray(labels)
    notes = []
    for kind, count in (("normal", int((labels == 0).sum())), ("anomalous", int((labels == 1).sum()))):
        if intervals and count < 10:
            images = f"only {count} {kind} images" if count > 1 else f"only {count} {kind} image"
            notes.append(f"{images}: what others would add cannot be drawn from them, so the intervals are too narrow")
    if any(low == high for low, high in intervals.values()):
        notes.append(
            "an interval without width says little: every resampled set gives the same value; other images need not"
        )
    return notes


def _drawn_weights(strata: Sequence[np.ndarray], n: int, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
    """How often each of n images is drawn, (r, n), a part of the replicates at a time; a stratum has its own stream."""
    streams = [np.random.default_rng(seed) for seed in np.random.SeedSequence(bootstrap.seed).spawn(len(strata))]
    for rows in _parts(bootstrap.replicates, n):
        weights = np.zeros((len(rows), n))
        for stream, places in zip(streams, strata, strict=True):
            drawn = stream.integers(places.size, size=(len(rows), places.size))
            drawn += places.size * np.arange(len(rows))[:, None]
            counts = np.bincount(drawn.ravel(), minlength=len(rows) * places.size)
            weights[:, places] = counts.reshape(len(rows), places.size)
        yield weights


def _weights_leaving_one_out(n: int) -> Iterator[np.ndarray]:
    """For each of n images, weights (r, n) of one for all others, a part of the images at a time."""
    for rows in _parts(n, n):
        weights = np.ones((len(rows), n))
        weights[np.arange(len(rows)), rows] = 0
        yield weights


def _parts(count: int, width: int) -> Iterator[range]:
    """0 .. count in parts, so that an array of a part's rows and `width` columns stays small."""
    step = max(1, ELEMENTS // max(width, 1))
    for start in range(0, count, step):
        yield range(start, min(count, start + step))


def _joined(parts: Iterator[Values]) -> Values:
    every = list(parts)
    return {name: np.concatenate([part[name] for part in every]) for name in every[0]}


def _bca_interval(
    found: float, drawn: np.ndarray, left_out: Sequence[np.ndarray], bootstrap: Bootstrap
) -> tuple[float, float]:
    """A metric, its replicates (R,), and per stratum its values without each image -> (low, high).

    The acceleration is that of several samples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 14.3).
    """
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size or np.ptp(drawn) < 1e-12 and abs(drawn[0] - found) < 1e-12:
        return found, found
    normal, skew, spread = NormalDist(), 0.0, 0.0
    for values in left_out:
        values = values[~np.isnan(values)]
        if values.size:
            influence = (values.mean() - values) * (values.size - 1) / values.size
            skew, spread = skew + float((influence**3).sum()), spread + float((influence**2).sum())
    acceleration = skew / (6 * spread**1.5) if spread else 0.0
    below = ((drawn < found).mean() + (drawn <= found).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / drawn.size, 1 - 0.5 / drawn.size)))
    ends = []
    for share in ((1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2):
        shifted = bias + normal.inv_cdf(share)
        ends.append(normal.cdf(bias + shifted / max(1 - acceleration * shifted, 1e-9)))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def _image_statistic(anomalous: np.ndarray, scores: np.ndarray) -> Statistic:
    """The image metrics as functions of the images' weights: labels (n,) bool, scores (n,). Exact."""
    edges = _apart(np.unique(scores[anomalous]))
    bins = np.searchsorted(edges, scores, "right")
    tied = np.ones(len(edges) + 1, bool)

    def sums(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The weights (r, n) of the chosen images (n,) summed by bin, (r, m)."""
        places = np.flatnonzero(chosen)
        places = places[np.argsort(bins[places], kind="stable")]
        found, starts = np.unique(bins[places], return_index=True)
        total = np.zeros((len(weights), len(tied)))
        total[:, found] = np.add.reduceat(weights[:, places], starts, axis=1)
        return total

    def metrics(weights: np.ndarray) -> Values:
        ranked = _rank(sums(weights, anomalous), sums(weights, ~anomalous), tied)
        return dict(zip(IMAGE_METRICS, ranked[:3], strict=True))

    return metrics


@dataclass(frozen=True)
class _PixelCounts:
    """What images contribute to the pixel metrics, by bin: a bin holds the scores from one threshold up to the next.

    Of n images, m bins, and k images with defects: `normal` (n, m) and `defect` (k, m) count pixels, `overlap` (k, m)
    is what the pixels add to the PRO of the image's own regions, summed, `regions` (k,) their number, `images` (k,)
    which images these are. `tied` (m,): all defect pixels of the bin have the bin's lowest score.
    """

    normal: np.ndarray
    defect: np.ndarray
    overlap: np.ndarray
    regions: np.ndarray
    images: np.ndarray
    tied: np.ndarray

    @classmethod
    def of(
        cls, maps: Sequence[ArrayLike] | np.ndarray, masks: Sequence[ArrayLike | None] | np.ndarray
    ) -> _PixelCounts | None:
        """Counted from the maps, one image at a time; None where there are no defect pixels, or no others."""
        flat, defects = [], []
        for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
            checked = checked_map(i, scores)
            flat.append(checked.reshape(-1))
            defects.append(find_defects(i, checked.shape, mask))
        images = np.array([i for i, found in enumerate(defects) if found is not None], np.intp)
        marked: list[tuple[np.ndarray, Defects]] = [
            (flat[i][found.places], found) for i, found in enumerate(defects) if found is not None
        ]
        n_defect = sum(scores.size for scores, _ in marked)
        if not n_defect or n_defect == sum(scores.size for scores in flat):
            return None
        edges = _choose_edges(marked, flat)
        width = len(edges) + 1
        normal, (defect, overlap) = np.empty((len(flat), width)), np.zeros((2, len(images), width))
        tied = np.ones(width, bool)
        for row, (scores, found) in enumerate(marked):
            bins = np.searchsorted(edges, scores, "right")
            defect[row] = np.bincount(bins, minlength=width)
            overlap[row] = np.bincount(bins, 1 / found.areas[found.regions], minlength=width)
            tied[bins[scores != edges[np.maximum(bins, 1) - 1]]] = False
        for i, scores in enumerate(flat):
            below = np.searchsorted(np.sort(scores), edges, "left")
            normal[i] = np.diff(below, prepend=0, append=scores.size)
        normal[images] -= defect
        return cls(normal, defect, overlap, np.array([len(found.areas) for _, found in marked]), images, tied)

    def metrics(self, weights: np.ndarray) -> Values:
        """Weights (r, n) of the images -> the pixel metrics, (r,) each."""
        parts = [self._metrics(weights[rows.start : rows.stop]) for rows in _parts(len(weights), len(self.tied))]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _metrics(self, weights: np.ndarray) -> Values:
        marked = weights[:, self.images]
        auroc, ap, f1max, lower, upper = _rank(marked @ self.defect, weights @ self.normal, self.tied)
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap = (marked @ self.overlap) / (marked @ self.regions)[:, None]
        areas = {name: _area_under_pro(overlap, lower, upper, limit) for name, limit in PRO_LIMITS.items()}
        return dict(zip(PIXEL_METRICS[:3], (auroc, ap, f1max), strict=True)) | areas


def _area_under_pro(overlap: np.ndarray, lower: np.ndarray, upper: np.ndarray, limit: float) -> np.ndarray:
    """What PRO gains in each bin and the false positive rates at its ends, (r, m) each -> AUPRO (r,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(lower < limit, (limit - lower) ** 2 / (2 * (upper - lower)), 0)
    area = np.where(upper <= limit, limit - (lower + upper) / 2, part)
    return np.minimum((overlap * area).sum(axis=1) / limit, 1)


def _rank(anomalous: np.ndarray, normal: np.ndarray, tied: np.ndarray) -> tuple[np.ndarray, ...]:
    """Counts by rising bin, (r, m) each -> AUROC, AP, F1-max, (r,) each, and the false positive rates (r, m).

    The rates are those above each bin and from it on. In a tied bin the anomalous ones are at the bin's lowest score;
    in others they are taken as evenly mixed with the normal ones. NaN where a set has none of one kind.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        found = anomalous[:, ::-1].cumsum(axis=1)[:, ::-1]
        at_least = normal[:, ::-1].cumsum(axis=1)[:, ::-1]
        n_anomalous, n_normal = found[:, :1], at_least[:, :1]
        upper = at_least / n_normal
        lower = (at_least - normal) / n_normal
        auroc = 1 - (anomalous * (lower + upper)).sum(axis=1) / 2 / n_anomalous[:, 0]
        called = found + at_least
        precision = np.where(called > 0, found / called, 0)
        before = np.concatenate([precision[:, 1:], precision[:, -1:]], axis=1)  # above the bin
        nothing = np.concatenate([called[:, 1:], np.zeros_like(n_normal)], axis=1) == 0
        mean = np.where(tied | nothing, precision, (precision + before) / 2)
        ap = (anomalous * mean).sum(axis=1) / n_anomalous[:, 0]
        f1max = (2 * found / (called + n_anomalous)).max(axis=1)
    return auroc, ap, f1max, lower, upper


def _choose_edges(marked: Sequence[tuple[np.ndarray, Defects]], flat: Sequence[np.ndarray]) -> np.ndarray:
    """The thresholds of the grid, rising, from the defect pixels (scores, and their regions) and from all pixels."""
    scores = np.concatenate([scores for scores, _ in marked])
    order = np.argsort(scores)
    scores = scores[order]
    shares = np.concatenate([1 / found.areas[found.regions] for _, found in marked])[order].cumsum()
    steps = np.arange(1, QUANTILES) / QUANTILES
    ranks = [
        np.rint(steps * (scores.size - 1)).astype(np.intp),
        np.searchsorted(shares, steps * shares[-1]),
        scores.size - np.rint(np.geomspace(1, scores.size, QUANTILES // 4)).astype(np.intp),
    ]
    every = 1 + sum(image.size for image in flat) // SAMPLE
    sample = np.concatenate([image[::every] for image in flat])
    distinct = scores[np.append(True, scores[1:] != scores[:-1])]
    chosen = distinct if distinct.size <= 2 * QUANTILES else scores[np.unique(np.concatenate(ranks))]
    return _apart(np.concatenate([chosen, np.quantile(sample, steps, method="higher").astype(chosen.dtype)]))


def _apart(scores: np.ndarray) -> np.ndarray:
    """Edges, rising, that give each of these scores a bin of its own."""
    scores = scores.astype(scores.dtype if scores.dtype.kind == "f" else np.float64, copy=False)
    return np.unique(np.concatenate([scores, np.nextafter(scores, np.inf)]))
