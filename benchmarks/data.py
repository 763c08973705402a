"""Synthetic images to time with: a striped surface with discs as defects, in the MVTec layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASS_NAME = "bottle"


def write_images(folder: Path, counts: tuple[int, int, int], size: int, seed: int = 0) -> None:
    """Write the folder of one class: `counts` training, normal test and anomalous test images, size x size pixels."""
    train, good, anomalous = counts
    rng = np.random.default_rng(seed)
    for number in range(train):
        _save(striped_image(size, rng), folder / f"train/good/{number:03}.png")
    for number in range(good):
        _save(striped_image(size, rng), folder / f"test/good/{number:03}.png")
    for number in range(anomalous):
        image, mask = striped_image(size, rng), disc_mask(size, rng)
        image[mask] = 250
        _save(image, folder / f"test/disc/{number:03}.png")
        _save(mask * np.uint8(255), folder / f"ground_truth/disc/{number:03}_mask.png")


def anomaly_maps(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Anomaly maps (count, size, size) float32, as of a fair detector, and their masks, bool; every other one empty."""
    rng = np.random.default_rng(seed)
    masks = np.stack([disc_mask(size, rng) & bool(number % 2) for number in range(count)])
    maps = rng.gamma(2.0, 0.1, masks.shape).astype(np.float32)
    maps[masks] += 0.3
    return maps, masks


def striped_image(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8: stripes and noise. At 1024 pixels the file has 1.2 MB; MVTec's have 0.9 on average."""
    stripes = 120 + 40 * np.sin(np.arange(size) * (24 * np.pi / size) + rng.uniform(0, 0.5))
    noise = rng.normal(0, 1, (size, size, 1)) + rng.normal(0, 0.3, (size, size, 3))
    return np.clip(stripes[:, None] + noise, 0, 255).astype(np.uint8)


def disc_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) bool: a disc whose radius is a tenth of the size."""
    rows, columns = np.ogrid[:size, :size]
    y, x = rng.integers(size // 5, size - size // 5, 2)
    return (rows - y) ** 2 + (columns - x) ** 2 <= (size / 10) ** 2


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)
