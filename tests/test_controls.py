"""The controls against their definitions, and the table that the command prints of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import MakeTree

from commandline import exit_code
from dataset import ImageSet
from experiment import Experiment
from flags import parse
from model import build_teacher
from scripts.controls import main, nearest_neighbor_maps, z_score_maps


@pytest.fixture
def images(mvtec_tree: MakeTree) -> tuple[ImageSet, ImageSet]:
    config = parse(["--data_path", str(mvtec_tree()), "--class", "bottle", "--image_size", "64"])
    one = Experiment(config, torch.device("cpu"))
    return one.normal_images, one.test_images


def test_the_z_score_counts_standard_deviations_at_a_place(images: tuple[ImageSet, ImageSet]) -> None:
    train, test = images
    maps = list(z_score_maps(train, test, workers=0))
    normal = np.stack([train.image(i) for i in range(len(train))]).astype(float)
    deviation = np.abs(test.image(0) - normal.mean(axis=0)) / (normal.std(axis=0) + 1)
    assert maps[0].mean() == pytest.approx(deviation.mean(), rel=0.02)  # smoothing keeps the mean, but for the border
    assert maps[0].std() < deviation.mean(axis=0).std()


def test_a_training_image_is_its_own_nearest_neighbor(images: tuple[ImageSet, ImageSet]) -> None:
    train, test = images
    teacher = build_teacher("efficientnet_lite0", "random")
    itself = np.stack(list(nearest_neighbor_maps(teacher, train, train, 4, 0)))
    other = np.stack(list(nearest_neighbor_maps(teacher, train, test, 4, 0)))
    assert itself.max() < 0.05 * other.max()


def test_the_command_prints_a_row_per_control_and_class(
    mvtec_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mvtec_tree(classes=("bottle", "cable"), train=4)
    arguments = f"--data-path {root} --net efficientnet_lite0 --image_size 64 --workers 0".split()
    assert exit_code(lambda: main(arguments)) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:3] for line in lines[:3]] == [
        ["pixel", "z-score", "bottle"],
        ["pixel", "z-score", "cable"],
        ["pixel", "z-score", "mean"],
    ]
    assert len(lines) == 6
    assert all(0 <= float(value) <= 1 for line in lines for value in line.split()[-3:])
