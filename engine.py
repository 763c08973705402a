"""The loops: what the student is shown in an epoch, one epoch of training, one pass of scoring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import metrics
from damage import Painter
from dataset import ImageSet
from discrepancy import Normality, Pair, anomaly_map, cosine_distance, image_score, level_maps, refinement
from losses import LOSSES
from model import Distiller, Recipe, Seen, Teacher, Views
from utils import map_ahead

GIB = 2**30


class Targets:
    """What the teacher sees of the training images, batch by batch, computed once where that is exact and fits.

    `cache` says what stays in memory across epochs: `features` (the teacher's levels, in fp32), `images` (resized,
    uint8), `none`; `auto` takes the first that fits `cache_gb` GiB. All give the same levels; `self.cache` is the
    choice that was made. Where `paint` damages the images anew in each epoch, `features` keeps the images too: the
    teacher has to look at the damaged ones every time. Features are filled in one pass over the images.
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
        paint: Painter | None = None,
    ) -> None:
        self.teacher, self.images, self.device, self.workers, self.paint = teacher, images, device, workers, paint
        first = teacher(self._on_device(images.image(0)[None]))
        feature_bytes = len(images) * sum(level.numel() * level.element_size() for level in first)
        image_bytes = len(images) * 3 * images.size**2
        if cache == "auto":
            with_images = feature_bytes + (image_bytes if paint else 0)
            fits = {"features": with_images, "images": image_bytes, "none": 0}
            cache = next(kind for kind, size in fits.items() if size <= cache_gb * GIB)
        self.cache = cache
        self.pixels: np.ndarray | None = None
        self.levels: list[Tensor] | None = None
        if cache == "images" or (cache == "features" and paint):
            self.pixels = np.stack(list(map_ahead(images.image, range(len(images)), workers)))
        if cache == "features":
            # on the GPU where less than half of what is free there is taken, else in main memory
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            place = device if feature_bytes < free / 2 else torch.device("cpu")
            self.levels = [torch.empty((len(images), *level.shape[1:]), device=place) for level in first]
            for indices, pixels in self._pictures(range(len(images)), batch_size):
                for kept, level in zip(self.levels, teacher(self._on_device(pixels)), strict=True):
                    kept[indices] = level.to(place)

    def batches(self, order: Sequence[int], batch_size: int) -> Iterator[Seen]:
        """What is seen of `batch_size` images at a time, on the device; the last batch may be smaller.

        Damage is drawn from a generator that torch's global state seeds.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, ()))) if self.paint else None
        if self.levels is not None and rng is None:  # no picture is needed any more
            for start in range(0, len(order), batch_size):
                yield Seen(self._kept(order[start : start + batch_size]))
            return
        for indices, pixels in self._pictures(order, batch_size):
            images = self._on_device(pixels)
            clean = self.teacher(images) if self.levels is None else self._kept(indices)
            yield Seen(clean) if rng is None else self._damaged(images, clean, rng)

    def _damaged(self, images: Tensor, clean: list[Tensor], rng: np.random.Generator) -> Seen:
        assert self.paint is not None
        images = images / 255.0
        painted = self.paint(images, rng)
        damage = cosine_distance(self.teacher.normalised(painted), self.teacher.normalised(images))
        return Seen(clean, self.teacher(painted), damage[:, None])

    def _kept(self, order: Sequence[int]) -> list[Tensor]:
        """The cached levels of some images."""
        assert self.levels is not None
        indices = torch.as_tensor(order)
        return [level[indices.to(level.device)].to(self.device, non_blocking=True) for level in self.levels]

    def _pictures(self, order: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices, pixels) in this order, from memory or decoded on threads that run ahead of the teacher."""
        if self.pixels is None:
            yield from image_batches(self.images, order, batch_size, self.workers)
            return
        for start in range(0, len(order), batch_size):
            indices = list(order[start : start + batch_size])
            yield indices, self.pixels[indices]

    def _on_device(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels).to(self.device, non_blocking=True)


def image_batches(
    images: ImageSet, order: Sequence[int], batch_size: int, workers: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(indices, pixels (B, 3, S, S) uint8) in this order, decoded on `workers` threads ahead of the reader."""
    decoded = map_ahead(images.image, order, workers)
    for start in range(0, len(order), batch_size):
        indices = list(order[start : start + batch_size])
        yield indices, np.stack([next(decoded) for _ in indices])


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
