"""What the losses of a training step compare: named sets of pairs, each a function of the step's features.

A variant whose losses compare something new adds a function and a row to `PAIRS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model.distiller import Distiller
from scoring.anomaly_map import Pair, anomaly_map


@dataclass(frozen=True)
class TeacherFeatures:
    """The teacher's features of a batch of normal images, and of the same images corrupted, where a variant uses them.

    clean, corrupted  E1, E2, E3: three levels, finest first, (B, C, H, W) each
    corruption_map    (B, 1, S, S) in [0, 2]: how far each pixel was changed; 0 where it was not
    """

    clean: list[Tensor]
    corrupted: list[Tensor] | None = None
    corruption_map: Tensor | None = None


class StepFeatures:
    """All features of one training step, each computed on first use.

    levels  the levels that the losses compare; 0 is the finest
    noise   standard deviation of the Gaussian noise on the corrupted features
    """

    def __init__(
        self, distiller: Distiller, teacher: TeacherFeatures, levels: tuple[int, ...] = (0, 1, 2), noise: float = 0.0
    ) -> None:
        self.distiller, self.teacher, self.levels, self.noise = distiller, teacher, levels, noise

    @cached_property
    def student(self) -> list[Tensor]:
        """The student's features of the clean images."""
        return self.distiller.student_features(self.teacher.clean, self.projected)

    @cached_property
    def corrupted(self) -> list[Tensor]:
        """The teacher's features of the corrupted images, with the recipe's noise.

        DRD's code adds the noise in place, so its segmentation compares with the noisy features as well.
        """
        assert self.teacher.corrupted is not None
        if not self.noise:
            return self.teacher.corrupted
        return [level + self.noise * torch.randn_like(level) for level in self.teacher.corrupted]

    @cached_property
    def student_corrupted(self) -> list[Tensor]:
        """The student's features of the corrupted images."""
        return self.distiller.student_features(self.corrupted)

    @cached_property
    def projected(self) -> list[Tensor]:
        """The clean features after the projection; the features themselves where there is none."""
        return self.distiller.project(self.teacher.clean)

    @cached_property
    def projected_corrupted(self) -> list[Tensor]:
        """The corrupted features after the projection."""
        return self.distiller.project(self.corrupted)

    def pair(self, targets: list[Tensor], features: list[Tensor]) -> list[Pair]:
        """Two lists of all levels -> pairs of the levels that are compared, as `Distiller.pair` makes them."""
        return [self.distiller.pair(targets[level], features[level]) for level in self.levels]


def reconstruction_pairs(step: StepFeatures) -> list[Pair]:
    """Teacher and student on the clean images: the pairs that every variant is scored by (RD4AD)."""
    return step.pair(step.teacher.clean, step.student)


def denoising_pairs(step: StepFeatures) -> list[Pair]:
    """The teacher on the clean images and the student on the corrupted ones (MRKD, DRD)."""
    return step.pair(step.teacher.clean, step.student_corrupted)


def segmentation_pairs(step: StepFeatures) -> list[Pair]:
    """One pair: the corruption map and the mean anomaly map of the corrupted images, not smoothed (DRD)."""
    assert step.teacher.corruption_map is not None
    size = step.teacher.corruption_map.shape[-1]
    found = anomaly_map(step.pair(step.corrupted, step.student_corrupted), size, mode="mean", sigma=0.0)
    return [(step.teacher.corruption_map, found[:, None])]


def projection_pairs(step: StepFeatures) -> list[Pair]:
    """The projections of the corrupted and of the clean images (RD++'s reconstruction)."""
    return step.pair(step.projected_corrupted, step.projected)


def contrastive_pairs(step: StepFeatures) -> list[Pair]:
    """The teacher on the corrupted images and the projection of the clean ones (RD++'s contrast)."""
    return step.pair(step.corrupted, step.projected)


@dataclass(frozen=True)
class PairSet:
    """A row of `PAIRS`: the function that makes the pairs, and what a recipe must have for it."""

    make: Callable[[StepFeatures], list[Pair]]
    needs_corruption: bool = False
    needs_projection: bool = False


PAIRS = {
    "reconstruction": PairSet(reconstruction_pairs),
    "denoising": PairSet(denoising_pairs, needs_corruption=True),
    "segmentation": PairSet(segmentation_pairs, needs_corruption=True),
    "projection": PairSet(projection_pairs, needs_corruption=True, needs_projection=True),
    "contrastive": PairSet(contrastive_pairs, needs_corruption=True, needs_projection=True),
}
