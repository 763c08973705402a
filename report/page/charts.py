"""Charts as numbers: where lines, bars, ticks and labels lie in a drawing; charts.html.jinja makes SVG of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from report.rendering import count
from scoring.curves import Points, thinned

WIDTH, HEIGHT = 300, 216  # of a chart, in units of its drawing
LEFT, RIGHT, TOP, BOTTOM = 42, 290, 10, 178  # of the area inside the axes
DRAWN = 2e-3  # of an axis: no point of a line that is left out lies farther from it, half a unit
WIDE_RIGHT, WIDE_TOP, WIDE_BOTTOM = 470, 22, 160  # of a histogram; above its top stands the threshold
BINS = 30


@dataclass(frozen=True)
class Tick:
    """A label on an axis, at x or y of the drawing."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line as the `d` of an SVG path; `style` is the number of its class, `dashed` a second kind of line."""

    path: str
    style: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines in a box; `limit` is an x of the drawing that is marked, with a text."""

    title: str
    description: str
    labels: tuple[str, str]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    limit: Tick | None = None


@dataclass(frozen=True)
class Bar:
    """A rectangle of the drawing."""

    x: float
    width: float
    y: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """Scores of normal images as bars that rise, of anomalous ones as bars that fall from the same axis.

    `threshold` is its x; `rug` are the x of the normal images that it was taken from.
    """

    description: str
    normal: Sequence[Bar]
    anomalous: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    middle: float
    threshold: Tick | None = None
    rug: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Axis:
    """Values low..high at start..end of the drawing, on a logarithmic scale where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, values: np.ndarray) -> np.ndarray:
        """Values -> places in the drawing."""
        values, low, high = (np.log10(v) if self.log else np.asarray(v) for v in (values, self.low, self.high))
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[Tick]:
        """Round values within the range, some five."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            values = [10.0**power for power in powers]
            if len(values) < 2:
                values = [digit * 10.0**power for power in range(-12, 12) for digit in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
            values = [
                step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            ]
        inside = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9) or value == 0]
        return [Tick(round(float(self.at(np.array(value))), 1), f"{value:.6g}") for value in inside]


def unit_chart(
    title: str, labels: tuple[str, str], curves: Sequence[tuple[Points, int]], limit: float | None = None
) -> Chart:
    """Curves of rates, both axes 0..1, each with the number of its style; `limit` is a rate that is marked."""
    x, y = Axis(0, 1, LEFT, RIGHT), Axis(0, 1, BOTTOM, TOP)
    lines = [Line(path_of(x, y, points), style) for points, style in curves]
    mark = None if limit is None else Tick(round(float(x.at(np.array(limit))), 1), f"limit {limit:g}")
    description = f"{title}: {labels[1]} against {labels[0]}, {count(len(curves), 'run')}"
    return Chart(title, description, labels, x.ticks(), y.ticks(), lines, mark)


def loss_chart(histories: Sequence[tuple[Points, int, bool]]) -> Chart | None:
    """Losses by epoch, each with the number of its style, and whether it is that of held-out images; None without any.

    The axis is logarithmic where the losses span more than a factor of ten.
    """
    epochs = np.concatenate([points[:, 0] for points, *_ in histories]) if histories else np.empty(0)
    if not epochs.size:
        return None
    losses = np.concatenate([points[:, 1] for points, *_ in histories])
    low, high = float(losses.min()), float(losses.max())
    log = low > 0 and high > 10 * low
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    y = Axis(low / 1.1, high * 1.1, BOTTOM, TOP, log) if log else Axis(low - margin, high + margin, BOTTOM, TOP)
    first, last = float(epochs.min()), float(epochs.max())
    x = Axis(first, last, LEFT, RIGHT) if first < last else Axis(first - 1, first + 1, LEFT, RIGHT)
    ticks = [tick for tick in x.ticks() if "." not in tick.text]
    lines = [Line(path_of(x, y, points), style, dashed) for points, style, dashed in histories]
    return Chart("Training loss", f"Loss by epoch, {low:.3g} to {high:.3g}", ("epoch", "loss"), ticks, y.ticks(), lines)


def histogram(normal: np.ndarray, anomalous: np.ndarray, threshold: float | None, rug: Sequence[float]) -> Histogram:
    """Scores (n,) and (m,), a threshold and the scores it was taken from -> bars on one scale of scores and counts.

    The threshold is an edge of bins: no bar holds scores of both sides.
    """
    normal, anomalous = normal.astype(float), anomalous.astype(float)  # compared with the threshold as decisions are
    marked = np.array([] if threshold is None else [threshold], float)
    every = np.concatenate([normal, anomalous, marked, rug])
    low, high = float(every.min()), float(every.max())
    edges = _edges(low, high, threshold)
    x = Axis(edges[0], edges[-1], LEFT + 4, WIDE_RIGHT)
    counts = [np.histogram(scores, edges)[0] for scores in (normal, anomalous)]
    most = [max(1, int(found.max())) for found in counts]
    unit = (WIDE_BOTTOM - WIDE_TOP) / sum(most)
    middle = round(WIDE_TOP + most[0] * unit, 1)
    places = x.at(edges)
    normal_bars = [
        Bar(*place, round(middle - n * unit, 1), round(n * unit, 1)) for place, n in _bars(places, counts[0])
    ]
    anomalous_bars = [Bar(*place, middle, round(n * unit, 1)) for place, n in _bars(places, counts[1])]
    y_ticks = [Tick(WIDE_TOP, str(most[0])), Tick(middle, "0"), Tick(WIDE_BOTTOM, str(most[1]))]
    mark = None if threshold is None else Tick(round(float(x.at(marked)[0]), 1), f"threshold {threshold:.4g}")
    rug_places = np.round(x.at(np.array(rug, float)), 1).tolist()
    found = f"{len(normal)} normal, {len(anomalous)} anomalous"
    description = f"Histogram of image scores from {low:.4g} to {high:.4g}: {found}"
    if threshold is not None:
        above = [int((scores > threshold).sum()) for scores in (normal, anomalous)]
        description += f"; {above[0]} normal and {above[1]} anomalous ones lie above the threshold"
    return Histogram(description, normal_bars, anomalous_bars, x.ticks(), y_ticks, middle, mark, rug_places)


def _edges(low: float, high: float, threshold: float | None) -> np.ndarray:
    """The edges of some BINS equal bins over low..high; one lies just above the threshold."""
    width = (high - low) / BINS or 1.0
    start = low if threshold is None else float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
    first, last = math.floor((low - start) / width), math.floor((high - start) / width) + 1
    return start + width * np.arange(first, last + 1)


def _bars(places: np.ndarray, counts: np.ndarray) -> list[tuple[tuple[float, float], int]]:
    """((x, width), count) of each bin that is not empty, with a gap beside it."""
    starts, width = np.round(places[:-1], 1).tolist(), round(float(places[1] - places[0]) - 1, 1)
    return [((x, width), n) for x, n in zip(starts, counts.tolist(), strict=True) if n]


def path_of(x: Axis, y: Axis, points: Points) -> str:
    """The line through the points, thinned to what can be seen, as the `d` of an SVG path."""
    places = np.stack([x.at(points[:, 0]), y.at(points[:, 1])], axis=1)
    few = np.rint(10 * thinned(places, DRAWN)).astype(int)
    moves = np.diff(few, axis=0)
    start = f"M{_tenth(few[0, 0])} {_tenth(few[0, 1])}"
    return start + "".join(f"l{_tenth(dx)} {_tenth(dy)}" for dx, dy in moves.tolist() if dx or dy)


def _tenth(tenths: int) -> str:
    return f"{tenths / 10:g}"


def joined(columns: Iterable[np.ndarray]) -> Points:
    """Columns of one length -> points (n, 2)."""
    return np.stack([np.asarray(column, float) for column in columns], axis=1)
