"""Both sides of the benchmark: this project's as main.py builds it, the published loop as benchmarks/plain.py says it.

The functions that end in a Call are what is timed; a process of its own can make them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks import plain
from benchmarks.data import CLASS_NAME, scored_maps
from benchmarks.timing import Call
from config import Config
from dataset import ImageSet, image_batches
from engine import train_one_epoch
from experiment import Experiment
from methods import build_distiller
from model import Distiller
from scoring.metrics import compute_metrics
from utils import seed_everything, to_device

ALIKE = ("image_auroc", "pixel_auroc", "aupro_per_image")  # the metrics that the published loop makes


@dataclass(frozen=True)
class Settings:
    """What is timed on what; `root` holds the images and the teacher's file."""

    net: str
    image_size: int
    batch_size: int
    images: int
    repeats: int
    device: torch.device
    root: Path
    precisions: tuple[str, ...] = ("fp32",)
    apart: bool = True

    def config(self, **changes: Any) -> Config:
        """The Config of a run on these images with that teacher."""
        same = {"net": self.net, "image_size": self.image_size, "batch_size": self.batch_size}
        weights = str(self.root / "teacher.pth")
        return Config(classes=(CLASS_NAME,), data_path=self.root, weights=weights, **same, **changes)  # type: ignore[arg-type]

    def order(self, count: int) -> list[int]:
        """`count` of the training images, shuffled."""
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(0)).tolist()[:count]


class ThisProject(Experiment):
    """This project's run, with the first `settings.images` images; equal Configs start from equal weights."""

    def __init__(self, settings: Settings, **changes: Any) -> None:
        super().__init__(settings.config(**changes), settings.device)
        self.count = settings.images
        with warnings.catch_warnings():  # a random teacher's file is nobody's download
            warnings.filterwarnings("ignore", message=".*other weights give other results")
            self.teacher  # noqa: B018 - built now

    def images(self, split: str) -> ImageSet:
        """The first images of a split."""
        images = super().images(split)
        return ImageSet(images.samples[: self.count], images.size, images.mask_threshold)

    def train(self, order: Sequence[int]) -> dict[str, float]:
        """One pass over the training images of this order."""
        training, recipe = self.config.training, self.config.recipe
        batches = self.features.batches(order, training.batch_size)
        return train_one_epoch(self.distiller, batches, self.optimizer, recipe, training.accumulate)


def published(settings: Settings) -> tuple[plain.Plain, list[Any]]:
    """The published loop's network, of the weights that ours starts from, and the samples of training and test."""
    ours = ThisProject(settings)
    teacher = plain.TEACHERS[settings.net](weights=None)
    teacher.load_state_dict(torch.load(settings.root / "teacher.pth", weights_only=True))
    seed_everything(ours.config.seed_key)
    distiller = build_distiller(ours.config.recipe, ours.teacher)
    network = plain.Plain(teacher, distiller.bottleneck, distiller.student).to(settings.device)
    return network, [ours.train_images.samples, ours.test_images.samples]


def plain_training(settings: Settings, count: int) -> Call:
    """A pass over `count` images; its mean loss."""
    network, (samples, _) = published(settings)
    optimizer, order = plain.build_optimizer(network), settings.order(count)
    same = (samples, order, settings.image_size, settings.batch_size)
    return lambda: np.mean(plain.train(network, optimizer, *same))


def our_training(settings: Settings, changes: dict[str, Any], count: int) -> Call:
    """A pass over `count` images, everything cached that is ever cached; its mean loss."""
    ours, order = ThisProject(settings, **changes), settings.order(count)
    ours.features  # noqa: B018 - filled now
    return lambda: ours.train(order)["loss"]


def our_filling(settings: Settings, changes: dict[str, Any]) -> Call:
    """What the first epoch pays for the later ones."""
    ours = ThisProject(settings, **changes)

    def call() -> None:
        ours.cache_features(ours.train_images)

    return call


class Remembered(nn.Module):
    """A network that knows its answers to the test images, batch by batch, round and round."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__()
        self.answers, self.turn = answers, -1

    def forward(self, images: torch.Tensor) -> Any:
        self.turn += 1
        return self.answers[self.turn % len(self.answers)]


@torch.no_grad()
def plain_evaluation(settings: Settings, known: bool = False) -> Call:
    """Scoring the test set, from files to metrics; `known`: with the network's answers known beforehand."""
    network, (_, samples) = published(settings)
    network.eval()
    size, device, scored = settings.image_size, settings.device, cast(nn.Module, network)
    if known:
        images = plain.decoded_batches(samples, range(len(samples)), size, 1)
        scored = Remembered([network(image.to(device)) for image in images])

    def call() -> list[float]:
        found = plain.evaluate(scored, samples, size, device)
        return [found[name] for name in ALIKE]

    return call


@torch.no_grad()
def our_evaluation(settings: Settings, changes: dict[str, Any], known: bool = False) -> Call:
    """Scoring the test set, from files to all metrics; `known`: with the network's answers known beforehand."""
    ours = ThisProject(settings, **changes)
    detector, images = ours.detector(), ours.test_images
    if known:
        batches = image_batches(images, range(len(images)), detector.batch_size, ours.config.workers)
        answers = [detector.network(to_device(pixels, ours.device)) for _, pixels in batches]
        detector.network = cast(Distiller, Remembered(answers))

    def call() -> list[float]:
        found = detector.evaluate(images).report.values
        return [found[name] for name in ALIKE if name in found]

    return call


def plain_inference(settings: Settings, count: int) -> Call:
    """Decoded images to their maps, one by one."""
    network, (_, samples) = published(settings)
    network.eval()
    batches = plain.decoded_batches(samples[:count], range(count), settings.image_size, 1)
    images = [image.to(settings.device) for image in batches]
    return lambda: np.stack([plain.predict(network, image) for image in images])


class InMemory(ImageSet):
    """An image set whose images are decoded already, when it is made."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.samples, images.size, images.mask_threshold)
        self.pixels = [images.image(index) for index in range(len(images))]

    def image(self, index: int) -> np.ndarray:
        """(3, size, size) in 0..255."""
        return self.pixels[index]


def our_inference(settings: Settings, changes: dict[str, Any], count: int) -> Call:
    """Decoded images to their maps, batch by batch."""
    ours = ThisProject(settings, **changes)
    images = InMemory(ImageSet(ours.test_images.samples[:count], ours.test_images.size))
    detector = ours.detector()
    return lambda: np.concatenate([maps for _, maps in detector.predict(images)])


def plain_metrics(count: int, side: int) -> Call:
    """The published AUPRO over a set of maps."""
    maps, masks = scored_maps(count, side)
    return lambda: plain.aupro(masks, maps)


def our_metrics(count: int, side: int) -> Call:
    """All seven exact metrics of a set of maps."""
    maps, masks = scored_maps(count, side)

    def call() -> None:
        compute_metrics(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)), maps, masks, per_image=False)

    return call


def adeval_metrics(count: int, side: int) -> Call:
    """The package's approximate AUROC, AP and AUPRO of a set of maps, bounds known to it."""
    maps, masks = scored_maps(count, side)
    low, high = float(maps.min()), float(maps.max())
    images, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    marked = masks.astype(np.uint8)
    if not hasattr(np, "trapz"):  # adeval 1.1.0 calls it by the name that NumPy 2.4 took away
        setattr(np, "trapz", np.trapezoid)  # noqa: B010 - to be read as the name it is

    def call() -> None:
        accumulator = import_module("adeval").EvalAccumulator(low, high, low, high)
        accumulator.add_anomap_batch(maps, marked)
        accumulator.add_image(images, labels)
        accumulator.summary()

    return call


def whole_run(settings: Settings, changes: dict[str, Any], classes: int = 1) -> Call:
    """One class after the other: caching, one epoch, scoring the test set; without what a run folder keeps."""

    def call() -> None:
        for seed in range(classes):
            ours = ThisProject(settings, seeds=(seed,), **changes)
            ours.train(settings.order(settings.images))
            ours.detector().evaluate(ours.test_images)

    return call


def enlarged(settings: Settings, times: int) -> Settings:
    """The same at a larger image size."""
    return replace(settings, image_size=times * settings.image_size)
