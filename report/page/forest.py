"""Forest plots of differences by class, and mean ranks with critical difference: numbers for forest.html.jinja."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from report.differences import Comparison, Difference, OverClasses, Ranking, Tested
from report.page.charts import Axis, Bar, Tick
from report.page.templates import make_environment, read_asset
from report.rendering import benchmark_title, count
from report.results import METRIC_TITLES
from report.verdicts import points, short_label

WIDTH, LEFT, RIGHT, TOP = 640, 170, 470, 34  # of a plot; above TOP stand its title and what each side means
ROW, AXIS, GAP = 20, 36, 18  # heights: of a row, of the axis below the rows, between plots of one file


@dataclass(frozen=True)
class Mark:
    """A row: its label, a point, its interval from `low` to `high` where there is one, its text; `strong` for means."""

    label: str
    y: float
    x: float
    low: float | None
    high: float | None
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Forest:
    """A plot: rows over an axis; `zero` is a line from top to bottom, `bars` span what is not told apart."""

    title: str
    description: str
    sides: tuple[str, str]
    rows: Sequence[Mark]
    x_ticks: Sequence[Tick]
    axis: str
    bottom: float
    zero: float | None = None
    bars: Sequence[Bar] = ()

    @property
    def height(self) -> float:
        return self.bottom + AXIS


def forest(difference: Difference, level: float) -> Forest:
    """The difference of each class with its interval over images, and below them that of the mean."""
    wanted: list[tuple[str, float, tuple[float, float] | None, bool]] = [
        (one.class_name, one.difference, _ends(one.images), False) for one in difference.classes
    ]
    if difference.over_classes is not None:
        wanted.append(("mean, over images", difference.difference, _ends(difference.over_images), True))
        if over := _ends(difference.over_classes):
            wanted.append(("mean, over classes", difference.difference, over, True))
    values = [100 * value for _, found, ends, _ in wanted for value in (found, *(ends or ()))]
    least, most = min([*values, 0.0]), max([*values, 0.0])
    margin = 0.06 * (most - least) or 1.0
    x = Axis(least - margin, most + margin, LEFT, RIGHT)
    rows = []
    for number, (label, value, ends, strong) in enumerate(wanted):
        low, high = (_at(x, 100 * ends[0]), _at(x, 100 * ends[1])) if ends else (None, None)
        text = points(value) + (f" ({points(ends[0])} to {points(ends[1])})" if ends else "")
        y = TOP + ROW * (number + 0.5)
        rows.append(Mark(short_label(label), y, _at(x, 100 * value), low, high, text, strong))
    title = f"{METRIC_TITLES[difference.metric]}: {difference.first} less {difference.second}"
    description = (
        f"{title}, in points, by class with {100 * level:g} % intervals over test images; the mean over "
        f"{count(len(difference.classes), 'class')} is {points(difference.difference)}"
    )
    sides = (
        f"\N{LEFTWARDS ARROW} {short_label(difference.second)} better",
        f"{short_label(difference.first)} better \N{RIGHTWARDS ARROW}",
    )
    axis = f"difference in points, {100 * level:g} % intervals"
    return Forest(title, description, sides, rows, x.ticks(), axis, TOP + ROW * len(rows), _at(x, 0.0))


def rank_plot(ranking: Ranking) -> Forest:
    """The mean rank of each method, the best first; a bar spans methods that are not told apart."""
    ranks = dict(zip(ranking.labels, ranking.ranks, strict=True))
    x = Axis(1, len(ranks), LEFT + 10, RIGHT - 10)
    order = sorted(ranks, key=lambda label: ranks[label])
    rows = [
        Mark(short_label(label), TOP + ROW * (number + 0.5), _at(x, ranks[label]), None, None, f"{ranks[label]:.2f}")
        for number, label in enumerate(order)
    ]
    bars = []
    for number, group in enumerate(ranking.groups):
        start, end = _at(x, ranks[group[0]]) - 4, _at(x, ranks[group[-1]]) + 4
        bars.append(Bar(start, round(end - start, 1), TOP + ROW * len(rows) + 4 + 8 * number, 4))
    title = f"{METRIC_TITLES[ranking.metric]}: mean ranks over {count(ranking.classes, 'class')}"
    listed = ", ".join(f"{label} {ranks[label]:.2f}" for label in order)
    description = f"{title}: {listed}; critical difference {ranking.critical:.2f}"
    ticks = [Tick(_at(x, float(rank)), str(rank)) for rank in range(1, len(ranks) + 1)]
    axis = f"mean rank; a bar spans what is not told apart: critical difference {ranking.critical:.2f}"
    bottom = TOP + ROW * len(rows) + (8 * len(bars) + 4 if bars else 0)
    return Forest(title, description, ("\N{LEFTWARDS ARROW} better", ""), rows, ticks, axis, bottom, None, bars)


def forest_svg(comparisons: Sequence[Comparison]) -> str:
    """All plots of the comparisons, one below the other, as an SVG file for light and dark."""
    plots, y = [], 0.0
    for comparison in comparisons:
        found = [forest(difference, comparison.level) for difference in comparison.differences]
        found += [rank_plot(ranking) for ranking in comparison.rankings]
        for plot in found:
            plots.append((y, benchmark_title(comparison.benchmark), plot))
            y += plot.height + GAP
    style = "".join(map(read_asset, ("colors.css", "forest.css")))
    return make_environment().get_template("forest.svg.jinja").render(plots=plots, height=math.ceil(y), style=style)


def _ends(tested: Tested | OverClasses | None) -> tuple[float, float] | None:
    """The ends of an interval, where there is one."""
    if tested is None or tested.low is None or tested.high is None:
        return None
    return tested.low, tested.high


def _at(x: Axis, value: float) -> float:
    return round(float(x.at(np.array(value))), 1)
