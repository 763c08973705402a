"""ResNet blocks, downward and upward."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.specs import EXPANSIONS


class Bottleneck(nn.Module):
    """(B, inputs, H, W) -> (B, 4 * planes, H/stride, W/stride): 1x1, 3x3 with the stride, 1x1, around a shortcut.

    torchvision's block of the same name, by its parameter names, random draws and outputs; that package takes as long
    to import as torch.
    """

    expansion = EXPANSIONS["bottleneck"]

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, base_width: int = 64
    ) -> None:
        super().__init__()
        width = planes * base_width // 64
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class BasicBlock(nn.Module):
    """(B, inputs, H, W) -> (B, planes, H/stride, W/stride): 3x3 with the stride, 3x3, around a shortcut.

    torchvision's block of the same name, as `Bottleneck`.
    """

    expansion = EXPANSIONS["basic"]

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, base_width: int = 64
    ) -> None:
        super().__init__()
        assert base_width == 64, "basic blocks have one width"
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


Block = type[BasicBlock] | type[Bottleneck]
BLOCKS: dict[str, Block] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class UpBottleneck(nn.Module):
    """(B, inputs, H, W) -> (B, 4 * planes, 2H, 2W): 1x1, transposed 2x2 with stride 2, 1x1, around a shortcut.

    Source: the decoder of the published RD4AD code.
    """

    def __init__(self, inputs: int, planes: int, base_width: int = 64) -> None:
        super().__init__()
        width = planes * base_width // 64
        outputs = planes * Bottleneck.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.upsample = _up_shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.upsample(x), inplace=True)


class UpBasic(nn.Module):
    """(B, inputs, H, W) -> (B, planes, 2H, 2W): transposed 2x2 with stride 2, 3x3, around a shortcut.

    Source: the decoder of the published RD4AD code.
    """

    def __init__(self, inputs: int, planes: int, base_width: int = 64) -> None:
        super().__init__()
        assert base_width == 64, "basic blocks have one width"
        self.conv1 = nn.ConvTranspose2d(inputs, planes, 2, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.upsample = _up_shortcut(inputs, planes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.upsample(x), inplace=True)


def _up_shortcut(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs))


def down_stage(
    block: Block, inputs: int, outputs: int, count: int, stride: int = 2, base_width: int = 64
) -> nn.Sequential:
    """`count` residual blocks (B, inputs, H, W) -> (B, outputs, H/stride, W/stride), as in torchvision's ResNet."""
    planes = outputs // block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, planes, stride, shortcut, base_width=base_width)
    return nn.Sequential(first, *(block(outputs, planes, base_width=base_width) for _ in range(count - 1)))


def up_stage(block: Block, inputs: int, outputs: int, count: int, base_width: int = 64) -> nn.Sequential:
    """`count` residual blocks (B, inputs, H, W) -> (B, outputs, 2H, 2W); the first one enlarges."""
    planes = outputs // block.expansion
    up: type[UpBottleneck] | type[UpBasic] = UpBottleneck if issubclass(block, Bottleneck) else UpBasic
    first = up(inputs, planes, base_width)
    return nn.Sequential(first, *(block(outputs, planes, base_width=base_width) for _ in range(count - 1)))


def initialize(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions, as torchvision's ResNet and the published code.

    A transposed convolution is no `Conv2d`: as in the published code it keeps PyTorch's own initialization, and so do
    the batch norms (weight 1, bias 0).
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
