"""Attention of ICCK's bottleneck: SCConv (reduces redundant positions, then channels) and SimAM (no parameters).

Sources: ICCK, masked reverse distillation (DOI 10.62762/CJIF.2024.734267), whose formulas could not be read; SCConv
(CVPR 2023) and SimAM (ICML 2021) by their published code, settings included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SRU(nn.Module):
    """(B, C, H, W) -> the same shape: spatial reconstruction, what passes the gate crossed with the rest.

    The gate is soft, as in SCConv's public code: a hard 1 or 0 would give the group norm, gamma above all, no gradient.
    ValueError unless C is even and a multiple of `groups`.
    """

    def __init__(self, channels: int, groups: int = 4, threshold: float = 0.5) -> None:
        super().__init__()
        _check_multiples("SRU", channels, {"2 halves": 2, f"{groups} groups": groups})
        self.norm = nn.GroupNorm(groups, channels)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.norm.weight
        weight = (gamma / gamma.sum()).view(1, -1, 1, 1)  # a channel's share of what the norm lets through
        gate = torch.sigmoid(weight * self.norm(x))
        informative = gate > self.threshold
        kept = torch.where(informative, 1, gate) * x
        rest = torch.where(informative, 0, gate) * x
        kept_a, kept_b = kept.chunk(2, dim=1)
        rest_a, rest_b = rest.chunk(2, dim=1)
        return torch.cat([kept_a + rest_b, kept_b + rest_a], dim=1)


class CRU(nn.Module):
    """(B, C, H, W) -> the same shape: channel reconstruction, a rich and a cheap path weighed by a softmax over both.

    `share` of the channels takes the rich path (3x3 in `groups`, plus 1x1), the rest the cheap one (1x1 beside itself);
    both are first squeezed `squeeze` times. ValueError where C cannot be split so.
    """

    def __init__(self, channels: int, share: float = 0.5, squeeze: int = 2, groups: int = 2) -> None:
        super().__init__()
        upper = int(share * channels)
        lower = channels - upper
        _check_multiples("CRU", channels, {f"{groups} groups": groups})
        _check_multiples("CRU, upper part", upper, {f"{squeeze} (squeeze) x {groups} groups": squeeze * groups})
        _check_multiples("CRU, lower part", lower, {f"{squeeze} (squeeze)": squeeze})
        rich, cheap = upper // squeeze, lower // squeeze
        self.split = (upper, lower)
        self.squeeze_upper = nn.Conv2d(upper, rich, 1, bias=False)
        self.squeeze_lower = nn.Conv2d(lower, cheap, 1, bias=False)
        self.grouped = nn.Conv2d(rich, channels, 3, padding=1, groups=groups)
        self.pointwise = nn.Conv2d(rich, channels, 1, bias=False)
        self.complement = nn.Conv2d(cheap, channels - cheap, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x.split(self.split, dim=1)
        upper, lower = self.squeeze_upper(upper), self.squeeze_lower(lower)
        rich = self.grouped(upper) + self.pointwise(upper)  # (B, C, H, W)
        cheap = torch.cat([self.complement(lower), lower], dim=1)  # (B, C, H, W)
        both = torch.cat([rich, cheap], dim=1)
        weighed = F.adaptive_avg_pool2d(both, 1).softmax(dim=1) * both  # the 2C weights of a sample sum to 1
        first, second = weighed.chunk(2, dim=1)
        return first + second


class SCConv(nn.Sequential):
    """(B, C, H, W) -> the same shape: SRU, then CRU.

    CRU's softmax shrinks the output by about 2C, so a batch norm belongs after it (the bottleneck puts one there).
    ValueError unless C is a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        _check_multiples("SCConv", channels, {"2 paths x 2 (squeeze) x 2 groups": 8})
        super().__init__(SRU(channels), CRU(channels))


class SimAM(nn.Module):
    """(B, C, H, W) -> the same shape: each value times the sigmoid of how far it stands out in its channel.

    The published code's inverse energy, n = HW - 1, and its `epsilon` (lambda). A constant channel gives
    x·sigmoid(0.5).
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        n = max(x.shape[2] * x.shape[3] - 1, 1)
        distance = (x - x.mean(dim=(2, 3), keepdim=True)) ** 2
        variance = distance.sum(dim=(2, 3), keepdim=True) / n
        return x * torch.sigmoid(distance / (4 * (variance + self.epsilon)) + 0.5)


def _check_multiples(part: str, channels: int, wanted: dict[str, int]) -> None:
    for reason, divisor in wanted.items():
        if channels < divisor or channels % divisor:
            raise ValueError(
                f"{part}: {channels} channels cannot be split into {reason}: choose a level whose channels are a "
                f"multiple of {divisor}, or leave SCConv out (--scconv 0)"
            )
