"""What a detector says of one image: score, decision, place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scoring.peaks import highest_pixel
from scoring.thresholds import Threshold

OK, NG = "OK", "NG"


@dataclass(frozen=True)
class Rule:
    """What decides: the run's threshold, or a given value, in whose place p-values and pixels stay the run's.

    value       an image is NG if its score is above it; None: nothing is decided
    calibrated  gives p-values and the pixel threshold; None where no normal images were kept apart
    source      in people's words: run, --threshold, --calibrate
    """

    value: float | None = None
    calibrated: Threshold | None = None
    source: str = "run"

    @classmethod
    def of(cls, threshold: Threshold | None, source: str = "run") -> Rule:
        """The rule of a calibrated threshold; that of no threshold for None."""
        return cls() if threshold is None else cls(threshold.value, threshold, source)

    @property
    def pixel(self) -> float | None:
        """A pixel counts as anomalous if its map value is above it."""
        return None if self.calibrated is None else self.calibrated.pixel

    def decide(self, score: float) -> bool:
        """Whether an image of this score is NG."""
        return self.value is not None and score > self.value

    def p_value(self, score: float) -> float | None:
        """Share of normal images that score as high; None without normal images."""
        return None if self.calibrated is None else self.calibrated.p_value(score)

    def judge(self, score: float, anomaly_map: np.ndarray) -> Prediction:
        """The prediction of one image from its score and map (S, S)."""
        y, x = highest_pixel(anomaly_map)
        score, pixel = float(score), self.pixel
        return Prediction(
            score=score,
            decision=None if self.value is None else NG if self.decide(score) else OK,
            threshold=self.value,
            p_value=self.p_value(score),
            relative=score / self.value if self.value is not None and self.value > 0 else None,
            x=x,
            y=y,
            area=None if pixel is None else float((anomaly_map > pixel).mean()),
            anomaly_map=anomaly_map,
        )


@dataclass(frozen=True)
class Prediction:
    """One image.

    score        higher is more anomalous; comparable within one run only
    decision     OK, or NG where the score is above the threshold; None without a threshold
    threshold    the image threshold; None without one
    p_value      share of normal images that score as high, (0, 1]; comparable across runs; None without normal images
    relative     score / threshold; None without a threshold above 0
    x, y         the map's highest pixel, in pixels of the map, from its upper left corner
    area         share of the map above the pixel threshold, 0..1; None without one
    anomaly_map  (S, S) float32, S = image_size
    """

    score: float
    decision: str | None
    threshold: float | None
    p_value: float | None
    relative: float | None
    x: int
    y: int
    area: float | None
    anomaly_map: np.ndarray

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"the score is {self.score}: the image or the network holds values that are not finite")
