"""What a variant is made of, how it is trained and how it is scored, as values: a row's worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from model.specs import Skip

SCHEDULES = ("constant", "cosine")


class Term(NamedTuple):
    """One term of the loss: `weight` times the loss `name` over the set `pairs` of `methods.pairs.PAIRS`."""

    name: str
    weight: float = 1.0
    pairs: str = "reconstruction"

    @property
    def label(self) -> str:
        """Its column in train.csv."""
        return self.name if self.pairs == "reconstruction" else f"{self.pairs}_{self.name}"


@dataclass(frozen=True)
class Training:
    """How a variant is trained where the user does not say otherwise; the defaults are RD4AD's.

    epochs           passes over the training images; `epochs_of` has classes of the paper that differ
    steps            the least number of the optimizer's steps, which decides the epochs in their place; 0: `epochs` do
    learning_rate    Adam's step size; `projection_rate` that of the projection, where there is one
    betas            decay rates of Adam's two running means
    weight_decay     L2 penalty, added to the gradient as Adam does
    accumulate       batches whose gradients are summed before a step
    schedule         of both step sizes, one of `SCHEDULES`; cosine: half a cosine, from 1 to `final_rate` times their
                     value, over all steps of the training, as Dinomaly's published code does it (to 0.1)
    average          decay, in [0, 1), of the moving average of the weights over the steps, which is then the result:
                     see `model.averaging.WeightAverage`; 0: the last weights are
    patience         stop after so many epochs without a lower loss on held-out normal images; 0: never
    """

    epochs: int = 200
    epochs_of: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    batch_size: int = 16
    learning_rate: float = 0.005
    projection_rate: float = 0.001
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    accumulate: int = 1
    schedule: str = "constant"
    final_rate: float = 0.01
    average: float = 0.0
    patience: int = 0

    def steps_per_epoch(self, images: int) -> int:
        """The optimizer's steps in an epoch over so many images."""
        return math.ceil(math.ceil(images / self.batch_size) / self.accumulate)

    def epochs_for(self, images: int) -> int:
        """The epochs of a training on so many images: with `steps` whole ones, as few as have them; 0 for no image."""
        if not self.steps:
            return self.epochs
        return math.ceil(self.steps / self.steps_per_epoch(images)) if images else 0

    def rate_factor(self, step: int, total: int) -> float:
        """What the step sizes are multiplied by in a step, counted from 0, of `total` ones: in [0, 1]."""
        if self.schedule == "constant":
            return 1.0
        return self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2


@dataclass(frozen=True)
class Scoring:
    """How pairs become an anomaly map and a map becomes an image score; the defaults are RD4AD's.

    levels       levels that make the map; 0 is the finest
    anomaly_map  how the levels' maps are combined: one of `scoring.modes.MAP_MODES`
    score_num    the image score is the mean of so many largest pixels; 1: the maximum
    refine       the image score is multiplied by DRD's `score_refinement_factor`
    """

    levels: tuple[int, ...] = (0, 1, 2)
    anomaly_map: str = "add"
    score_num: int = 1
    refine: bool = False


@dataclass(frozen=True)
class Recipe:
    """What a variant is made of; the defaults are RD4AD. Raises ValueError for settings that do not go together.

    Parts are named; `methods.build.check_parts` checks the names before anything is built.

    skips           teacher levels added to the student's features on the way
    losses          the terms of the loss; the first one is the distillation loss
    train_levels    levels that the losses compare; 0 is the finest
    fusion          how the bottleneck joins the teacher's levels, one of `model.bottleneck.FUSIONS`
    scconv, simam   attention between fusion and embedding
    dropout         share of the fused features' values that are set to 0 while training, see `model.bottleneck.OCBE`
    fmm             the student's features are partly hidden and generated anew before they are compared
    mask_rate       share of the cells that `fmm` hides; `mask_in_scoring`: not only while training
    projection      a trained projection between the teacher and the bottleneck
    recenter        features are compared less their means over the positions, see `model.Distiller`
    corruption      synthetic anomalies on a second copy of the images, one of
                    `methods.synthetic_anomalies.CORRUPTIONS`, or None
    feature_noise   standard deviation of Gaussian noise on the corrupted images' features
    anomalib        the bottleneck's residual blocks as anomalib builds them: inner width 64 per 64 planes whatever the
                    teacher's, and two basic blocks for ResNet-34 too
    student_width   channels inside the three levels, finest first, of the student of a teacher that is not a ResNet;
                    None: the teacher's own
    student_blocks  residual blocks in each stage of that student and of its bottleneck
    training        how it is trained
    scoring         how it is scored
    """

    skips: tuple[Skip, ...] = ()
    losses: tuple[Term, ...] = (Term("cosine"),)
    train_levels: tuple[int, ...] = (0, 1, 2)
    fusion: str = "mff"
    scconv: bool = False
    simam: bool = False
    dropout: float = 0.0
    fmm: bool = False
    mask_rate: float = 0.2
    mask_in_scoring: bool = False
    projection: bool = False
    recenter: bool = False
    corruption: str | None = None
    feature_noise: float = 0.0
    anomalib: bool = False
    student_width: tuple[int, ...] | None = None
    student_blocks: int = 1
    training: Training = field(default_factory=Training)
    scoring: Scoring = field(default_factory=Scoring)

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(Term(*term) for term in self.losses))
        levels = self.train_levels
        if not levels or list(levels) != sorted(set(levels)) or not set(levels) <= {0, 1, 2}:
            raise ValueError(f"--train_levels {' '.join(map(str, levels))}: one or more of 0, 1, 2, in this order")
        if any(term.name == "consistency" for term in self.losses) and len(levels) < 2:
            raise ValueError("the consistency loss compares levels: it needs two --train_levels, or --layerloss 0")
        if self.student_width is not None and (len(self.student_width) != 3 or min(self.student_width) < 1):
            raise ValueError(f"--student_width must be three positive numbers; found {self.student_width}")
        if self.student_blocks < 1:
            raise ValueError(f"--student_blocks must be positive; found {self.student_blocks}")
