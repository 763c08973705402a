"""Scores as shares of their range, 0.5 at a threshold, and the decisions that follow: what anomalib 2 makes of scores.

An oracle, to compare with anomalib's metrics: threshold and range come from its validation set, which by default is its
test set, so the labels of the test images choose what is then said of those images. F1 at that threshold is F1-max
itself, not what a new set would give. AUROC changes only where the clipping to [0, 1], or rounding, ties scores.

It departs from anomalib in three places. anomalib calls anomalous only what lies above the threshold, itself the score
of an anomalous image or pixel, so its F1 can fall short of F1-max; here the threshold is within, as on the curve that
it was chosen from. Of a set without anomalous images anomalib takes the lowest score as the threshold; here it is the
middle of the range. And where all scores are one, anomalib divides by zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike

BELOW_HALF = np.nextafter(0.5, 0)


@dataclass(frozen=True)
class Normalizer:
    """A threshold and the range of the scores it was chosen from, all in the unit of the raw scores and finite."""

    threshold: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))) or self.low > self.high:
            raise ValueError(f"scores can be normalized by finite numbers with low <= high only: found {self}")

    @classmethod
    def of(cls, scores: ArrayLike, threshold: float = math.nan) -> Normalizer:
        """Raw scores or maps of any shape and the threshold chosen from them; NaN: the middle of their range.

        Raises ValueError where there are no scores, or infinite ones or NaN among them.
        """
        scores = np.asarray(scores)
        if not scores.size:
            raise ValueError("no scores to find the range of")
        low, high = float(scores.min()), float(scores.max())
        return cls((low + high) / 2 if math.isnan(threshold) else float(threshold), low, high)

    @np.errstate(over="ignore")
    def normalized(self, scores: ArrayLike) -> np.ndarray:
        """Raw scores of any shape -> float64 in [0, 1], (score - threshold) / (high - low) + 0.5 clipped.

        It never falls as scores rise, and is at least 0.5 exactly where `decide` says so, however scores round. Of no
        range at all (high = low) the limit remains: 0 below the threshold, 0.5 at it, 1 above.
        """
        steps = np.asarray(scores, np.float64) - self.threshold
        span = self.high - self.low
        shares = np.clip((steps / span if span else np.sign(steps)) + 0.5, 0, 1)
        return np.where(steps < 0, np.minimum(shares, BELOW_HALF), shares)

    def decide(self, scores: ArrayLike) -> np.ndarray:
        """Raw scores of any shape -> True where anomalous: score >= threshold, compared in double precision."""
        return np.asarray(scores, np.float64) >= self.threshold


def normalizers(
    thresholds: Mapping[str, float], scores: ArrayLike, maps: Sequence[np.ndarray] | np.ndarray
) -> dict[str, Normalizer]:
    """`Report.thresholds`, image scores (N,) and N anomaly maps (H, W) -> the normalizers of "image" and "pixel".

    Each takes the other's threshold where it has none of its own, and the middle of its range where neither has one.
    Raises ValueError as `Normalizer.of`.
    """
    known = next(iter(thresholds.values()), math.nan)
    extremes = np.array([[found.min(), found.max()] for found in maps])
    return {
        name: Normalizer.of(found, thresholds.get(name, known))
        for name, found in (("image", scores), ("pixel", extremes))
    }


def f1_metrics(
    fitted: Mapping[str, Normalizer],
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Sequence[ArrayLike] | np.ndarray,
    masks: Sequence[ArrayLike | None] | np.ndarray | None,
) -> dict[str, float]:
    """image_f1 and pixel_f1, of a set as `compute_metrics` takes it, at the thresholds of `normalizers`; NaN as there.

    Equal to image_f1max and pixel_f1max where the thresholds were chosen on this very set, never above them elsewhere.
    """
    labels = np.asarray(labels)
    metrics = {"image_f1": f1_score(labels, fitted["image"].decide(scores)), "pixel_f1": math.nan}
    if masks is not None and not any(mask is None and label for mask, label in zip(masks, labels, strict=True)):
        metrics["pixel_f1"] = f1_score(masks, [fitted["pixel"].decide(scores) for scores in maps])
    return metrics


def f1_score(truth: Sequence[ArrayLike | None] | np.ndarray, decided: Sequence[ArrayLike] | np.ndarray) -> float:
    """Labels (n,) and decisions (n,), or n masks and decided maps (H, W) -> F1 over all, in [0, 1].

    True is what is not 0, in a mask of None nothing. NaN where all or nothing is anomalous in truth, as F1-max. Raises
    ValueError where they differ in number or shape.
    """
    hits = found = anomalous = total = 0
    for i, (mask, decision) in enumerate(zip(truth, decided, strict=True)):
        decision = np.asarray(decision, bool)
        defect = np.zeros_like(decision) if mask is None else np.asarray(mask) != 0
        if defect.shape != decision.shape:
            raise ValueError(f"image {i}: its mask is {defect.shape}, its decisions {decision.shape}")
        hits += np.count_nonzero(defect & decision)
        found += np.count_nonzero(decision)
        anomalous += np.count_nonzero(defect)
        total += decision.size
    return float(2 * hits / (found + anomalous)) if 0 < anomalous < total else math.nan
