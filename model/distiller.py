"""The contract that losses, maps and metrics rely on: images -> pairs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from model.checkpoints import load_checked
from model.fast_convolution import use_fast_gradients
from model.fold_batch_norm import fold_batch_norms
from model.precision import autocast
from model.teacher import Teacher


class Distiller(nn.Module):
    """images (B, 3, S, S) -> pairs (teacher, student), each of one shape (B, C, H, W), finest first.

    The parts arrive built. Bottleneck, student and, where there is one, projection train; the teacher is frozen by
    construction. All compute with the teacher's precision.

    With `recenter` pairs are compared without their means over the positions: what all of an image has in common, such
    as its light, is no anomaly. Source: Dinomaly2's context-aware recentering, with the mean where it has the class
    token of a transformer.
    """

    def __init__(
        self,
        teacher: Teacher,
        bottleneck: nn.Module,
        student: nn.Module,
        projection: nn.Module | None = None,
        *,
        recenter: bool = False,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.bottleneck = bottleneck
        self.student = student
        self.projection = projection
        self.recenter = recenter

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        features = self.teacher(images)  # E1, E2, E3
        student = self.student_features(features)
        return [self.pair(*levels) for levels in zip(features, student, strict=True)]  # (E1, D1), (E2, D2), (E3, D3)

    def pair(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, H, W) of one level as they are compared: as they are, or less their means."""
        return (_recentered(teacher), _recentered(student)) if self.recenter else (teacher, student)

    def student_features(self, features: list[Tensor], projected: list[Tensor] | None = None) -> list[Tensor]:
        """E1, E2, E3, just computed or cached -> D1, D2, D3: the half that trains.

        `projected` are the features after `project`, for a caller that has them already.
        """
        projected = self.project(features) if projected is None else projected
        with autocast(features[0].device, self.teacher.precision):
            phi = self.bottleneck(projected)
            return self.student(phi, features)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """The teacher's features as the bottleneck gets them: projected where there is a projection (RD++)."""
        if self.projection is None:
            return features
        with autocast(features[0].device, self.teacher.precision):
            return self.projection(features)

    def use_fast_gradients(self) -> Distiller:
        """Itself, channels last and with matrix-product gradients where they are faster; equal up to rounding."""
        for _, part in self._trained_parts():
            use_fast_gradients(part)
        return self.to(memory_format=torch.channels_last)

    def to_inference(self, channels_last: bool = True) -> Distiller:
        """A copy for inference alone, its batch norms folded, equal up to rounding; it shares the teacher."""
        frozen = self.frozen_copy()
        for _, part in frozen._trained_parts():
            fold_batch_norms(part)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return frozen.to(memory_format=layout).eval()

    def frozen_copy(self) -> Distiller:
        """A copy in evaluation mode, without gradients; it shares the teacher."""
        frozen = {name: copy.deepcopy(part).requires_grad_(False) for name, part in self._trained_parts()}
        return Distiller(self.teacher, **frozen, recenter=self.recenter).eval()

    def trainable(self) -> list[nn.Parameter]:
        """Every parameter that an optimizer should see."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, dict[str, Tensor]]:
        """The state of the trained parts, part by part; the teacher is left out."""
        return {name: part.state_dict() for name, part in self._trained_parts()}

    def load_trained_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Load what `trained_state` gave; ValueError where parts, names or shapes do not fit."""
        parts = dict(self._trained_parts())
        if set(state) != set(parts):
            raise ValueError(f"the checkpoint holds {sorted(state)}, but this model has {sorted(parts)}")
        for name, part in parts.items():
            load_checked(part, state[name], f"the checkpoint's {name}")

    def _trained_parts(self) -> list[tuple[str, nn.Module]]:
        return [(name, part) for name, part in self.named_children() if part is not self.teacher]


def _recentered(features: Tensor) -> Tensor:
    """Features (B, C, H, W), in fp32 at least, less the mean of each channel over the positions."""
    at_least_fp32 = torch.promote_types(features.dtype, torch.float32)
    return features - features.mean(dim=(2, 3), keepdim=True, dtype=at_least_fp32)
