"""STAND-IN: a threshold from normal images alone, as the interface has it; to be replaced."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import beta


@dataclass(frozen=True)
class Threshold:
    """An image is NG where its score is above `value`, the k-th largest of n normal images' scores."""

    value: float
    pixel: float
    pixel_rule: str
    scores: tuple[float, ...]
    k: int
    source: str
    checkpoint_sha256: str

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def rate(self) -> float:
        return self.k / (self.n + 1)

    def rate_interval(self, level: float = 0.9) -> tuple[float, float]:
        low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], self.k, self.n - self.k + 1)
        return float(low), float(high)

    def decide(self, score: float) -> bool:
        return score > self.value

    def promise(self) -> str:
        low, high = (100 * end for end in self.rate_interval())
        return (
            f"threshold {self.value:.3g}: the highest of {self.n} held-out normal images. A new normal image like these "
            f"exceeds it in about {100 * self.rate:.0f} % of cases (90 % interval of the rate: {low:.0f} % to {high:.0f} %)"
        )

    @classmethod
    def read(cls, path: Path) -> Threshold | None:
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        record["scores"] = tuple(record["scores"])
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})
