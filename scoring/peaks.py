"""The highest pixel of an anomaly map, and whether it lies at a defect."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1 / 64  # of the map's longer side: 4 pixels of 256


def highest_pixel(anomaly_map: np.ndarray) -> tuple[int, int]:
    """Map (H, W) -> (row, column) of its highest pixel, the first of several."""
    row, column = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    return int(row), int(column)


def peak_outside(anomaly_map: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the highest pixel of a map (H, W) lies farther from a mask (H, W) bool than TOLERANCE allows.

    Distances are those between centers of pixels. An empty mask has no outside: False. The tolerance is a share of the
    map's side, since three causes move a peak across the edge of a mask though the defect was found: masks are drawn by
    hand and resized; the teacher's finest features have a stride of 4 pixels; the map is smoothed with a sigma of 4.
    """
    places = np.argwhere(mask)
    if not len(places):
        return False
    nearest = np.hypot(*(places - highest_pixel(anomaly_map)).T).min()
    return bool(nearest > TOLERANCE * max(anomaly_map.shape))
