"""Overlays: an image, its anomaly map on a fixed color scale, the outline of the mask, and the score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset import Sample, load_mask
from readers.image_io import read_rgb
from utils import write_atomically

HEIGHT = 256  # pixels of each panel
BANNER = 26
WHITE, DARK = (255, 255, 255), (32, 32, 32)


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float], mask: np.ndarray | None, caption: str
) -> np.ndarray:
    """Image (H, W, 3) RGB and map (S, S) -> the image, and beside it the image under the map, with a caption below.

    Returns (h, 2w, 3) RGB uint8. `scale` are the two scores at which the map is clear and fully colored; its opacity
    grows with the score. The outline of the mask (S, S) is white in both panels.
    """
    height, width = HEIGHT, max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
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
    banner = np.full((BANNER, 2 * width, 3), DARK, np.uint8)
    cv2.putText(banner, caption, (8, BANNER - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, WHITE, 1, cv2.LINE_AA)
    return np.concatenate([np.concatenate(panels, axis=1), banner])


def overlay_names(samples: Sequence[Sample]) -> list[str]:
    """The file name of each sample, <defect>_<stem>; the second sample of the same name gets _2, and so on."""
    counts: Counter[str] = Counter()
    names = []
    for sample in samples:
        name = f"{sample.defect}_{sample.image.stem}"
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return names


class OverlayWriter:
    """Writes the overlays of samples, batch by batch, as `folder`/<name>.png, on one color scale."""

    def __init__(self, folder: Path, samples: Sequence[Sample], scale: tuple[float, float]) -> None:
        self.folder, self.samples, self.scale = folder, samples, scale
        self.names = overlay_names(samples)

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
