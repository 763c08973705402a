"""The bottleneck: the teacher's three levels are fused and compressed into one embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.blocks import BasicBlock, Block, down_stage, initialize


class MFF(nn.Module):
    """Teacher levels, finest first -> (B, out_channels, S/16, S/16): all three at the coarsest size, side by side.

    The two finer levels are brought there by 3x3 convolutions of stride 2.
    Source: RD4AD's multi-scale feature fusion (MFF), section 3.3, and its published code, less a 1x1 convolution that
    the code builds and never calls.
    """

    def __init__(self, channels: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        _, middle, coarse = widths
        self.reduce0 = nn.Sequential(*_convolved(channels[0], middle), *_convolved(middle, coarse))
        self.reduce1 = nn.Sequential(*_convolved(channels[1], coarse))
        self.out_channels = 2 * coarse + channels[2]

    def forward(self, levels: list[Tensor]) -> Tensor:
        fine, middle, coarse = levels
        # three tensors at S/16, concatenated along the channels
        return torch.cat([self.reduce0(fine), self.reduce1(middle), coarse], dim=1)


class MSFF(MFF):
    """`MFF`, then a 1x1 convolution, ReLU and batch norm down to the coarsest width.

    Source: the multi-scale feature fusion (MSFF) of ICCK's masked reverse distillation; the width is our choice.
    """

    def __init__(self, channels: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        super().__init__(channels, widths)
        self.mix = nn.Sequential(
            nn.Conv2d(self.out_channels, widths[2], 1, bias=False), nn.ReLU(inplace=True), nn.BatchNorm2d(widths[2])
        )
        self.out_channels = widths[2]

    def forward(self, levels: list[Tensor]) -> Tensor:
        return self.mix(super().forward(levels))


class MFCF(nn.Module):
    """Teacher levels, finest first -> (B, widths[2], S/16, S/16): each joined to the next coarser one, then convolved.

    Source: DRD's multi-scale feature cascade fusion (MFCF), by its published code.
    """

    def __init__(self, channels: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        _, middle, coarse = widths
        self.fine = nn.Sequential(*_convolved(channels[0], middle))
        self.middle = nn.Sequential(*_convolved(middle + channels[1], 2 * coarse))
        self.coarse = nn.Sequential(*_convolved(2 * coarse + channels[2], coarse, stride=1))
        self.out_channels = coarse

    def forward(self, levels: list[Tensor]) -> Tensor:
        fine, middle, coarse = levels
        x = torch.cat([self.fine(fine), middle], dim=1)  # at S/8
        x = torch.cat([self.middle(x), coarse], dim=1)  # at S/16
        return self.coarse(x)


FUSIONS: dict[str, type[MFF] | type[MFCF]] = {
    "mff": MFF,
    "msff": MSFF,
    "mfcf": MFCF,
}


class OCBE(nn.Module):
    """E1, E2, E3 -> phi (B, out_channels, S/32, S/32), the one-class bottleneck embedding.

    `fusion` joins the levels, `attention` modules (of as many channels) follow it, `blocks` residual blocks squeeze.
    While training, `dropout` is the share of the values that is set to 0 before the blocks.
    Source: RD4AD, section 3.3; the attention is ICCK's SCSAtt. The dropout is Dinomaly's noisy bottleneck: the network
    learns to restore normal features from a code in which something is wrong. As there, each value is dropped by
    itself, not a whole channel: an anomaly is local, too. The place is our choice, Dinomaly's bottleneck being an MLP.
    """

    def __init__(
        self,
        fusion: MFF | MFCF,
        out_channels: int,
        attention: Sequence[nn.Module] = (),
        block: Block = BasicBlock,
        blocks: int = 1,
        base_width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.attention = nn.Sequential(*attention)
        self.dropout = nn.Dropout(dropout)  # the identity at 0, and in evaluation
        self.out_channels = out_channels
        self.embed = down_stage(block, fusion.out_channels, out_channels, blocks, base_width=base_width)
        initialize(self)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return self.embed(self.dropout(self.attention(self.fusion(levels))))  # phi


def _convolved(inputs: int, outputs: int, stride: int = 2) -> list[nn.Module]:
    """3x3 convolution, of stride 2 unless told, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
