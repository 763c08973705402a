"""Intervals of one run's metrics, for people and for metrics.json."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from report.results import METRIC_TITLES
from scoring.intervals import METHOD, Bootstrap, explain_intervals
from scoring.metrics import Report
from utils import format_table

Intervals = Mapping[str, tuple[float, float]]  # metric -> (low, high)


def render_intervals(report: Report, labels: np.ndarray, intervals: Intervals, level: float = Bootstrap.level) -> str:
    """A table of metric, value, low, high and the number of images, and below it what the intervals do not tell."""
    n = str(len(labels))
    rows = [
        [METRIC_TITLES[name], *(f"{value:.4f}" for value in (report.values[name], low, high)), n]
        for name, (low, high) in intervals.items()
    ]
    if not rows:
        return "no intervals: no metric is defined"
    counts = f"{int((labels == 0).sum())} normal, {int((labels == 1).sum())} anomalous"
    notes = [
        f"{100 * level:g} % intervals: where the metric may lie for other test images like these ({counts}). "
        "Another seed moves it as well; that is not in them.",
        *explain_intervals(intervals, labels),
    ]
    wrap = textwrap.TextWrapper(78, initial_indent="  ", subsequent_indent="    ")
    return "\n".join([format_table(["metric", "value", "low", "high", "n"], rows), *map(wrap.fill, notes)])


def record_intervals(intervals: Intervals) -> dict[str, Any]:
    """What metrics.json holds of them."""
    bootstrap = Bootstrap()
    ends = {name: list(ends) for name, ends in intervals.items()}
    return {"level": bootstrap.level, "replicates": bootstrap.replicates, "method": METHOD, "metrics": ends}
