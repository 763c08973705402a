"""Fixtures: a toy benchmark in a temporary folder, and main.py in-process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import TINY, MakeTree, paint

from commandline import exit_code
from config import Config
from dataset import ImageSet
from experiment import Experiment
from main import main
from methods import VARIANTS, build_distiller
from model import Distiller, build_teacher


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


@pytest.fixture(scope="module")
def distiller() -> Distiller:
    """SK-RD4AD around a narrow teacher, both with random weights; one per test file."""
    torch.manual_seed(0)
    return build_distiller(VARIANTS["sk_rd4ad"], build_teacher("efficientnet_lite0", "random"))


@pytest.fixture
def images(mvtec_tree: MakeTree) -> ImageSet:
    """Seven normal images of 64 pixels."""
    config = Config(data_path=mvtec_tree(train=7), classes=("bottle",), image_size=64)
    return Experiment(config, torch.device("cpu")).normal_images
