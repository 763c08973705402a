"""Decisions by a threshold from normal images alone, and what such a threshold may promise.

The threshold is the k-th largest score of n normal images that the network was not trained on; an image is NG if its
score lies above it. If the next normal image is like these (exchangeable with them), it is NG with probability at most
k / (n + 1), the rank rule of split conformal prediction (Vovk, Gammerman and Shafer 2005; for anomaly detection
Laxhammar and Falkman 2010). The rate of one such threshold is Beta(k, n - k + 1) distributed (Vovk 2012, conditional
validity).

Training scores promise nothing: a student has learned those very images, and scores them lower than new ones.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scoring.normalization import f1_score

SOURCES = {"holdout": "held-out", "validation": "validation", "calibrate": "calibration"}
MAXIMUM = "max"
PIXEL_RULES = f"{MAXIMUM}, sigma:X or percentile:PxF"
LEVEL = 0.9  # of the intervals that people see


@dataclass(frozen=True)
class Threshold:
    """An image threshold, a pixel threshold, and the normal scores that they come from.

    value              an image is NG if its score is above it
    pixel              a pixel counts as anomalous if its map value is above it
    pixel_rule         max (the k-th largest of the images' highest pixels), sigma:X, or percentile:PxF
    scores             of n normal images that the network was not trained on, ascending
    k                  `value` is the k-th largest of `scores`
    source             holdout, validation or calibrate
    checkpoint_sha256  of the checkpoint whose scores these are: other trainings have other scales
    false_alarm        the rate that was asked for, in 0..1; None where k = 1 was taken
    data               how many images there were and the hash of their contents, {"images", "sha256"}

    Raises ValueError for values that do not fit each other.
    """

    value: float
    pixel: float
    pixel_rule: str
    scores: tuple[float, ...]
    k: int
    source: str
    checkpoint_sha256: str
    false_alarm: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scores or not all(map(math.isfinite, (*self.scores, self.pixel))):
            raise ValueError("a threshold needs finite scores of normal images")
        if list(self.scores) != sorted(self.scores) or not 1 <= self.k <= self.n or self.value != self.scores[-self.k]:
            raise ValueError(f"value must be the {ordinal(self.k)} highest of the scores, which must be ascending")
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, found {self.source!r}")
        check_pixel_rule(self.pixel_rule)

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        maps: Sequence[np.ndarray] | np.ndarray,
        settings: CalibrationSettings,
        source: str,
        origin: Mapping[str, Any],
    ) -> Threshold:
        """The threshold from the scores (n,) and anomaly maps, n of (H, W), of normal images.

        `origin` has `checkpoint_sha256` and `data`. Raises ValueError where n is too small for the rate asked for.
        """
        ascending = tuple(sorted(float(score) for score in np.asarray(scores)))
        k = choose_k(len(ascending), settings.false_alarm)
        pixel = pixel_threshold(maps, settings.pixel_rule, k)
        return cls(
            ascending[-k], pixel, settings.pixel_rule, ascending, k, source, false_alarm=settings.false_alarm, **origin
        )

    @property
    def n(self) -> int:
        """How many normal images there were."""
        return len(self.scores)

    @property
    def rate(self) -> float:
        """The mean rate of false alarms of such thresholds, k / (n + 1): an upper bound for the next normal image."""
        return self.k / (self.n + 1)

    def rate_interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The central interval of Beta(k, n - k + 1), which the rate of this very threshold lies in."""
        return beta_interval(self.k, self.n - self.k + 1, level)

    def p_value(self, score: float) -> float:
        """(1 + how many normal scores are at least as high) / (n + 1), in (0, 1]: comparable across runs."""
        return (1 + self.n - bisect.bisect_left(self.scores, score)) / (self.n + 1)

    def decide(self, score: ArrayLike) -> Any:
        """True where a score is above the threshold: NG."""
        return np.asarray(score, np.float64) > self.value

    @property
    def described(self) -> str:
        """Where it comes from: the 2nd highest of 60 held-out normal images."""
        highest = "highest" if self.k == 1 else f"{ordinal(self.k)} highest"
        return f"the {highest} of {images(self.n, SOURCES[self.source] + ' normal')}"

    def promise(self) -> str:
        """What it promises, in a sentence."""
        low, high = self.rate_interval()
        return (
            f"A new normal image like these exceeds it in about {percent(self.rate)} of cases ({percent(LEVEL)} "
            f"interval of the rate: {percent(low)} to {percent(high)})"
        )

    def explain(self) -> list[str]:
        """Lines for people: the threshold, what it promises, and what more images would."""
        lines = [f"threshold {self.value:.4g}: {self.described}. {self.promise()}"]
        if self.false_alarm is None:
            missing = [f"{percent(rate)} needs {n}" for rate in (0.05, 0.01) if (n := images_needed(rate)) > self.n]
            if missing:
                lines.append(f"{images(self.n)} cannot promise less: {', '.join(missing)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON takes them."""
        return {**vars(self), "scores": list(self.scores), "data": dict(self.data)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Threshold:
        """The inverse of `to_json`. Raises ValueError."""
        fields = {name: saved[name] for name in cls.__dataclass_fields__ if name in saved}
        return cls(**fields | {"scores": tuple(saved["scores"])})


@dataclass(frozen=True)
class CalibrationSettings:
    """What decides a threshold beside the scores: the rate of false alarms asked for, and the rule for pixels."""

    false_alarm: float | None = None
    pixel_rule: str = MAXIMUM


def images_needed(false_alarm: float) -> int:
    """The least n for which some k / (n + 1) is at most this rate: 19 for 5 %, 99 for 1 %."""
    n = math.ceil(1 / false_alarm) - 1
    return n if false_alarm * (n + 1) >= 1 else n + 1


def choose_k(n: int, false_alarm: float | None) -> int:
    """The largest k with k / (n + 1) <= false_alarm; 1 without a rate. Raises ValueError where there is none."""
    if n < 1:
        raise ValueError("no normal image to take a threshold from")
    if false_alarm is None:
        return 1
    k = math.floor(false_alarm * (n + 1) * (1 + 1e-12))  # 0.05 * 20 is 1
    if k < 1:
        raise ValueError(
            f"--false_alarm {false_alarm:g}: needs {images_needed(false_alarm)} normal images that were not trained "
            f"on, found {n}, which promise {percent(1 / (n + 1))} at best: add images, or leave the flag out"
        )
    return min(k, n)


def check_pixel_rule(rule: str) -> tuple[str, tuple[float, ...]]:
    """(kind, numbers) of a rule for pixels. Raises ValueError."""
    kind, _, text = rule.partition(":")
    try:
        numbers = tuple(float(part) for part in text.split("x")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    fits = {MAXIMUM: 0, "sigma": 1, "percentile": 2}.get(kind) == len(numbers) and all(map(math.isfinite, numbers))
    if not fits or (kind == "percentile" and not 0 <= numbers[0] <= 100):
        raise ValueError(f"--pixel_threshold {rule}: want {PIXEL_RULES}, such as sigma:3 or percentile:95x1.421")
    return kind, numbers


def pixel_threshold(maps: Sequence[np.ndarray] | np.ndarray, rule: str, k: int = 1) -> float:
    """The pixel threshold from the anomaly maps, n of (H, W), of normal images.

    max               the k-th largest of the n images' highest pixels: at most k / (n + 1) of normal images show any
                      pixel above it
    sigma:X           mean + X standard deviations of all pixels (X = 3: the baseline of MVTec AD 2)
    percentile:PxF    F times the P-th percentile of all pixels (95 and 1.421: SuperADD)
    """
    kind, numbers = check_pixel_rule(rule)
    if kind == MAXIMUM:
        return float(np.sort([anomaly_map.max() for anomaly_map in maps])[-k])
    pixels = np.concatenate([anomaly_map.reshape(-1) for anomaly_map in maps])
    if kind == "sigma":
        return float(pixels.mean(dtype=np.float64) + numbers[0] * pixels.std(dtype=np.float64))
    return float(np.percentile(pixels, numbers[0]) * numbers[1])


def decision_metrics(
    threshold: Threshold,
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Sequence[np.ndarray] | np.ndarray | None = None,
    masks: Sequence[ArrayLike | None] | None = None,
) -> dict[str, float | None]:
    """What the threshold does on a test set: rates and F1 in 0..1, None where undefined.

    image_f1, false_alarm_rate (of the normal images), miss_rate (of the anomalous ones); with N maps (H, W) and masks
    also seg_f1, F1 over all pixels of all images at the pixel threshold (SegF1 of MVTec AD 2).
    """
    labels, decided = np.asarray(labels, bool), threshold.decide(scores)
    metrics = {
        "image_f1": f1_score(labels, decided),
        "false_alarm_rate": float(decided[~labels].mean()) if (~labels).any() else math.nan,
        "miss_rate": float((~decided[labels]).mean()) if labels.any() else math.nan,
    }
    if maps is not None and masks is not None:
        metrics["seg_f1"] = f1_score(masks, [anomaly_map > threshold.pixel for anomaly_map in maps])
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def beta_interval(a: float, b: float, level: float) -> tuple[float, float]:
    """The central interval of a Beta(a, b) distribution; the ends 0 and 1 where a or b is 0."""
    from scipy.stats import beta  # slow to import

    tail = (1 - level) / 2
    return (float(beta.ppf(tail, a, b)) if a else 0.0, float(beta.ppf(1 - tail, a, b)) if b else 1.0)


def clopper_pearson(hits: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a rate of which `hits` of `count` were seen (Clopper and Pearson 1934)."""
    low, _ = beta_interval(hits, count - hits + 1, level)
    _, high = beta_interval(hits + 1, count - hits, level)
    return low, high


def percent(rate: float) -> str:
    """0.143 -> 14 %; below 1 % with one digit more."""
    shown = 100 * rate
    return f"{shown:.0f} %" if shown >= 0.95 or shown == 0 else f"{shown:.1g} %"


def images(count: int, kind: str = "") -> str:
    """6 held-out normal images"""
    return " ".join(filter(None, (str(count), kind, "image" if count == 1 else "images")))


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..., 11th, ..."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
