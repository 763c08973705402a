"""ICCK's feature masking: cells of a student level are hidden and generated anew from the visible ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.blocks import initialize

EVALUATION_SEED = 0  # of the draw repeated for every image when cells are hidden in evaluation too


class FeatureMasking(nn.Module):
    """(B, C, H, W) -> the same shape: cells hidden at `rate`, then 3x3 convolution, ReLU, 3x3 convolution.

    Like dropout it hides only in training, unless `in_evaluation`: then the draw is the same for every image and every
    forward, so that a score depends on its image alone, not on its batch or on the order. (The published MRKD code
    draws anew at test time: its scores do not repeat.) ValueError unless 0 <= rate < 1.

    Sources: ICCK, masked reverse distillation (DOI 10.62762/CJIF.2024.734267), as read in the published MRKD code.
    """

    def __init__(self, channels: int, rate: float = 0.2, in_evaluation: bool = False) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"--mask_rate {rate}: the fraction of cells to hide must be at least 0 and below 1")
        self.rate = rate
        self.in_evaluation = in_evaluation
        self.rebuild = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.rate and (self.training or self.in_evaluation):
            x = x * self.visible(x)
        return self.rebuild(x)

    def visible(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W) in training, (1, 1, H, W) in evaluation: 1 visible, 0 hidden in all channels.

        Training draws from PyTorch's global generator of x's device. Evaluation draws on the CPU, from a generator made
        anew with a fixed seed, so that every device hides the same cells.
        """
        batch, _, height, width = x.shape
        if self.training:
            draw = torch.rand(batch, 1, height, width, device=x.device)
        else:
            generator = torch.Generator().manual_seed(EVALUATION_SEED)
            draw = torch.rand(1, 1, height, width, generator=generator).to(x.device)
        return (draw >= self.rate).to(x.dtype)
