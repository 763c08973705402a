"""The loops: what the student is shown in an epoch, one epoch of training, one pass of scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import metrics
from dataset import ImageSet
from discrepancy import LOSSES, Normality, Pair, anomaly_map, image_score, level_maps
from model import Distiller, Teacher
from utils import map_ahead

GIB = 2**30


class Targets:
    """The teacher's levels of the training images, batch by batch, computed once where that is exact and fits.

    `cache` says what stays in memory across epochs: `features` (the teacher's levels, in fp32), `images` (resized,
    uint8), `none`; `auto` takes the first that fits `cache_gb` GiB. Nothing random precedes the teacher, so all give
    the same levels; `self.cache` is the choice that was made. Features are filled in one pass over the images.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: ImageSet,
        device: torch.device,
        cache: str = "auto",
        cache_gb: float = 4.0,
        batch_size: int = 16,
        workers: int = 0,
    ) -> None:
        self.teacher, self.images, self.device, self.workers = teacher, images, device, workers
        first = self._look([0])
        feature_bytes = len(images) * sum(level.numel() * level.element_size() for level in first)
        image_bytes = len(images) * 3 * images.size**2
        if cache == "auto":
            fits = {"features": feature_bytes, "images": image_bytes, "none": 0}
            cache = next(kind for kind, size in fits.items() if size <= cache_gb * GIB)
        self.cache = cache
        self.pixels: Tensor | None = None
        self.levels: list[Tensor] | None = None
        if cache == "images":
            self.pixels = torch.from_numpy(np.stack(list(map_ahead(images.image, range(len(images)), workers))))
        elif cache == "features":
            # on the GPU where less than half of what is free there is taken, else in main memory
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            place = device if feature_bytes < free / 2 else torch.device("cpu")
            self.levels = [torch.empty((len(images), *level.shape[1:]), device=place) for level in first]
            for indices, levels in self._looks(range(len(images)), batch_size):
                for kept, level in zip(self.levels, levels, strict=True):
                    kept[indices] = level.to(place)

    def _look(self, indices: Sequence[int]) -> list[Tensor]:
        """The teacher's levels of some images, decoded now."""
        return self._see(np.stack([self.images.image(i) for i in indices]))

    def _see(self, pixels: np.ndarray) -> list[Tensor]:
        return self.teacher(torch.from_numpy(pixels).to(self.device, non_blocking=True))

    def _looks(self, order: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], list[Tensor]]]:
        """The teacher's levels of all images in this order, decoded on threads that run ahead of the teacher."""
        for indices, pixels in image_batches(self.images, order, batch_size, self.workers):
            yield indices, self._see(pixels)

    def batches(self, order: Sequence[int], batch_size: int) -> Iterator[list[Tensor]]:
        """Levels of (B, C, H, W) on the device, `batch_size` images at a time; the last batch may be smaller."""
        if self.levels is None and self.pixels is None:
            for _, levels in self._looks(order, batch_size):
                yield levels
            return
        for start in range(0, len(order), batch_size):
            indices = torch.as_tensor(order[start : start + batch_size])
            if self.levels is not None:
                yield [level[indices.to(level.device)].to(self.device, non_blocking=True) for level in self.levels]
            elif self.pixels is not None:
                yield self.teacher(self.pixels[indices].to(self.device, non_blocking=True))


def image_batches(
    images: ImageSet, order: Sequence[int], batch_size: int, workers: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(indices, pixels (B, 3, S, S) uint8) in this order, decoded on `workers` threads ahead of the reader."""
    decoded = map_ahead(images.image, order, workers)
    for start in range(0, len(order), batch_size):
        indices = list(order[start : start + batch_size])
        yield indices, np.stack([next(decoded) for _ in indices])


def train_one_epoch(
    distiller: Distiller,
    batches: Iterator[list[Tensor]],
    optimiser: torch.optim.Optimizer,
    losses: Sequence[tuple[str, float]],
) -> dict[str, float]:
    """One pass over the batches; gradients live in bottleneck and student only.

    Returns the means over images of `loss` (the weighted sum) and of each named loss. They are read once, after the
    last step, so that a GPU never waits; a loss that is not finite shows there.
    """
    distiller.train()
    totals: dict[str, Tensor] = {}
    count = 0
    for targets in batches:
        pairs = distiller.rebuild(targets)
        terms = {name: LOSSES[name](pairs) for name, _ in losses}
        loss = torch.stack([weight * terms[name] for name, weight in losses]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        size = len(targets[0])
        count += size
        for name, value in {"loss": loss, **terms}.items():
            totals[name] = totals.get(name, torch.zeros_like(loss)) + size * value.detach()
    return {name: float(total) / count for name, total in totals.items()}


@dataclass(frozen=True)
class Scoring:
    """How pairs become a map and a map becomes a number."""

    levels: tuple[int, ...] = (0, 1, 2)
    anomaly_map: str = "add"
    score_num: int = 1
    batch_size: int = 16
    workers: int = 0
    normality: Normality | None = None  # of the trained student, for standardised maps


@dataclass(frozen=True)
class Evaluation:
    """Scores of a test set: image scores (N,), anomaly maps (N, S, S) float32, and the figures made from them."""

    scores: np.ndarray
    maps: np.ndarray
    report: metrics.Report

    def figures(self) -> dict[str, float | None]:
        """The figures as JSON takes them: None where a figure is undefined."""
        return {name: None if value != value else float(value) for name, value in self.report.values.items()}


@torch.no_grad()
def scored_pairs(
    distiller: Distiller, images: ImageSet, device: torch.device, scoring: Scoring
) -> Iterator[list[Pair]]:
    """The pairs of the levels that count, batch by batch, in the order of the images."""
    distiller.eval()
    for _, pixels in image_batches(images, range(len(images)), scoring.batch_size, scoring.workers):
        pairs = distiller(torch.from_numpy(pixels).to(device, non_blocking=True))
        yield [pairs[level] for level in scoring.levels]


def ready_to_score(distiller: Distiller, normal_images: ImageSet, device: torch.device, scoring: Scoring) -> Scoring:
    """The scoring with what it needs to know of normal images, for this state of the student: training images only."""
    if scoring.anomaly_map != "standardised":
        return scoring
    batches = scored_pairs(distiller, normal_images, device, scoring)
    return replace(scoring, normality=Normality.of(level_maps(pairs, normal_images.size) for pairs in batches))


@torch.no_grad()
def predict(
    distiller: Distiller, images: ImageSet, device: torch.device, scoring: Scoring
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image scores (B,) and anomaly maps (B, S, S), float32, in the order of the images, while the next ones decode."""
    for pairs in scored_pairs(distiller, images, device, scoring):
        if scoring.normality is not None:
            maps = scoring.normality.standardised(level_maps(pairs, images.size))
        else:
            maps = anomaly_map(pairs, images.size, mode=scoring.anomaly_map)
        yield image_score(maps, scoring.score_num).cpu().numpy(), maps.cpu().numpy()


def evaluate(
    distiller: Distiller, images: ImageSet, device: torch.device, scoring: Scoring, pixel_figures: bool = True
) -> Evaluation:
    """Score a test set once: image figures always, pixel figures where there are masks and they are wanted."""
    scores = np.empty(len(images), np.float32)
    maps = np.empty((len(images), images.size, images.size), np.float32)
    done = 0
    for batch_scores, batch_maps in predict(distiller, images, device, scoring):
        scores[done : done + len(batch_scores)] = batch_scores
        maps[done : done + len(batch_maps)] = batch_maps
        done += len(batch_scores)
    if not pixel_figures:
        report = metrics.evaluate(images.labels, scores)
        unasked = {name: "pixel figures were not asked for" for name in report.reasons if not name.startswith("image_")}
        return Evaluation(scores, maps, replace(report, reasons=report.reasons | unasked))
    masks = list(map_ahead(images.mask, range(len(images)), scoring.workers)) if images.has_masks else None
    return Evaluation(scores, maps, metrics.evaluate(images.labels, scores, maps, masks))
