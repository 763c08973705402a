"""The loops: one epoch of training, one pass of scoring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import metrics
from dataset import ImageSet
from discrepancy import Normality, Pair, anomaly_map, image_score, level_maps, refinement
from losses import LOSSES
from model import Distiller, Recipe, Seen, Views
from targets import image_batches, on_device
from utils import map_ahead


def terms_of(distiller: Distiller, seen: Seen, recipe: Recipe) -> dict[str, Tensor]:
    """The loss of a batch: `loss`, the weighted sum, and each term by its label, all scalars."""
    views = Views(distiller, seen, recipe.train_levels, recipe.feature_noise)
    terms = {term.label: LOSSES[term.name](getattr(views, term.of)) for term in recipe.losses}
    loss = torch.stack([term.weight * terms[term.label] for term in recipe.losses]).sum()
    return {"loss": loss, **terms}


def train_one_epoch(
    distiller: Distiller,
    batches: Iterable[Seen],
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    accumulate: int = 1,
) -> dict[str, float]:
    """One pass over the batches; gradients live in the trained parts only, and are summed over `accumulate` batches.

    What is left over at the end makes a step of its own: nothing is carried into the next epoch. Returns the means
    over images of `loss` and of each of its terms. They are read once, after the last step, so that a GPU never waits;
    a loss that is not finite shows there.
    """
    distiller.train()
    mean = Mean()
    optimiser.zero_grad(set_to_none=True)
    waiting = 0
    for seen in batches:
        terms = terms_of(distiller, seen, recipe)
        terms["loss"].backward()
        waiting += 1
        if waiting == accumulate:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            waiting = 0
        mean.add(terms, len(seen.clean[0]))
    if waiting:
        optimiser.step()
    return mean.values()


@torch.no_grad()
def held_out_loss(distiller: Distiller, batches: Iterable[Seen], recipe: Recipe) -> float:
    """The mean loss over images that are not trained on, as in scoring: running batch norms, nothing hidden."""
    distiller.eval()
    mean = Mean()
    for seen in batches:
        mean.add(terms_of(distiller, seen, recipe), len(seen.clean[0]))
    return mean.values()["loss"]


class Mean:
    """Means of named scalars over images; nothing is read from the device before `values`."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], size: int) -> None:
        """The terms of a batch of `size` images."""
        self.count += size
        for name, value in terms.items():
            self.totals[name] = self.totals.get(name, torch.zeros_like(value)) + size * value.detach()

    def values(self) -> dict[str, float]:
        """The means by name."""
        return {name: float(total) / self.count for name, total in self.totals.items()}


@dataclass(frozen=True)
class Scoring:
    """How pairs become a map and a map becomes a number."""

    levels: tuple[int, ...] = (0, 1, 2)
    anomaly_map: str = "add"
    score_num: int = 1
    batch_size: int = 16
    workers: int = 0
    normality: Normality | None = None  # of the trained student, for standardised maps
    refine: bool = False  # raise image scores as DRD does


@dataclass(frozen=True)
class Evaluation:
    """Scores of a test set: image scores (N,), anomaly maps (N, S, S) float32 if they were to be kept, the masks that
    they were compared with, and the figures made from them.
    """

    scores: np.ndarray
    maps: np.ndarray | None
    masks: list[np.ndarray | None] | None
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
        pairs = distiller(on_device(pixels, device))
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
        scores = image_score(maps, scoring.score_num)
        if scoring.refine:
            scores = scores * refinement(pairs, images.size)
        yield scores.cpu().numpy(), maps.cpu().numpy()


def evaluate(
    distiller: Distiller,
    images: ImageSet,
    device: torch.device,
    scoring: Scoring,
    pixel_figures: bool = True,
    keep_maps: bool = False,
) -> Evaluation:
    """Score a test set once: image figures always, pixel figures where there are masks and they are wanted.

    Maps are kept for the pixel figures, or where asked; 10,000 of 256 pixels are 2.6 GB.
    """
    scores = np.empty(len(images), np.float32)
    compared = pixel_figures and images.has_masks
    maps = np.empty((len(images), images.size, images.size), np.float32) if compared or keep_maps else None
    done = 0
    for batch_scores, batch_maps in predict(distiller, images, device, scoring):
        scores[done : done + len(batch_scores)] = batch_scores
        if maps is not None:
            maps[done : done + len(batch_maps)] = batch_maps
        done += len(batch_scores)
    if compared:
        masks = list(map_ahead(images.mask, range(len(images)), scoring.workers))
        return Evaluation(scores, maps, masks, metrics.evaluate(images.labels, scores, maps, masks))
    report = metrics.evaluate(images.labels, scores)
    why = "no masks" if pixel_figures else "pixel figures were not asked for"
    reasons = {name: reason if name.startswith("image_") else why for name, reason in report.reasons.items()}
    return Evaluation(scores, maps, None, replace(report, reasons=reasons))
