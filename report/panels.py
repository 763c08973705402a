"""An image and its anomaly map side by side, as overlays and the page draw them: heat, contour, mask, wrong place."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from report.drawing import DARK, Color, contours, draw_cross, draw_curves, on_panel
from scoring.peaks import highest_pixel, peak_outside
from scoring.predictions import Rule

COLORS = cv2.COLORMAP_INFERNO  # ordered by lightness, so that every eye sees the order
PURPLE, YELLOW = 50, 220  # the part of it that is used: below it is black, above it almost white
GAP = 4  # pixels between the two panels
WHITE: Color = (255, 255, 255)
MASK: Color = (40, 225, 255)  # no color of the map comes near it


@dataclass(frozen=True)
class ScoredImage:
    """What is drawn of an image: pixels (H, W, 3) RGB uint8, map (S, S), score, mask (S, S) bool or None, name."""

    image: np.ndarray
    anomaly_map: np.ndarray
    score: float
    mask: np.ndarray | None = None
    name: str = ""

    @property
    def has_defect(self) -> bool:
        """Whether a mask shows where a defect is."""
        return self.mask is not None and bool(self.mask.any())

    def hit_in_wrong_place(self, threshold: Rule | None) -> bool:
        """Whether it is decided NG though the map's highest pixel lies outside the mask of its defect."""
        if threshold is None or self.mask is None:
            return False
        return threshold.decide(self.score) and peak_outside(self.anomaly_map, self.mask)

    def any_above(self, threshold: Rule | None) -> bool:
        """Whether some pixel of the map lies above the pixel threshold."""
        pixel = None if threshold is None else threshold.pixel
        return pixel is not None and float(self.anomaly_map.max()) > pixel


def draw_panels(
    scored: ScoredImage, scale: tuple[float, float], size: tuple[int, int], threshold: Rule | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The image, and the image under its map, each (h, w, 3), as large as fits into `size` (height, width).

    `scale` are the two scores at which the map is clear and fully colored. Both panels show the outline of the mask,
    and with a threshold the contour of what lies above its pixel threshold; a cross marks the highest pixel where that
    is the wrong place.
    """
    image = fit(scored.image, size)
    panels = image, heat_panel(image, scored.anomaly_map, scale)
    grid, shape = scored.anomaly_map.shape, image.shape[:2]
    pixel = None if threshold is None else threshold.pixel
    above = [] if pixel is None else on_panel(contours(scored.anomaly_map, pixel), grid, shape)
    outline = mask_outline(scored.mask, shape)
    in_wrong_place = scored.hit_in_wrong_place(threshold)
    for panel in panels:
        draw_curves(panel, [(above, WHITE), (outline, MASK)])
        if in_wrong_place:
            draw_cross(panel, on_panel([np.array(highest_pixel(scored.anomaly_map))], grid, shape)[0], WHITE)
    return panels


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Panels (h, w, 3) -> (h, 2 * w + GAP, 3), a dark gap between them."""
    return np.concatenate([left, np.full((len(left), GAP, 3), DARK, np.uint8), right], axis=1)


def below(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Panels (h, w, 3) -> (2 * h + GAP, w, 3), a dark gap between them."""
    return beside(top.swapaxes(0, 1), bottom.swapaxes(0, 1)).swapaxes(0, 1)


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (h, w, 3) of the same aspect, as large as fits into (height, width)."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def letterbox(panel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) in the middle of (height, width, 3), between dark bars where it is lower or narrower."""
    height, width = panel.shape[:2]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    bottom, right = size[0] - height - top, size[1] - width - left
    return cv2.copyMakeBorder(panel, top, bottom, left, right, cv2.BORDER_CONSTANT, value=DARK)


def mask_outline(mask: np.ndarray | None, size: tuple[int, int]) -> list[np.ndarray]:
    """Mask (S, S) -> the curves along the edges of its pixels, on a panel of this (height, width)."""
    return [] if mask is None else on_panel(contours(mask.astype(np.float32), 0.5), mask.shape, size)


def heat_panel(image: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Image (h, w, 3) and map (S, S) -> the gray image under the map's colors, whose opacity grows with the score."""
    low, high = scale
    heat = np.clip((anomaly_map - low) / (high - low), 0, 1).astype(np.float32)
    return colored(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.resize(heat, image.shape[1::-1]))


def colored(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Gray values (h, w) under the colors of heat (h, w) in 0..1 -> (h, w, 3)."""
    colors = cv2.applyColorMap((PURPLE + (YELLOW - PURPLE) * heat).astype(np.uint8), COLORS)
    opacity = np.minimum(heat * 2, np.float32(0.65))
    blended = cv2.blendLinear(colors, cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), opacity, 1 - opacity)
    return cv2.cvtColor(blended, cv2.COLOR_BGR2RGB)
