"""The student: reconstructs the teacher's levels from the embedding, coarsest to finest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model.blocks import BasicBlock, Block, initialize, up_stage
from model.specs import Skip


class Student(nn.Module):
    """(embedding, teacher levels) -> its own three levels, finest first, each of its teacher level's shape.

    What is returned for comparison is what a stage made, before any skip is added to it. For a teacher with signed
    features `widths` says how wide the stages are inside, and each ends in a linear 1x1 convolution to the teacher's
    channels: after a ReLU the student could never become negative. Otherwise `widths` is None.
    `blocks` counts the residual blocks of each stage, finest level first. `generation` has a module per level, finest
    first, through which a level goes before it is compared (ICCK's FMM); the next stage reads what was there before.

    Because a skip always joins two tensors in the teacher's own space, it needs no projection, whatever the widths,
    and the same weights serve with and without skips. The published code's ReLU after the addition is left out: on a
    ResNet's features, never negative, it does nothing; on signed ones it would throw half of them away.
    Source: the decoders of the published RD4AD and SK-RD4AD code; the linear ends are ours.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        embedding_channels: int,
        widths: tuple[int, ...] | None = None,
        block: Block = BasicBlock,
        blocks: tuple[int, int, int] = (1, 1, 1),
        base_width: int = 64,
        skips: tuple[Skip, ...] = (),
        generation: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        inputs = (channels[1], channels[2], embedding_channels)
        self.skips = skips
        self.stages = nn.ModuleList()  # stage k makes level k
        for level in range(3):
            stage = up_stage(block, inputs[level], (widths or channels)[level], blocks[level], base_width)
            if widths is not None:
                stage.append(nn.Conv2d(widths[level], channels[level], 1))
            self.stages.append(stage)
        initialize(self)
        self.generation = nn.ModuleList(generation)

    def forward(self, phi: Tensor, teacher_levels: list[Tensor]) -> list[Tensor]:
        sources = {skip.into: skip.source for skip in self.skips}
        features: list[Tensor] = []
        x = phi  # (B, 2048, 8, 8) for a WideResNet-50-2 at 256 pixels
        for level in (2, 1, 0):  # D3 from phi, D2 from D3 (+ E3), D1 from D2 (+ E2)
            if level in sources:
                x = x + teacher_levels[sources[level]]
            x = self.stages[level](x)  # twice the side
            features.append(self.generation[level](x) if self.generation else x)
        return features[::-1]  # D1, D2, D3
