"""The contract that losses, maps and metrics rely on: images -> pairs."""

from __future__ import annotations

from torch import Tensor, nn

from model.states import load_checked
from model.teacher import Teacher

Pair = tuple[Tensor, Tensor]


class Distiller(nn.Module):
    """images (B, 3, S, S) -> pairs (teacher, student), each of one shape (B, C, H, W), finest first.

    The parts arrive built. Only bottleneck and student train; the teacher is frozen by construction.
    """

    def __init__(self, teacher: Teacher, bottleneck: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.bottleneck = bottleneck
        self.student = student

    def forward(self, images: Tensor) -> list[Pair]:
        return self.rebuild(self.teacher(images))

    def rebuild(self, targets: list[Tensor]) -> list[Pair]:
        """The half that trains: the teacher's levels, just computed or cached -> pairs."""
        levels = self.student(self.bottleneck(targets), targets)
        return list(zip(targets, levels, strict=True))

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
