"""The highest pixel of a map: the first of several, and outside a mask only beyond the tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from report.panels import ScoredImage
from scoring.peaks import highest_pixel, peak_outside
from scoring.predictions import Rule


def peak_at(row: int, column: int, shape: tuple[int, int]) -> np.ndarray:
    anomaly_map = np.zeros(shape, np.float32)
    anomaly_map[row, column] = 2
    return anomaly_map


def square(shape: tuple[int, int]) -> np.ndarray:
    """True on rows 40 to 59 and columns 30 to 59."""
    mask = np.zeros(shape, bool)
    mask[40:60, 30:60] = True
    return mask


@pytest.mark.parametrize(("shape", "allowed"), [((64, 64), 1), ((256, 256), 4), ((128, 256), 4), ((512, 512), 8)])
def test_a_peak_within_a_sixty_fourth_of_the_side_lies_inside(shape: tuple[int, int], allowed: int) -> None:
    mask = square(shape)
    for distance, outside in ((0, False), (allowed, False), (allowed + 1, True)):
        for row, column in ((39 - distance + 1, 45), (59, 29 - distance + 1)):
            assert peak_outside(peak_at(row, column, shape), mask) == outside, (row, column)
    corner = 39 - allowed + 1, 29  # farther than allowed by the diagonal
    assert peak_outside(peak_at(*corner, shape), mask)


def test_a_mask_without_a_defect_has_no_outside() -> None:
    assert not peak_outside(peak_at(0, 0, (64, 64)), np.zeros((64, 64), bool))


def test_the_prediction_and_the_overlays_take_the_first_of_several_highest_pixels() -> None:
    anomaly_map = np.maximum(peak_at(50, 40, (256, 256)), peak_at(10, 200, (256, 256)))
    assert highest_pixel(anomaly_map) == (10, 200)
    prediction = Rule(1.0).judge(2.0, anomaly_map)
    assert (prediction.y, prediction.x) == (10, 200)
    scored = ScoredImage(np.zeros((8, 8, 3), np.uint8), anomaly_map, 2.0, square((256, 256)))
    assert scored.hit_in_wrong_place(Rule(1.0)) and not scored.hit_in_wrong_place(Rule(2.0))


def test_the_documented_tolerance_is_the_one_in_use() -> None:
    usage = (Path(__file__).parents[1] / "docs/usage.md").read_text(encoding="utf-8")
    assert "4 of 256 pixels" in usage and not peak_outside(peak_at(36, 45, (256, 256)), square((256, 256)))
