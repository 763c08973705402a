"""The bottleneck: three levels of the teacher squeezed into one embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from model.blocks import Block, down_stage, initialise


class OCBE(nn.Module):
    """Teacher levels, finest first -> embedding (B, 2 * widths[2], S/32, S/32), the one-class bottleneck embedding.

    The two finer levels are brought to the coarsest level's size by 3x3 convolutions of stride 2, all three are
    concatenated, and residual blocks squeeze them. For a ResNet `widths` are the teacher's `channels`.
    Source: RD4AD, section 3.3, and its published code, less a 1x1 convolution that the code builds and never calls.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        widths: tuple[int, ...] | None = None,
        block: Block = BasicBlock,
        blocks: int = 1,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        _, middle, coarse = widths or channels
        self.reduce0 = nn.Sequential(*_halve(channels[0], middle), *_halve(middle, coarse))
        self.reduce1 = nn.Sequential(*_halve(channels[1], coarse))
        self.out_channels = 2 * coarse
        self.embed = down_stage(block, 2 * coarse + channels[2], self.out_channels, blocks, base_width=base_width)
        initialise(self)

    def forward(self, levels: list[Tensor]) -> Tensor:
        fine, middle, coarse = levels
        # three tensors at S/16, concatenated along the channels
        fused = torch.cat([self.reduce0(fine), self.reduce1(middle), coarse], dim=1)
        return self.embed(fused)


def _halve(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3 convolution of stride 2, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
