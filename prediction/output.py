"""What a prediction leaves behind: a line and a row for each image, and a last line over all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoring.predictions import NG, OK, Prediction, Rule
from scoring.thresholds import Threshold
from utils import printable

COLUMNS = (
    "path", "decision", "score", "relative", "p_value", "threshold", "x", "y", "area", "problem", "milliseconds",
)  # fmt: skip
UNREAD = "??"
ALL_OK, SOME_NG, SOME_UNREAD = 0, 1, 3  # exit codes
ENOUGH = 20  # images decided OK, before their scores are compared with those of normal images
UNLIKELY = 0.001  # the p-value of that comparison below which it is told


@dataclass(frozen=True)
class Output:
    """One image's result: a prediction, or the problem that its file has."""

    path: Path
    prediction: Prediction | None
    problem: str
    milliseconds: float

    def line(self, name: str) -> str:
        """OK     1.930  p 0.412  new 1.png"""
        found = self.prediction
        if found is None:
            return printable(f"{UNREAD} {'-':>9}  p {'-':>5}  {name}  {self.problem}")
        p_value = f"{'-':>5}" if found.p_value is None else f"{found.p_value:.3f}"
        return printable(f"{found.decision or '--':<2} {found.score:>9.3f}  p {p_value}  {name}")

    def row(self) -> dict[str, Any]:
        """The values of COLUMNS; None where there is none."""
        found, row = self.prediction, dict.fromkeys(COLUMNS)
        row |= {"path": self.path, "problem": self.problem or None, "milliseconds": round(self.milliseconds, 1)}
        if found is None:
            return row | {"decision": UNREAD}
        names = ("decision", "score", "relative", "p_value", "threshold", "x", "y", "area")
        return row | {name: getattr(found, name) for name in names}

    def cells(self) -> list[Any]:
        """The row's values as a CSV file holds them: nine digits of a score, as in a run's predictions.csv."""
        return [f"{value:.9g}" if isinstance(value, float) else value for value in self.row().values()]

    def as_json(self) -> str:
        """The row as one line of JSON."""
        return json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in self.row().items()})


@dataclass
class Totals:
    """Counts over all images, and what the last line says."""

    rule: Rule
    seconds: float = 0.0
    unread: int = 0
    decided: dict[str | None, int] = field(default_factory=lambda: {OK: 0, NG: 0, None: 0})
    normal_scores: list[float] = field(default_factory=list)  # of the images that are OK

    def add(self, outputs: Sequence[Output], seconds: float) -> None:
        """Count the results of a batch and the seconds that it took."""
        self.seconds += seconds
        for output in outputs:
            if output.prediction is None:
                self.unread += 1
                continue
            self.decided[output.prediction.decision] += 1
            if output.prediction.decision == OK:
                self.normal_scores.append(output.prediction.score)

    @property
    def exit_code(self) -> int:
        """3 where some were not read, else 1 where some are NG, else 0."""
        return SOME_UNREAD if self.unread else SOME_NG if self.decided[NG] else ALL_OK

    def summary(self) -> str:
        """21 images: 12 OK, 8 NG, 1 not read. 0.15 s each. threshold 2.31 (run), about 14 % false alarms"""
        count = sum(self.decided.values()) + self.unread
        decided = "" if self.rule.value is None else f"{self.decided[OK]} OK, {self.decided[NG]} NG, "
        each = f"{self.seconds / max(1, count):.2g} s each"
        start = f"{count} images: {decided}{self.unread} not read. {each}. "
        if self.rule.value is None:
            return start + "no threshold: python test.py RUN --calibrate FOLDER sets one"
        promise = ""
        if self.rule.calibrated is not None and self.rule.value == self.rule.calibrated.value:
            promise = f", about {100 * self.rule.calibrated.rate:.2g} % false alarms"
        return f"{start}threshold {self.rule.value:.4g} ({self.rule.source}){promise}"

    def drift(self) -> str:
        """A line where the images that are OK score unlike the normal images of the threshold; else empty.

        By the two-sample test of Kolmogorov and Smirnov among scores at or below the threshold.
        """
        threshold = self.rule.calibrated
        if threshold is None or self.rule.value != threshold.value or len(self.normal_scores) < ENOUGH:
            return ""
        p_value = _same_scores(threshold, self.normal_scores)
        if p_value >= UNLIKELY:
            return ""
        return (
            f"the {len(self.normal_scores)} images that are OK score unlike the {threshold.n} normal images of the "
            f"threshold (p {p_value:.1g}): other light, camera or parts? What the threshold promises holds for images "
            "like those only"
        )


def _same_scores(threshold: Threshold, scores: Sequence[float]) -> float:
    from scipy.stats import ks_2samp  # slow to import

    return float(ks_2samp(scores, [score for score in threshold.scores if score <= threshold.value]).pvalue)
