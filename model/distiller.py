"""The contract that losses, maps and metrics rely on: images -> pairs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from discrepancy import Pair
from model.convolution import with_fast_gradients
from model.folding import fold_batch_norms
from model.precision import lowered
from model.states import load_checked
from model.teacher import Teacher


class Distiller(nn.Module):
    """images (B, 3, S, S) -> pairs (teacher, student), each of one shape (B, C, H, W), finest first.

    The parts arrive built. Bottleneck, student and, where there is one, projection train; the teacher is frozen by
    construction. All compute with the teacher's precision.
    """

    def __init__(
        self, teacher: Teacher, bottleneck: nn.Module, student: nn.Module, projection: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.bottleneck = bottleneck
        self.student = student
        self.projection = projection

    def made_fast(self) -> Distiller:
        """Itself, laid out channels last, with gradients by matrix products: equal up to rounding."""
        for _, part in self._trained_parts():
            with_fast_gradients(part)
        return self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Pair]:
        return self.rebuild(self.teacher(images))

    def rebuild(self, targets: list[Tensor]) -> list[Pair]:
        """The half that trains: the teacher's levels, just computed or cached -> pairs."""
        return list(zip(targets, self.student_levels(targets), strict=True))

    def project(self, targets: list[Tensor]) -> list[Tensor]:
        """The teacher's levels as the bottleneck gets them: projected where there is a projection."""
        if self.projection is None:
            return targets
        with lowered(targets[0].device, self.teacher.precision):
            return self.projection(targets)

    def student_levels(self, targets: list[Tensor], projected: list[Tensor] | None = None) -> list[Tensor]:
        """What the student makes of the teacher's levels, finest first; `projected` saves a second `project`."""
        projected = self.project(targets) if projected is None else projected
        with lowered(targets[0].device, self.teacher.precision):
            return self.student(self.bottleneck(projected), targets)

    def for_scoring(self) -> Distiller:
        """A copy for evaluation alone, its batch norms folded, equal up to rounding; it shares the teacher."""
        frozen = {name: copy.deepcopy(part).eval().requires_grad_(False) for name, part in self._trained_parts()}
        for part in frozen.values():
            fold_batch_norms(part)
        return Distiller(self.teacher, **frozen).to(memory_format=torch.channels_last).eval()

    def trainable(self) -> list[nn.Parameter]:
        """Every parameter that an optimiser should see."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, dict[str, Tensor]]:
        """What training changed, part by part; the teacher is left out."""
        return {name: part.state_dict() for name, part in self._trained_parts()}

    def load_trained_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `trained_state` gave; ValueError where parts, names or shapes do not fit."""
        parts = dict(self._trained_parts())
        if set(state) != set(parts):
            raise ValueError(f"the checkpoint holds {sorted(state)}, but this model has {sorted(parts)}")
        for name, part in parts.items():
            load_checked(part, state[name], f"the checkpoint's {name}")

    def _trained_parts(self) -> list[tuple[str, nn.Module]]:
        return [(name, part) for name, part in self.named_children() if part is not self.teacher]
