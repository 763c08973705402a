"""What a training step compares: named sets of pairs, each made when a loss first asks for it.

A variant whose losses compare something new adds a property to `Views` and a row to `VIEWS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from discrepancy import Pair, anomaly_map
from model.distiller import Distiller


@dataclass(frozen=True)
class Seen:
    """What the teacher saw of a batch of normal images, and of the same images damaged where a variant wants that.

    clean, damaged  the teacher's levels, finest first, (B, C, H, W) each
    damage          (B, 1, S, S) in [0, 2]: how far each pixel was changed; 0 where it was not
    """

    clean: list[Tensor]
    damaged: list[Tensor] | None = None
    damage: Tensor | None = None


@dataclass(frozen=True)
class View:
    """What a set of pairs needs: a damaged view of the images, a projection."""

    damaged: bool = False
    projected: bool = False


VIEWS = {
    "rebuilt": View(),
    "restored": View(damaged=True),
    "segmented": View(damaged=True),
    "projected": View(damaged=True, projected=True),
    "contrasted": View(damaged=True, projected=True),
    "shuffled": View(projected=True),
}


class Views:
    """The pairs of one step. `levels` are those compared; `noise` is the deviation of noise on damaged features."""

    def __init__(
        self, distiller: Distiller, seen: Seen, levels: tuple[int, ...] = (0, 1, 2), noise: float = 0.0
    ) -> None:
        self.distiller, self.seen, self.levels, self.noise = distiller, seen, levels, noise

    @cached_property
    def rebuilt(self) -> list[Pair]:
        """What the teacher saw, and what the student made of it: every variant's pairs in scoring."""
        return self._pairs(self.seen.clean, self.distiller.student_levels(self.seen.clean, self._projected_clean))

    @cached_property
    def restored(self) -> list[Pair]:
        """What the teacher saw of the clean images, and what the student made of the damaged ones (MRKD, DRD)."""
        return self._pairs(self.seen.clean, self._remade)

    @cached_property
    def segmented(self) -> list[Pair]:
        """One pair: how far the image was changed, and the mean anomaly map of the damaged view, not smoothed (DRD)."""
        assert self.seen.damage is not None
        size = self.seen.damage.shape[-1]
        found = anomaly_map(self._pairs(self._noisy, self._remade), size, mode="mean", sigma=0.0)
        return [(self.seen.damage, found[:, None])]

    @cached_property
    def projected(self) -> list[Pair]:
        """The projections of the damaged and of the clean view (RD++'s reconstruction)."""
        return self._pairs(self._projected_damaged, self._projected_clean)

    @cached_property
    def contrasted(self) -> list[Pair]:
        """The damaged view, and the projection of the clean one (RD++'s contrast)."""
        return self._pairs(self._noisy, self._projected_clean)

    @cached_property
    def shuffled(self) -> list[Pair]:
        """The clean projections as distributions (B, C·H·W), and the same in another order (RD++'s SSOT)."""
        flat = [level.flatten(1).softmax(dim=1) for level in self._projected_clean]
        order = torch.randperm(len(flat[0]), device=flat[0].device)
        return self._pairs(flat, [level[order] for level in flat])

    def _pairs(self, targets: list[Tensor], made: list[Tensor]) -> list[Pair]:
        return [(targets[level], made[level]) for level in self.levels]

    @cached_property
    def _noisy(self) -> list[Tensor]:
        # DRD's code adds the noise in place, so that its segmentation compares with the noisy features as well
        assert self.seen.damaged is not None
        if not self.noise:
            return self.seen.damaged
        return [level + self.noise * torch.randn_like(level) for level in self.seen.damaged]

    @cached_property
    def _remade(self) -> list[Tensor]:
        return self.distiller.student_levels(self._noisy)

    @cached_property
    def _projected_clean(self) -> list[Tensor]:
        return self.distiller.project(self.seen.clean)

    @cached_property
    def _projected_damaged(self) -> list[Tensor]:
        return self.distiller.project(self._noisy)
