"""What is timed: this project as main.py builds it, the published loop as benchmarks/plain.py restates it, packages.

The functions that return a Call build an implementation; a process of its own can call them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks import plain
from benchmarks.data import CLASS_NAME, anomaly_maps
from benchmarks.timing import Call
from config import Config
from dataset import ImageSet, image_batches
from detector import frozen_teacher
from engine import train_one_epoch
from experiment import Experiment
from methods import build_distiller
from model import Distiller, Teacher
from model.fast_convolution import use_fast_gradients
from scoring.metrics import compute_metrics
from utils import seed_everything, to_device

PUBLISHED_METRICS = ("image_auroc", "pixel_auroc", "aupro_per_image")  # those that the published loop computes
TIMM_NAMES = {"wide_res50": "wide_resnet50_2", "res50": "resnet50", "res34": "resnet34", "res18": "resnet18"}


@dataclass(frozen=True)
class Settings:
    """The sizes, the device and the folder that all implementations share.

    images        training images, and as many test images
    repeats       timed rounds
    root          holds the images and the teacher's weights
    precisions    those in which this project is timed
    subprocesses  each implementation runs in a process of its own
    """

    net: str
    image_size: int
    batch_size: int
    images: int
    repeats: int
    device: torch.device
    root: Path
    precisions: tuple[str, ...] = ("fp32",)
    subprocesses: bool = True

    def config(self, **changes: Any) -> Config:
        """The Config of a run on these images with this teacher."""
        sizes = {"net": self.net, "image_size": self.image_size, "batch_size": self.batch_size}
        weights = str(self.root / "teacher.pth")
        return Config(classes=(CLASS_NAME,), data_path=self.root, weights=weights, **sizes, **changes)  # type: ignore[arg-type]

    def order(self, count: int) -> list[int]:
        """The shuffled indices of `count` training images."""
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(0)).tolist()[:count]


class ThisProject(Experiment):
    """This project's run on the first `settings.images` images; equal Configs start from equal weights."""

    def __init__(self, settings: Settings, **changes: Any) -> None:
        super().__init__(settings.config(**changes), settings.device)
        self.count = settings.images
        with warnings.catch_warnings():  # the random teacher is not the file that torchvision publishes
            warnings.filterwarnings("ignore", message=".*other weights give other results")
            self.teacher  # noqa: B018 - built now

    def images(self, split: str) -> ImageSet:
        """The first images of a split."""
        images = super().images(split)
        return ImageSet(images.samples[: self.count], images.size, images.mask_threshold)

    def train(self, order: Sequence[int]) -> dict[str, float]:
        """The mean losses of one pass over the training images in this order."""
        training, recipe = self.config.training, self.config.recipe
        batches = self.features.batches(order, training.batch_size)
        return train_one_epoch(self.distiller, batches, self.optimizer, recipe, training.accumulate)


class WithoutFastGradients(ThisProject):
    """This project in channels-last layout, but with torch's own weight gradients."""

    def __init__(self, settings: Settings, **changes: Any) -> None:
        super().__init__(settings, **changes, fast=False)

    @cached_property
    def teacher(self) -> Teacher:
        """In channels-last layout."""
        return frozen_teacher(replace(self.config, fast=True), self.device)

    @cached_property
    def distiller(self) -> Distiller:
        """In channels-last layout, its convolutions torch's own."""
        return super().distiller.to(memory_format=torch.channels_last)


class WithoutChannelsLast(ThisProject):
    """This project in torch's default layout, but with weight gradients by matrix products."""

    def __init__(self, settings: Settings, **changes: Any) -> None:
        super().__init__(settings, **changes, fast=False)

    @cached_property
    def distiller(self) -> Distiller:
        """In the default layout, its weight gradients matrix products."""
        distiller = super().distiller
        for part in (distiller.bottleneck, distiller.student):
            use_fast_gradients(part)
        return distiller


def published(settings: Settings) -> tuple[plain.Plain, list[Any]]:
    """The published loop's network with this project's initial weights, and the training and test samples."""
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
    arguments = (samples, order, settings.image_size, settings.batch_size)
    return lambda: np.mean(plain.train(network, optimizer, *arguments))


def our_training(
    settings: Settings, changes: dict[str, Any], count: int, project: type[ThisProject] = ThisProject
) -> Call:
    """A pass over `count` images after the cache is filled; its mean loss."""
    ours, order = project(settings, **changes), settings.order(count)
    ours.features  # noqa: B018 - filled now
    return lambda: ours.train(order)["loss"]


def our_cache_filling(settings: Settings, changes: dict[str, Any]) -> Call:
    """Computing the teacher's features of all training images, once before the first epoch."""
    ours = ThisProject(settings, **changes)

    def call() -> None:
        ours.cache_features(ours.train_images)

    return call


class PrecomputedNetwork(nn.Module):
    """Returns outputs that were computed beforehand, one per batch, over and over."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        super().__init__()
        self.outputs, self.turn = outputs, -1

    def forward(self, images: torch.Tensor) -> Any:
        self.turn += 1
        return self.outputs[self.turn % len(self.outputs)]


@torch.no_grad()
def plain_evaluation(settings: Settings, precomputed: bool = False) -> Call:
    """Scoring the test set, from files to metrics; `precomputed`: without the time of the network."""
    network, (_, samples) = published(settings)
    network.eval()
    size, device, scored = settings.image_size, settings.device, cast(nn.Module, network)
    if precomputed:
        images = plain.decoded_batches(samples, range(len(samples)), size, 1)
        scored = PrecomputedNetwork([network(image.to(device)) for image in images])

    def call() -> list[float]:
        metrics = plain.evaluate(scored, samples, size, device)
        return [metrics[name] for name in PUBLISHED_METRICS]

    return call


@torch.no_grad()
def our_evaluation(settings: Settings, changes: dict[str, Any], precomputed: bool = False) -> Call:
    """Scoring the test set, from files to all metrics; `precomputed`: without the time of the network."""
    ours = ThisProject(settings, **changes)
    detector, images = ours.detector(), ours.test_images
    if precomputed:
        batches = image_batches(images, range(len(images)), detector.batch_size, ours.config.workers)
        outputs = [detector.network(to_device(pixels, ours.device)) for _, pixels in batches]
        detector.network = cast(Distiller, PrecomputedNetwork(outputs))

    def call() -> list[float]:
        metrics = detector.evaluate(images).report.values
        return [metrics[name] for name in PUBLISHED_METRICS if name in metrics]

    return call


def plain_inference(settings: Settings, count: int) -> Call:
    """Decoded images to their anomaly maps, one at a time."""
    network, (_, samples) = published(settings)
    network.eval()
    batches = plain.decoded_batches(samples[:count], range(count), settings.image_size, 1)
    images = [image.to(settings.device) for image in batches]
    return lambda: np.stack([plain.predict(network, image) for image in images])


class InMemory(ImageSet):
    """An image set whose images are decoded when it is made."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.samples, images.size, images.mask_threshold)
        self.pixels = [images.image(index) for index in range(len(images))]

    def image(self, index: int) -> np.ndarray:
        """(3, size, size) in 0..255."""
        return self.pixels[index]


def our_inference(settings: Settings, changes: dict[str, Any], count: int) -> Call:
    """Decoded images to their anomaly maps, batch by batch."""
    ours = ThisProject(settings, **changes)
    images = InMemory(ImageSet(ours.test_images.samples[:count], ours.test_images.size))
    detector = ours.detector()
    return lambda: np.concatenate([maps for _, maps in detector.score_batches(images)])


def plain_metrics(count: int, size: int) -> Call:
    """The published AUPRO over a set of anomaly maps."""
    maps, masks = anomaly_maps(count, size)
    return lambda: plain.aupro(masks, maps)


def our_metrics(count: int, size: int) -> Call:
    """All seven exact metrics of a set of anomaly maps."""
    maps, masks = anomaly_maps(count, size)

    def call() -> None:
        compute_metrics(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)), maps, masks, per_image=False)

    return call


def adeval_metrics(count: int, size: int) -> Call:
    """adeval's approximate AUROC, AP and AUPRO of a set of anomaly maps; it is given the range of the scores."""
    maps, masks = anomaly_maps(count, size)
    low, high = float(maps.min()), float(maps.max())
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    integer_masks = masks.astype(np.uint8)
    if not hasattr(np, "trapz"):  # adeval 1.1.0 calls it by the name that NumPy 2.4 removed
        setattr(np, "trapz", np.trapezoid)  # noqa: B010 - mypy knows no np.trapz

    def call() -> None:
        accumulator = import_module("adeval").EvalAccumulator(low, high, low, high)
        accumulator.add_anomap_batch(maps, integer_masks)
        accumulator.add_image(scores, labels)
        accumulator.summary()

    return call


def anomalib_network(settings: Settings) -> Any:
    """anomalib's ReverseDistillation network with random weights; nothing is downloaded."""
    package = "anomalib.models.image.reverse_distillation"
    network = import_module(f"{package}.torch_model").ReverseDistillationModel(
        backbone=TIMM_NAMES[settings.net],
        input_size=(settings.image_size, settings.image_size),
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=import_module(f"{package}.anomaly_map").AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )
    return network.to(settings.device)


def anomalib_training(settings: Settings) -> Call:
    """A training step on a decoded batch, with the loss and the optimizer of anomalib's Lightning module."""
    network = anomalib_network(settings).train()
    compute_loss = import_module("anomalib.models.image.reverse_distillation.loss").ReverseDistillationLoss()
    trained = [*network.decoder.parameters(), *network.bottleneck.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.005, betas=(0.5, 0.99))
    samples = Experiment(settings.config(), settings.device).train_images.samples
    order, count = settings.order(settings.batch_size), settings.batch_size
    images = next(plain.decoded_batches(samples, order, settings.image_size, count)).to(settings.device)

    def call() -> None:
        loss = compute_loss(*network(images))
        loss.item()  # the Lightning module logs it
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


def anomalib_inference(settings: Settings, count: int) -> Call:
    """A batch of `count` decoded images to anomaly maps and image scores."""
    network = anomalib_network(settings).eval()
    samples = Experiment(settings.config(), settings.device).test_images.samples
    images = next(plain.decoded_batches(samples, range(count), settings.image_size, count)).to(settings.device)

    @torch.no_grad()
    def call() -> None:
        predictions = network(images)
        predictions.anomaly_map.cpu(), predictions.pred_score.cpu()

    return call


def whole_run(settings: Settings, changes: dict[str, Any], classes: int = 1) -> Call:
    """One class after the other: caching, one epoch, scoring the test set; no run folder is written."""

    def call() -> None:
        for seed in range(classes):
            ours = ThisProject(settings, seeds=(seed,), **changes)
            ours.train(settings.order(settings.images))
            ours.detector().evaluate(ours.test_images)

    return call


def enlarged(settings: Settings, factor: int) -> Settings:
    """The same settings at a larger image size."""
    return replace(settings, image_size=factor * settings.image_size)
