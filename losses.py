"""The losses by name, each a pure function of pairs -> a scalar >= 0.

A pair is (target, made), both of one shape (B, ...); pairs come finest level first. Half-precision features are
computed with in fp32, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from discrepancy import Pair, cosine, sum_of, upsampling, wide


def cosine_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over levels of 1 - cosine of the flattened (C·H·W) features, averaged over the batch; 0 for equal ones.

    What the published RD4AD code does; its paper's equation 2 is `cosine_pixel_loss`.
    """
    return _cosine_over(pairs, dims=(1, 2, 3))


def cosine_pixel_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over levels of 1 - cosine over the channels, averaged over positions and batch; 0 for equal directions.

    RD4AD's paper, equations 1 and 2.
    """
    return _cosine_over(pairs, dims=(1,))


def cosine_channel_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over levels of 1 - cosine over the positions, averaged over channels and batch; 0 for equal directions.

    DRD's "individual" loss, by its published code.
    """
    return _cosine_over(pairs, dims=(2, 3))


def mse_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over levels of the mean squared difference; 0 for equal features. SK-RD4AD's published code."""
    return sum_of([_mean_square(_difference(pair)) for pair in pairs])


def consistency_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over neighbouring levels of |MSE of the coarser one, both upsampled - MSE of the finer one|; >= 0.

    SK-RD4AD's inter-group consistency by its published code (bilinear, corners aligned), for any image size. Upsampling
    is linear and separable, U d V', so its squared norm is <d, (U'U) d (V'V)>: nothing is upsampled.
    """
    differences = [_difference(pair) for pair in pairs]
    terms = []
    for fine, coarse in zip(differences, differences[1:], strict=False):
        upsampled = _mean_square(coarse, size=(fine.shape[-2], fine.shape[-1]))
        terms.append((upsampled - _mean_square(fine)).abs())
    return sum_of(terms)


def absolute_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over pairs of the mean absolute difference; 0 for equal ones. DRD's segmentation loss, by its code."""
    return sum_of([_difference(pair).abs().mean() for pair in pairs])


def contrast_loss(pairs: Sequence[Pair], margin: float = 0.5) -> Tensor:
    """Sum over levels of max(0, cosine of the flattened features - margin), averaged over the batch.

    0 for features more than 60 degrees apart. RD++'s published code (torch's CosineEmbeddingLoss, target -1).
    """
    cosines = [cosine(wide(one).flatten(1), wide(other).flatten(1), dims=(1,)) for one, other in pairs]
    return sum_of([(c - margin).clamp(min=0).mean() for c in cosines])


def sinkhorn_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over pairs of Sinkhorn's divergence between two clouds of B points, rows flattened; 0 for equal clouds.

    RD++'s SSOT term by its published code. The code gives it a batch and the same batch in another order, which is the
    same cloud: there it is 0 up to rounding, and so is its gradient.
    """
    clouds = [(wide(one).flatten(1), wide(other).flatten(1)) for one, other in pairs]
    return sum_of([_sinkhorn(one, other).to(one.dtype) for one, other in clouds])


LOSSES: dict[str, Callable[[Sequence[Pair]], Tensor]] = {
    "cosine": cosine_loss,
    "cosine_pixel": cosine_pixel_loss,
    "cosine_channel": cosine_channel_loss,
    "mse": mse_loss,
    "consistency": consistency_loss,
    "absolute": absolute_loss,
    "contrast": contrast_loss,
    "sinkhorn": sinkhorn_loss,
}


def _cosine_over(pairs: Sequence[Pair], dims: tuple[int, ...]) -> Tensor:
    return sum_of([(1 - cosine(wide(teacher), wide(student), dims)).mean() for teacher, student in pairs])


def _difference(pair: Pair) -> Tensor:
    teacher, student = pair
    return wide(teacher) - wide(student)


def _mean_square(difference: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The mean square of a difference (B, C, H, W), after upsampling it to `size` where one is given."""
    return _MeanSquare.apply(difference, size)


class _MeanSquare(torch.autograd.Function):
    """<d, G d K> / n and its gradient 2 G d K / n, with G = U'U and K = V'V for the upsampling U d V' (else ones)."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, size: tuple[int, int] | None) -> Tensor:
        ctx.count = difference.numel()
        if size is None:
            ctx.save_for_backward(difference)
            return difference.square().sum() / ctx.count
        batch, channels, height, width = difference.shape
        kind = (difference.device, difference.dtype)
        weighed = difference.permute(0, 2, 3, 1)  # as it lies in memory
        with torch.autocast(difference.device.type, enabled=False):
            weighed = (_gram(size[0], height, *kind) @ weighed.flatten(2)).view(batch, height, width, channels)
            weighed = (_gram(size[1], width, *kind) @ weighed).permute(0, 3, 1, 2)
        ctx.save_for_backward(weighed)
        ctx.count = batch * channels * size[0] * size[1]
        return (difference * weighed).sum() / ctx.count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weighed,) = ctx.saved_tensors
        return weighed * (2 * gradient / ctx.count), None


@lru_cache(maxsize=64)
def _gram(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """U'U (inputs, inputs) of the upsampling matrix U."""
    with torch.inference_mode(False), torch.no_grad():
        up = upsampling(outputs, inputs)
        return (up.T @ up).to(device=device, dtype=dtype)


def _sinkhorn(x: Tensor, y: Tensor, blur: float = 0.05, scaling: float = 0.95, diameter: float = 1e7) -> Tensor:
    """Debiased divergence of two clouds (n, D) and (m, D) of equal weights, cost |x - y|^2 / 2.

    The regularisation falls from diameter^2 to blur^2, by scaling^2 a step. As usual only the last step, from converged
    potentials, is in the graph. Computed in float64. Source: Feydy et al., Interpolating between optimal transport and
    MMD using Sinkhorn divergences (AISTATS 2019), with RD++'s settings.
    """
    x, y = x.double(), y.double()
    pairs = [(x, y.detach()), (y, x.detach()), (x, x.detach()), (y, y.detach())]
    costs = [torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / 2 for a, b in pairs]
    steps = int(math.log(diameter / blur) / -math.log(scaling)) + 1
    schedule = [max(diameter * scaling**step, blur) ** 2 for step in range(steps)] + [blur**2]

    def transform(cost: Tensor, potential: Tensor, epsilon: float) -> Tensor:
        return -epsilon * (torch.logsumexp((potential - cost) / epsilon, dim=1) - math.log(len(potential)))

    with torch.no_grad():
        potentials = [x.new_zeros(len(a)) for a, _ in pairs]  # of x against y, y against x, x and y with themselves
        for epsilon in schedule:
            partners = (potentials[1], potentials[0], potentials[2], potentials[3])
            new = [transform(cost, partner, epsilon) for cost, partner in zip(costs, partners, strict=True)]
            potentials = [(old + fresh) / 2 for old, fresh in zip(potentials, new, strict=True)]
    partners = (potentials[1], potentials[0], potentials[2], potentials[3])
    f, g, p, q = (transform(cost, partner, blur**2) for cost, partner in zip(costs, partners, strict=True))
    return (f - p).mean() + (g - q).mean()
