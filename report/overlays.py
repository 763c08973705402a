"""Overlays: the panels of an image and its map, a color bar, and a caption with the verdict; a file for each image."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset import Sample, load_mask
from readers.image_io import read_rgb
from report.drawing import BOLD, DARK, REGULAR, Color, draw_cross, draw_text, one_line, shorten, text_width
from report.panels import GAP, MASK, WHITE, ScoredImage, beside, colored, draw_panels, letterbox
from scoring.predictions import Rule
from utils import sweep_partials, write_atomically

WIDTH = 288  # pixels of each panel
HEIGHTS = (96, 432)  # the lowest and the highest panel: an image beyond lies between dark bars
BAR = 76  # pixels to the right of them: the color bar and its numbers
CAPTION = 52
LONGEST = 200  # bytes of a file name, before its number and .png
PALE: Color = (190, 190, 190)
ALARM: Color = (255, 170, 60)
CALM: Color = (84, 84, 84)


def overlay(scored: ScoredImage, scale: tuple[float, float], threshold: Rule | None = None) -> np.ndarray:
    """The image, beside it the image under its map, a color bar, and a caption below.

    Returns (h + CAPTION, 2 * WIDTH + GAP + BAR, 3) RGB uint8, h within HEIGHTS. `scale` and what the panels show are as
    in `draw_panels`.
    """
    panels = draw_panels(scored, scale, (HEIGHTS[1], WIDTH), threshold)
    left, right = (letterbox(panel, (max(len(panel), HEIGHTS[0]), WIDTH)) for panel in panels)
    bar = color_bar(len(left), scale, None if threshold is None else threshold.pixel)
    row = np.concatenate([beside(left, right), bar], axis=1)
    return np.concatenate([row, caption(scored, threshold, row.shape[1])])


def panels_of(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """An overlay -> its two panels; None if it has another width, as those of earlier versions."""
    if drawn.shape[1] != 2 * WIDTH + GAP + BAR:
        return None
    return drawn[:-CAPTION, :WIDTH], drawn[:-CAPTION, WIDTH + GAP : 2 * WIDTH + GAP]


def color_bar(height: int, scale: tuple[float, float], pixel: float | None) -> np.ndarray:
    """(height, BAR, 3): the map's colors over middle gray, the scores at both ends, a tick at the pixel threshold."""
    low, high = scale
    negligible = 0.005 * max(map(abs, scale))
    bar = np.full((height, BAR, 3), DARK, np.uint8)
    top, bottom, left, right = 6, height - 7, 10, 20
    rows = bottom - top
    heat = np.linspace(1, 0, rows + 1, dtype=np.float32)[:, None].repeat(right - left, axis=1)
    bar[top : bottom + 1, left:right] = colored(np.full(heat.shape, 128, np.uint8), heat)
    font, text_left = (11, REGULAR), right + 5
    for end, y in ((high, top + 8), (low, bottom)):
        draw_text(bar, _three_digits(end if abs(end) > negligible else 0.0), (text_left, y), PALE, font)
    if pixel is not None and low <= pixel <= high:
        y = round(bottom - rows * (pixel - low) / (high - low))
        bar[y - 1 : y + 2, left - 4 : right + 3] = DARK
        bar[y, left - 3 : right + 2] = WHITE
        draw_text(bar, _three_digits(pixel), (text_left, min(max(y + 4, top + 22), bottom - 14)), WHITE, font)
    return bar


def _three_digits(value: float) -> str:
    """12345.6 -> 12300"""
    return f"{float(f'{value:.3g}'):g}"


def caption(scored: ScoredImage, threshold: Rule | None, width: int) -> np.ndarray:
    """(CAPTION, width, 3): the verdict and its numbers, below them the name and what the lines mean."""
    banner = np.full((CAPTION, width, 3), DARK, np.uint8)
    x, y = 8, 20
    decides = threshold is not None and threshold.value is not None
    if threshold is not None and decides:
        x = _draw_verdict(banner, threshold.decide(scored.score), (x, y)) + 10
    text = f"score {scored.score:.3f}"
    if threshold is not None and decides:
        text += f"   threshold {threshold.value:.3f}"
        p_value = threshold.p_value(scored.score)
        text += "" if p_value is None else f"   p {p_value:.3f}"
    x = draw_text(banner, text, (x, y), WHITE)
    if scored.hit_in_wrong_place(threshold):
        draw_cross(banner, (y - 5, x + 24), WHITE, arm=4)
        draw_text(banner, "wrong place", (x + 36, y), ALARM, (13, BOLD))
    legend = []
    if threshold is not None and threshold.pixel is not None and scored.any_above(threshold):
        legend.append((f"above {_three_digits(threshold.pixel)}", WHITE))
    legend += [("mask", MASK)] * scored.has_defect
    left = _draw_legend(banner, legend, y + 22)
    draw_text(banner, shorten(one_line(scored.name), left - 20 - 8), (8, y + 22), PALE)
    return banner


def _draw_verdict(banner: np.ndarray, anomalous: bool, at: tuple[int, int]) -> int:
    """NG on a bright ground, OK on a dark one; returns the ground's right end."""
    text, ground, ink = ("NG", ALARM, DARK) if anomalous else ("OK", CALM, WHITE)
    x, y = at
    right = x + 34
    cv2.rectangle(banner, (x, y - 14), (right, y + 4), ground, cv2.FILLED)
    draw_text(banner, text, (x + (35 - text_width(text, (14, BOLD))) / 2, y), ink, (14, BOLD))
    return right


def _draw_legend(banner: np.ndarray, entries: Sequence[tuple[str, Color]], y: int) -> int:
    """Lines in their colors and what they mean, ending at the right; returns the left end."""
    x = banner.shape[1] - 12
    for text, color in reversed(entries):
        x -= text_width(text)
        draw_text(banner, text, (x, y), PALE)
        cv2.line(banner, (x - 26, y - 4), (x - 8, y - 4), color, 2)
        x -= 26 + 18
    return x


def overlay_names(samples: Sequence[Sample]) -> list[str]:
    """The file name of each sample, <defect>_<stem>; one that is taken gets the first free one of _2, _3 and so on.

    A sample whose own name is x_2 keeps it, wherever it stands. Upper and lower case are the same, as on some disks. A
    separator in a defect's name becomes _, and a long name is cut and gets a checksum. In a run over several classes
    the names are <class>/<defect>_<stem>: a folder for each.
    """
    folders = [f"{sample.class_name}/" if sample.class_name else "" for sample in samples]
    plain = [_plain_name(f"{sample.defect}_{sample.image.stem}") for sample in samples]
    own = [folder + name for folder, name in zip(folders, plain, strict=True)]
    owned, taken = {name.casefold() for name in own}, set()
    names, next_number = [], Counter[str]()
    for base in own:
        key, name = base.casefold(), base
        if key in taken:
            number = next_number[key] or 2
            while f"{key}_{number}" in owned or f"{key}_{number}" in taken:
                number += 1
            next_number[key], name = number + 1, f"{base}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _plain_name(name: str) -> str:
    name = name.replace("/", "_").replace(os.sep, "_")
    data = os.fsencode(name)
    return name if len(data) <= LONGEST else f"{data[:LONGEST].decode(errors='ignore')}_{zlib.crc32(data):08x}"


class OverlayWriter:
    """Writes the overlays of samples, batch by batch, as `folder`/<name>.png, on one color scale and of one width.

    With a threshold they say what it decides. What killed processes left in the folder is removed first. `check` as in
    `write_atomically`.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        scale: tuple[float, float],
        threshold: Rule | None = None,
        check: Callable[[], object] | None = None,
    ) -> None:
        self.folder, self.samples, self.scale, self.threshold = folder, samples, scale, threshold
        self.check = check
        self.names = overlay_names(samples)
        sweep_partials(folder)

    def write(self, first: int, maps: np.ndarray, scores: np.ndarray) -> None:
        """Write the overlays of a batch that starts with sample number `first`: B maps (H, W) and scores (B,)."""
        for number, (anomaly_map, score) in enumerate(zip(maps, scores, strict=True), start=first):
            sample, name = self.samples[number], self.names[number]
            mask = load_mask(sample, anomaly_map.shape) if sample.mask is not None else None
            image = np.asarray(read_rgb(sample.image, sample.upright))
            drawn = overlay(ScoredImage(image, anomaly_map, float(score), mask, name), self.scale, self.threshold)
            written, data = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            assert written, "OpenCV writes PNG"
            write_atomically(self.folder / f"{name}.png", data.tobytes(), self.check)
