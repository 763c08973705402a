"""Images to time with: a striped surface, discs as its defects, in the MVTec layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASS_NAME = "bottle"


def write_images(folder: Path, counts: tuple[int, int, int], side: int, seed: int = 0) -> None:
    """One class in its folder: so many training, normal test and defective test images of `side` pixels."""
    normal, good, defective = counts
    rng = np.random.default_rng(seed)
    for number in range(normal):
        _save(surface(side, rng), folder / f"train/good/{number:03}.png")
    for number in range(good):
        _save(surface(side, rng), folder / f"test/good/{number:03}.png")
    for number in range(defective):
        image, mask = surface(side, rng), disc(side, rng)
        image[mask] = 250
        _save(image, folder / f"test/disc/{number:03}.png")
        _save(mask * np.uint8(255), folder / f"ground_truth/disc/{number:03}_mask.png")


def scored_maps(count: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps (count, side, side) float32 and masks of the same shape, bool, every other one empty: a fair detector's."""
    rng = np.random.default_rng(seed)
    masks = np.stack([disc(side, rng) & bool(number % 2) for number in range(count)])
    maps = rng.gamma(2.0, 0.1, masks.shape).astype(np.float32)
    maps[masks] += 0.3
    return maps, masks


def surface(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) uint8: stripes and noise; of 1024 pixels its file has 1.2 MB, MVTec's have 0.9 on average."""
    stripes = 120 + 40 * np.sin(np.arange(side) * (24 * np.pi / side) + rng.uniform(0, 0.5))
    noise = rng.normal(0, 1, (side, side, 1)) + rng.normal(0, 0.3, (side, side, 3))
    return np.clip(stripes[:, None] + noise, 0, 255).astype(np.uint8)


def disc(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side) bool: a disc of a tenth of the side in radius."""
    rows, columns = np.ogrid[:side, :side]
    y, x = rng.integers(side // 5, side - side // 5, 2)
    return (rows - y) ** 2 + (columns - x) ** 2 <= (side / 10) ** 2


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)
