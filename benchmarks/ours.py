"""This project's side of the benchmark, built from a Config as main.py builds it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import parts
from config import Config
from dataset import ImageSet
from engine import Evaluation, evaluate, predict, train_one_epoch
from model import Distiller
from targets import Targets
from utils import seed_everything


def kinds(compiled: bool = False) -> dict[str, dict[str, Any]]:
    """The ways ours is run, by name, as changes of the Config; compiled ones only where asked for."""
    found: dict[str, dict[str, Any]] = {name: {"precision": name} for name in ("fp32", "bf16")}
    if compiled:
        found |= {f"{name}, compiled": {**changes, "compile": True} for name, changes in found.items()}
    return found


class Ours:
    """A freshly initialised distiller and all that trains and scores it; equal Configs start from equal weights."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        with warnings.catch_warnings():  # a random teacher's file is nobody's download
            warnings.filterwarnings("ignore", message=".*other weights give other results")
            teacher = parts.teacher_of(config, device)
        seed_everything(config.title)
        self.distiller = parts.distiller_of(config, teacher)
        self.optimiser = parts.optimiser_of(config, self.distiller, device)
        self.train_images = parts.images_of(config, "train")
        self.test_images = parts.images_of(config, "test")
        self.scoring = parts.scoring_of(config)

    @functools.cached_property
    def targets(self) -> Targets:
        """What the teacher sees, cached as the Config wants it; filled on first use."""
        return parts.targets_of(self.config, self.distiller.teacher, self.train_images, self.device)

    @functools.cached_property
    def scorer(self) -> Distiller:
        """The network as it scores, made from the weights of the first use."""
        return parts.scorer_of(self.config, self.distiller)

    def train(self, order: Sequence[int]) -> dict[str, float]:
        """One pass over the training images of this order."""
        training = self.config.training
        batches = self.targets.batches(order, training.batch_size)
        return train_one_epoch(self.distiller, batches, self.optimiser, self.config.recipe, training.accumulate)

    def evaluate(self, distiller: Distiller | None = None) -> Evaluation:
        """All figures of the test set, by another distiller if one is given."""
        return evaluate(distiller or self.scorer, self.test_images, self.device, self.scoring)

    def predict(self, images: ImageSet) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores and maps, batch by batch."""
        return list(predict(self.scorer, images, self.device, self.scoring))


class InMemory(ImageSet):
    """An image set whose pictures are decoded already, when it is made."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.samples, images.size, images.mask_threshold)
        self.pixels = [images.image(index) for index in range(len(images))]

    def image(self, index: int) -> np.ndarray:
        """(3, size, size) in 0..255."""
        return self.pixels[index]
