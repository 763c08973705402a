"""Toy pictures, a toy benchmark, and the quick settings that tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

# Real offline weights, 64 pixels, no reading ahead, repeatable to the bit.
TINY = "--net efficientnet_lite0 --image_size 64 --batch_size 4 --workers 0 --device cpu --deterministic".split()

MakeTree = Callable[..., Path]


def paint(path: Path, rng: np.random.Generator, defect: bool, size: int = 64) -> np.ndarray:
    """A noisy stripe pattern, with a bright disc if `defect`; returns the mask that was painted, (size, size) bool."""
    rows, columns = np.mgrid[:size, :size]
    picture = 120 + 40 * np.sin(columns / 3 + rng.uniform(0, 0.5)) + rng.normal(0, 6, (size, size))
    mask = np.zeros((size, size), bool)
    if defect:
        y, x = rng.integers(16, size - 16, 2)
        mask = (rows - y) ** 2 + (columns - x) ** 2 <= 81
        picture[mask] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert("RGB").save(path)
    return mask
