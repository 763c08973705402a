"""RD++'s projection between the teacher and the bottleneck: it passes normal features and suppresses others."""

from __future__ import annotations

from torch import Tensor, nn


class Projection(nn.Module):
    """Teacher levels, finest first -> projected levels of the same shapes.

    For each level of C channels: 3x3 convolutions to C/2, C/4, C/2 and C channels, with bias, each followed by instance
    norm and LeakyReLU. 15,486,912 parameters for a WideResNet-50-2. Source: the published RD++ code.
    """

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_project(count) for count in channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [project(level) for project, level in zip(self.levels, levels, strict=True)]


def _project(channels: int) -> nn.Sequential:
    counts = (channels, channels // 2, channels // 4, channels // 2, channels)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(counts, counts[1:], strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs), nn.LeakyReLU()]
    return nn.Sequential(*layers)
