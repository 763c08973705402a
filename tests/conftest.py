"""Fixtures: a toy benchmark in a temporary folder, and main.py in-process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import CPU, Command, MakeTree, make_mvtec, train

from config import Config
from dataset import ImageSet
from experiment import Experiment
from methods import VARIANTS, build_distiller
from model import Distiller, build_teacher
from model.teacher import TEACHERS, ResNetSpec, TeacherSpec


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches the commands that tests start, also where the tests are a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def mvtec_tree(tmp_path: Path) -> MakeTree:
    """A function that makes classes in the MVTec layout below tmp_path and returns the root; see `toys.make_mvtec`."""

    def make(*arguments: Any, root: str = "mvtec", **counts: Any) -> Path:
        return make_mvtec(tmp_path / root, *arguments, **counts)

    return make


@pytest.fixture
def train_command() -> Command:
    """main.py in-process with the tiny settings; returns the exit code."""

    return train


@pytest.fixture(scope="module")
def distiller() -> Distiller:
    """SK-RD4AD around a narrow teacher, both with random weights; one per test file."""
    torch.manual_seed(0)
    return build_distiller(VARIANTS["sk_rd4ad"], build_teacher("efficientnet_lite0", "random"))


@pytest.fixture
def res10(monkeypatch: pytest.MonkeyPatch) -> str:
    """A teacher's name: ResNet-18 with every other block left out, for what is slow with more."""
    monkeypatch.setitem(TEACHERS, "res10", TeacherSpec("", "", ResNetSpec("basic", (1, 1, 1, 1))))
    return "res10"


@pytest.fixture
def images(mvtec_tree: MakeTree) -> ImageSet:
    """Seven normal images of 64 pixels."""
    config = Config(data_path=mvtec_tree(train=7), classes=("bottle",), image_size=64)
    return Experiment(config, CPU).normal_images
