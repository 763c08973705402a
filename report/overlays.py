"""Overlays: an image, its anomaly map on a fixed color scale, the outline of the mask, and the score."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset import Sample, load_mask
from readers.image_io import read_rgb
from utils import printable, sweep_partials, write_atomically

HEIGHT = 256  # pixels of each panel
WIDTHS = (HEIGHT // 4, 4 * HEIGHT)  # the narrowest and the widest panel: an image beyond lies between dark bars
LONGEST = 200  # bytes of a file name, before its number and .png
BANNER = 26
WHITE, DARK = (255, 255, 255), (32, 32, 32)


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float], mask: np.ndarray | None, caption: str
) -> np.ndarray:
    """Image (H, W, 3) RGB and map (S, S) -> the image, and beside it the image under the map, with a caption below.

    Returns (HEIGHT + BANNER, 2w, 3) RGB uint8, w within WIDTHS. `scale` are the two scores at which the map is clear
    and fully colored; its opacity grows with the score. The outline of the mask (S, S) is white in both panels.
    """
    height, width = _fitted_size(*image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    low, high = scale
    heat = cv2.resize(np.clip((anomaly_map - low) / (high - low), 0, 1), (width, height))
    colors = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    opacity = np.clip(heat * 2, 0, 0.65)[..., None]
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    panels = [image.copy(), np.rint((1 - opacity) * gray + opacity * colors).astype(np.uint8)]
    if mask is not None and mask.any():
        outline, _ = cv2.findContours(
            cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST),
            cv2.RETR_EXTERNAL,
            cv2.CHAIN_APPROX_NONE,
        )
        for panel in panels:
            cv2.drawContours(panel, outline, -1, DARK, 3, cv2.LINE_AA)
            cv2.drawContours(panel, outline, -1, WHITE, 1, cv2.LINE_AA)
    panels = [_on_dark(panel) for panel in panels]
    banner = np.full((BANNER, 2 * panels[0].shape[1], 3), DARK, np.uint8)
    cv2.putText(banner, printable(caption), (8, BANNER - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, WHITE, 1, cv2.LINE_AA)
    return np.concatenate([np.concatenate(panels, axis=1), banner])


def _fitted_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of an image in its panel: of height HEIGHT, or of the largest width where that would be wider."""
    scale = min(HEIGHT / height, WIDTHS[1] / width)
    if scale < HEIGHT / height:
        return max(1, round(height * scale)), WIDTHS[1]
    return HEIGHT, max(1, round(width * HEIGHT / height))


def _on_dark(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) in the middle of a panel, with dark bars where it is lower or narrower."""
    height, width = image.shape[:2]
    if height == HEIGHT and width >= WIDTHS[0]:
        return image
    panel = np.full((HEIGHT, max(width, WIDTHS[0]), 3), DARK, np.uint8)
    top, left = (HEIGHT - height) // 2, (panel.shape[1] - width) // 2
    panel[top : top + height, left : left + width] = image
    return panel


def overlay_names(samples: Sequence[Sample]) -> list[str]:
    """The file name of each sample, <defect>_<stem>; one that is taken gets the first free one of _2, _3 and so on.

    A sample whose own name is x_2 keeps it, wherever it stands. Upper and lower case are the same, as on some disks. A
    separator in a defect's name becomes _, and a long name is cut and gets a checksum.
    """
    own = [_plain_name(f"{sample.defect}_{sample.image.stem}") for sample in samples]
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
    """Writes the overlays of samples, batch by batch, as `folder`/<name>.png, on one color scale.

    What killed processes left in the folder is removed first.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], scale: tuple[float, float]) -> None:
        self.folder, self.samples, self.scale = folder, samples, scale
        self.names = overlay_names(samples)
        sweep_partials(folder)

    def write(self, first: int, maps: np.ndarray, scores: np.ndarray) -> None:
        """Write the overlays of a batch that starts with sample number `first`: maps (B, S, S) and scores (B,)."""
        for number, (anomaly_map, score) in enumerate(zip(maps, scores, strict=True), start=first):
            sample, name = self.samples[number], self.names[number]
            mask = load_mask(sample, anomaly_map.shape[-1]) if sample.mask is not None else None
            image, caption = np.asarray(read_rgb(sample.image, sample.upright)), f"{name}   score {score:.3f}"
            drawn = overlay(image, anomaly_map, self.scale, mask, caption)
            written, data = cv2.imencode(".png", drawn[..., ::-1])
            assert written, "OpenCV writes PNG"
            write_atomically(self.folder / f"{name}.png", data.tobytes())
