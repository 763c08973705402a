"""One epoch of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.losses import LOSSES, STEPPED
from methods.pairs import PAIRS, StepFeatures, TeacherFeatures
from methods.recipe import Recipe
from model.averaging import WeightAverage
from model.distiller import Distiller
from utils import PULSE


@dataclass(frozen=True)
class Steps:
    """The optimizer's steps of an epoch: the number of the first one, counted from 0, and how many a training has."""

    first: int = 0
    total: int = 1


def compute_losses(
    distiller: Distiller, features: TeacherFeatures, recipe: Recipe, step: int | None = None
) -> dict[str, Tensor]:
    """The loss of a batch: `loss`, the weighted sum, and each term by its label, all scalars.

    `step` is the number of the optimizer's step, counted from 0, for losses that depend on it; None: not in training.
    """
    computed = StepFeatures(distiller, features, recipe.train_levels, recipe.feature_noise)
    terms = {}
    for term in recipe.losses:
        pairs = PAIRS[term.pairs].make(computed)
        terms[term.label] = LOSSES[term.name](pairs, step) if term.name in STEPPED else LOSSES[term.name](pairs)
    loss = torch.stack([term.weight * terms[term.label] for term in recipe.losses]).sum()
    return {"loss": loss, **terms}


def train_one_epoch(
    distiller: Distiller,
    batches: Iterable[TeacherFeatures],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    accumulate: int = 1,
    steps: Steps = Steps(),
    average: WeightAverage | None = None,
) -> dict[str, float]:
    """One pass over the batches; gradients exist in the trained parts only, and are summed over `accumulate` batches.

    What is left over at the end makes a step of its own: nothing is carried into the next epoch. `steps` tells the
    recipe's schedule where in the training this is; the optimizer's own step sizes are as before in the end. `average`
    takes in the weights after each step. Returns the means over images of `loss` and of each of its terms. They are
    read once, after the last step, so that a GPU never waits; a loss that is not finite shows there.
    """
    distiller.train()
    meter = AverageMeter()
    rates = [group["lr"] for group in optimizer.param_groups]
    step = steps.first

    def make_step() -> None:
        nonlocal step
        factor = recipe.training.rate_factor(step, steps.total)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        if average is not None:
            average.update(distiller, step)
        step += 1

    optimizer.zero_grad(set_to_none=True)
    waiting = 0
    for features in batches:
        PULSE.beat()
        losses = compute_losses(distiller, features, recipe, step)
        losses["loss"].backward()
        waiting += 1
        if waiting == accumulate:
            make_step()
            optimizer.zero_grad(set_to_none=True)
            waiting = 0
        meter.add(losses, len(features.clean[0]))
    if waiting:
        make_step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return meter.averages()


@torch.no_grad()
def held_out_loss(distiller: Distiller, batches: Iterable[TeacherFeatures], recipe: Recipe) -> float:
    """The mean loss over images that are not trained on, as in scoring: running batch norms, nothing hidden."""
    distiller.eval()
    meter = AverageMeter()
    for features in batches:
        meter.add(compute_losses(distiller, features, recipe), len(features.clean[0]))
    return meter.averages()["loss"]


class AverageMeter:
    """Averages of named scalars over images; nothing is read from the device before `averages`."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], size: int) -> None:
        """The losses of a batch of `size` images."""
        self.count += size
        for name, value in losses.items():
            self.totals[name] = self.totals.get(name, torch.zeros_like(value)) + size * value.detach()

    def averages(self) -> dict[str, float]:
        """The averages by name."""
        return {name: float(total) / self.count for name, total in self.totals.items()}
