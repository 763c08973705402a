"""A large image as overlapping square windows: where they lie, and how their anomaly maps become one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tiling:
    """How large images are cut: scaled to `scale` of their own size, in (0, 1], then into windows that share `overlap`
    of their side, in [0, 1), or more with their neighbors.
    """

    scale: float
    overlap: float

    def scaled(self, own_size: tuple[int, int], side: int) -> tuple[int, int]:
        """(height, width) to which an image of this size is resized; no side is shorter than a window."""
        height, width = (max(side, round(self.scale * length)) for length in own_size)
        return height, width

    def grid(self, size: tuple[int, int], side: int) -> Grid:
        """The windows of an image of this (height, width)."""
        return Grid(size, side, self.overlap)


class Grid:
    """Windows of `side` x `side` pixels that cover an image of (height, width), row by row, evenly spread.

    No side of the image is shorter than a window's: the first and the last window end at its borders.
    """

    def __init__(self, size: tuple[int, int], side: int, overlap: float) -> None:
        self.size, self.side = size, side
        rows, columns = (_starts(length, side, overlap) for length in size)
        self.corners = [(top, left) for top in rows for left in columns]
        self._weights = _weights(size[0], rows, side), _weights(size[1], columns, side)

    def __len__(self) -> int:
        return len(self.corners)

    def cut(self, pixels: np.ndarray, number: int) -> np.ndarray:
        """(C, H, W) -> one window of it, (C, side, side)."""
        top, left = self.corners[number]
        return pixels[:, top : top + self.side, left : left + self.side]

    def add(self, joined: np.ndarray, number: int, anomaly_map: np.ndarray) -> None:
        """Add the map (side, side) of one window to `joined` (H, W), zeros at first and at the end the joined map.

        That is the weighted mean of the windows at each pixel. A window's weight falls linearly from its center to its
        borders, along both sides: there is no seam, and what a network says near a border, beyond which it sees only
        padding, counts least. Where one window alone covers a pixel its value stays as it is, to the bit.
        """
        (top, left), (rows, columns) = self.corners[number], self._weights
        weights = rows[top][:, None] * columns[left]
        joined[top : top + self.side, left : left + self.side] += anomaly_map * weights


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """The first pixels of as few windows as cover a line with this overlap."""
    step = max(1, math.floor(side * (1 - overlap) + 1e-9))
    gaps = -(-(length - side) // step)
    return [i * (length - side) // max(gaps, 1) for i in range(gaps + 1)]


def _weights(length: int, starts: list[int], side: int) -> dict[int, np.ndarray]:
    """{first pixel of a window: its weights (side,) along a line}; they sum up to 1 at each pixel of the line."""
    ramp = np.arange(1, side + 1, dtype=np.float64)
    tent, total = np.minimum(ramp, ramp[::-1]), np.zeros(length)
    for start in starts:
        total[start : start + side] += tent
    return {start: (tent / total[start : start + side]).astype(np.float32) for start in starts}
