"""Toy images, a toy benchmark, and the quick settings that tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# Real offline weights, 64 pixels, no reading ahead, repeatable to the bit.
TINY = "--net efficientnet_lite0 --image_size 64 --batch_size 4 --workers 0 --device cpu --deterministic".split()

MakeTree = Callable[..., Path]


def paint(path: Path, rng: np.random.Generator, defect: bool, size: int = 64) -> np.ndarray:
    """A noisy stripe pattern, with a bright disc if `defect`; returns the mask that was painted, (size, size) bool."""
    rows, columns = np.mgrid[:size, :size]
    image = 120 + 40 * np.sin(columns / 3 + rng.uniform(0, 0.5)) + rng.normal(0, 6, (size, size))
    mask = np.zeros((size, size), bool)
    if defect:
        y, x = rng.integers(16, size - 16, 2)
        mask = (rows - y) ** 2 + (columns - x) ** 2 <= 81
        image[mask] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).convert("RGB").save(path)
    return mask


SQUARE = ((6, 16, 16), (10, 8, 8), (12, 4, 4))
ODD = ((3, 15, 22), (5, 7, 11), (4, 3, 5))  # neither square nor halved exactly


def make_pairs(shapes=SQUARE, dtype=torch.float32, batch=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pairs = []
    for shape in shapes:
        teacher, student = torch.randn(2, batch, *shape, generator=draw, dtype=torch.float64).to(dtype)
        pairs.append((teacher, student.requires_grad_()))
    return pairs


def doubled(pairs):
    return [(teacher.double(), student.double()) for teacher, student in pairs]
