"""The losses by name, each a pure function of pairs -> a scalar >= 0.

A pair is (target, prediction), both of one shape (B, ...); pairs come finest level first. Half-precision features are
converted to fp32 first, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scoring.anomaly_map import Pair, at_least_fp32, cosine, cosine_distance, sum_of, upsampling

EASY_SHARE, EASY_GRADIENT, MINING_STEPS = 0.9, 0.1, 1000  # of `cosine_hard_loss`, by Dinomaly's published code


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
    """Sum over neighboring levels of |MSE of the coarser one, both upsampled - MSE of the finer one|; >= 0.

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
    cosines = [
        cosine(at_least_fp32(one).flatten(1), at_least_fp32(other).flatten(1), dims=(1,)) for one, other in pairs
    ]
    return sum_of([(c - margin).clamp(min=0).mean() for c in cosines])


def cosine_hard_loss(pairs: Sequence[Pair], step: int | None = None) -> Tensor:
    """`cosine_loss`, whose gradient at the easy places of a level counts EASY_GRADIENT times.

    Easy are the places of the batch whose cosine distance over the channels is lowest. Their share rises with the
    optimizer's `step`, counted from 0, to EASY_SHARE in MINING_STEPS steps; without a step none is easy. Source:
    Dinomaly's published code, less its mean over levels, for which `cosine_loss` has the sum.
    """
    if not (share := easy_share(step)):
        return cosine_loss(pairs)
    return cosine_loss([(teacher, _with_easy_places(teacher, student, share)) for teacher, student in pairs])


def easy_share(step: int | None) -> float:
    """The share of the places that are easy in a step, counted from 0; none without a step."""
    return 0.0 if step is None else EASY_SHARE * min(step / MINING_STEPS, 1.0)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cosine": cosine_loss,
    "cosine_pixel": cosine_pixel_loss,
    "cosine_channel": cosine_channel_loss,
    "mse": mse_loss,
    "consistency": consistency_loss,
    "absolute": absolute_loss,
    "contrast": contrast_loss,
    "cosine_hard": cosine_hard_loss,
}
STEPPED = {"cosine_hard"}  # the losses that depend on the step: they take its number after the pairs


def _cosine_over(pairs: Sequence[Pair], dims: tuple[int, ...]) -> Tensor:
    return sum_of(
        [(1 - cosine(at_least_fp32(teacher), at_least_fp32(student), dims)).mean() for teacher, student in pairs]
    )


def _with_easy_places(teacher: Tensor, student: Tensor, share: float) -> Tensor:
    """The student's features, with a smaller gradient at the easy places."""
    with torch.no_grad():
        distances = cosine_distance(teacher, student)  # (B, H, W)
        hard = max(1, int(distances.numel() * (1 - share)))
        least = distances.flatten().topk(hard).values[-1]  # of the hard ones; kthvalue is not deterministic on a GPU
        weights = torch.where(distances < least, EASY_GRADIENT, 1.0).to(student.dtype)
    return _WeighGradient.apply(student, weights[:, None])


class _WeighGradient(torch.autograd.Function):
    """The same values, whose gradient is multiplied by weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return gradient * weights, None


def _difference(pair: Pair) -> Tensor:
    teacher, student = pair
    return at_least_fp32(teacher) - at_least_fp32(student)


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
