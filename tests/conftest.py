"""Toy benchmarks painted into a temporary folder, and the commands run in-process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commandline import exit_code
from main import main

# Small and quick: real offline weights, 64 pixels, one thread of reading.
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


@pytest.fixture
def mvtec_tree(tmp_path: Path) -> MakeTree:
    """A function that paints classes in the MVTec layout and returns the root."""

    def make(
        classes: Sequence[str] = ("bottle",), train: int = 8, good: int = 3, bad: int = 3, root: str = "mvtec"
    ) -> Path:
        for number, name in enumerate(classes):
            rng = np.random.default_rng(number)
            folder = tmp_path / root / name
            for i in range(train):
                paint(folder / f"train/good/{i:03}.png", rng, defect=False)
            for i in range(good):
                paint(folder / f"test/good/{i:03}.png", rng, defect=False)
            for i in range(bad):
                mask = paint(folder / f"test/disc/{i:03}.png", rng, defect=True)
                target = folder / f"ground_truth/disc/{i:03}_mask.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(target)
        return tmp_path / root

    return make


@pytest.fixture
def train_command() -> Callable[..., int]:
    """main.py in-process with the tiny settings; returns the exit code."""

    def command(*arguments: object) -> int:
        return exit_code(lambda: main([*TINY, *map(str, arguments)]))

    return command
