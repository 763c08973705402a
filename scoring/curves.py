"""Curves of image scores and of pixels: ROC, precision against recall, PRO; and fewer points for the same line."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.pixels import PixelCounts

Points = NDArray[np.float64]  # (n, 2) of x and y, in the order in which they are joined

TOLERANCE = 5e-4  # of an axis: no point left out by `thinned` lies farther from the line that is drawn
MOST_POINTS = 300


def image_curves(labels: ArrayLike, scores: ArrayLike) -> dict[str, Points]:
    """Labels (n,) and scores (n,) -> "roc" and "pr", at every distinct score; empty without both kinds of images.

    ROC is the true against the false positive rate, from (0, 0) to (1, 1); PR is precision against recall, from
    (1, share of anomalous images) to (0, 1). At their thresholds the values equal scikit-learn's.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores)
    if labels.all() or not labels.any():
        return {}
    cuts = np.unique(scores)
    found, false = (len(own) - np.searchsorted(np.sort(own), cuts) for own in (scores[labels], scores[~labels]))
    return {"roc": _roc(found, false), "pr": _precision_recall(found, false)}


def pixel_curves(counts: PixelCounts) -> dict[str, Points]:
    """ "pixel_roc", "pixel_pr" as `image_curves`, and "pro": at each score of a defect pixel, and just above it.

    PRO is the mean overlap of the regions against the false positive rate; the area under it up to a limit, over that
    limit, is `aupro`.
    """
    found = np.cumsum(counts.hits[::-1])[::-1]
    reached = np.cumsum(counts.overlap[::-1])[::-1]
    false = np.stack([counts.above + counts.equal, counts.above], 1).reshape(-1)
    found, reached = (np.stack([now, np.append(now[1:], 0)], 1).reshape(-1) for now in (found, reached))
    rates = np.stack([false / counts.n_normal, reached], 1)[::-1]
    pro = _joined([np.zeros((1, 2)), rates, np.array([[1.0, reached[0]]])])
    return {"pixel_roc": _roc(found, false, counts.n_normal), "pixel_pr": _precision_recall(found, false), "pro": pro}


def _roc(found: np.ndarray, false: np.ndarray, n_normal: int | None = None) -> Points:
    """Anomalous and normal ones not below each threshold, thresholds rising -> rates; normal ones: by default all."""
    rates = np.stack([false / (n_normal or false[0]), found / found[0]], 1)[::-1]
    return _joined([np.zeros((1, 2)), rates, np.ones((1, 2))])


def _precision_recall(found: np.ndarray, false: np.ndarray) -> Points:
    some = found + false > 0
    recall, precision = found[some] / found[0], found[some] / (found + false)[some]
    return _joined([np.stack([recall, precision], 1), np.array([[0.0, 1.0]])])


def _joined(parts: list[np.ndarray]) -> Points:
    """The parts in a row, equal neighbors once."""
    points = np.concatenate(parts)
    return points[np.append(True, (points[1:] != points[:-1]).any(axis=1))]


def area(points: Points, limit: float = 1.0) -> float:
    """The area under a line (n, 2) of rising x from 0 to `limit`: the trapezoid rule, cut by a straight line there."""
    x, y = points.T
    inside = x <= limit
    if inside.all():
        return float(np.trapezoid(y, x))
    first = int(np.argmin(inside))
    share = (limit - x[first - 1]) / (x[first] - x[first - 1])
    last = y[first - 1] + share * (y[first] - y[first - 1])
    return float(np.trapezoid(np.append(y[:first], last), np.append(x[:first], limit)))


def thinned(points: Points, tolerance: float = TOLERANCE, most: int = MOST_POINTS) -> Points:
    """The line (n, 2) with fewer of its points, the ends among them.

    Ramer, Douglas and Peucker's rule, the worst place first: the point that is farthest from the line so far is taken
    in, until none is farther than `tolerance` (in units of the axes' ranges) or there are `most`.
    """
    if len(points) <= 2:
        return points
    ranges = np.ptp(points, axis=0)
    unit = points / np.where(ranges > 0, ranges, 1)
    kept, waiting = [0, len(points) - 1], [_farthest(unit, 0, len(points) - 1)]
    while len(kept) < most and waiting:
        distance, middle, first, last = heapq.heappop(waiting)
        if -distance <= tolerance:
            break
        kept.append(middle)
        for start, end in ((first, middle), (middle, last)):
            if end - start > 1:
                heapq.heappush(waiting, _farthest(unit, start, end))
    return points[sorted(kept)]


def _farthest(points: Points, first: int, last: int) -> tuple[float, int, int, int]:
    """(minus the distance from the segment, its number, first, last) of the point between two that is farthest."""
    start, step = points[first], points[last] - points[first]
    own = points[first + 1 : last] - start
    length = float(step @ step)
    along = np.clip(own @ step / length, 0, 1) if length else np.zeros(len(own))
    distances = np.hypot(*(own - along[:, None] * step).T)
    best = int(np.argmax(distances))
    return -float(distances[best]), first + 1 + best, first, last
