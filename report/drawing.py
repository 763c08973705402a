"""Lines and text on RGB arrays: contours of maps between their pixels, and one line of text in any script."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

from utils import printable

Color = tuple[int, int, int]
Font = tuple[int, int]  # size in pixels, weight

DARK: Color = (32, 32, 32)
SHIFT = 4  # binary places of the coordinates that OpenCV draws at
EDGE = 2  # pixels of a line with its dark edges
ELLIPSIS = "…"
REGULAR, BOLD = 400, 700  # weights
PLAIN: Font = (13, REGULAR)


def contours(values: np.ndarray, level: float) -> list[np.ndarray]:
    """Map (S, S) -> closed curves (n, 2) of (row, column) around what lies above the level; (0, 0) is a pixel's center.

    Each point lies where the values cross the level between two neighbors (marching squares, Lorensen and Cline 1987).
    At the border of the map the curves follow its outermost pixels.
    """
    from skimage.measure import find_contours  # slow to import

    outside = level - 1e3 * max(1.0, abs(level))  # so far below that the level is crossed right at the border
    curves = find_contours(np.pad(values, 1, constant_values=outside), level)
    return [np.clip(curve - 1, 0, np.subtract(values.shape, 1)) for curve in curves]


def on_panel(curves: Sequence[np.ndarray], grid: tuple[int, int], panel: tuple[int, int]) -> list[np.ndarray]:
    """Points (n, 2) of (row, column) on a grid -> the same places on a panel over which the grid is stretched."""
    return [(curve + 0.5) * np.divide(panel, grid) - 0.5 for curve in curves]


def draw_curves(image: np.ndarray, groups: Sequence[tuple[Sequence[np.ndarray], Color]]) -> None:
    """Draw closed curves (n, 2) of (row, column), each group in its color, with dark edges that show on bright images.

    All edges lie below all colors, so that no group hides another. Colors are drawn twice, since OpenCV draws a line
    between two rows of pixels at half its strength.
    """
    points = [[np.rint(curve[:, ::-1] * 2**SHIFT).astype(np.int32) for curve in curves] for curves, _ in groups]
    for curves in points:
        cv2.polylines(image, curves, True, DARK, EDGE, cv2.LINE_AA, SHIFT)
    for curves, (_, color) in zip(points, groups, strict=True):
        cv2.polylines(image, [*curves, *curves], True, color, 1, cv2.LINE_AA, SHIFT)


def draw_cross(image: np.ndarray, center: Sequence[float] | np.ndarray, color: Color, arm: int = 5) -> None:
    """Draw a diagonal cross with its center at (row, column)."""
    y, x = (round(float(place)) for place in center)
    for shade, thickness in ((DARK, 4), (color, 2)):
        for sign in (-1, 1):
            cv2.line(image, (x - arm, y - sign * arm), (x + arm, y + sign * arm), shade, thickness, cv2.LINE_AA)


def draw_text(image: np.ndarray, text: str, at: tuple[float, float], color: Color, font: Font = PLAIN) -> int:
    """Draw a line of text from (x, y), the left end of its baseline.

    Returns x of its right end.
    """
    x, y = map(round, at)
    cv2.putText(image, text, (x, y), color, _face(), *font)
    return x + text_width(text, font)


def text_width(text: str, font: Font = PLAIN) -> int:
    """Pixels from the left to the right end of a line of text."""
    left, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), _face(), *font)
    return max(0, left + width)


def one_line(text: str) -> str:
    """Any name as it is drawn: control characters escaped, letters and their accents composed (NFC)."""
    return unicodedata.normalize("NFC", printable(text))


def shorten(text: str, width: int, font: Font = PLAIN) -> str:
    """The text, or as much of both its ends as `width` pixels hold, around an ellipsis: names may differ there."""
    if text_width(text, font) <= width:
        return text
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        kept = (fits + too_many) // 2
        fits, too_many = (kept, too_many) if text_width(_ends(text, kept), font) <= width else (fits, kept)
    return _ends(text, fits)


def _ends(text: str, kept: int) -> str:
    """`kept` characters of the text, half of them from its end, around an ellipsis."""
    last = kept // 2
    return text[: kept - last] + ELLIPSIS + text[len(text) - last :]


@functools.cache
def _face() -> cv2.FontFace:
    """OpenCV's own font, with Latin, Greek, Cyrillic and Chinese letters; Pillow's has only those of ASCII."""
    return cv2.FontFace("sans")
