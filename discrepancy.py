"""Where teacher and student disagree: losses, anomaly maps and image scores. Pure functions of tensors.

A pair is (teacher, student), both (B, C, H, W); pairs come finest level first. Half-precision features are
computed with in fp32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
EPSILON = 1e-8  # the smallest norm that a cosine divides by, as in torch.nn.CosineSimilarity


def cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, H, W) in [0, 2]; 0 where both point the same way, 1 where either is zero."""
    teacher, student = _wide(teacher), _wide(student)
    return (1 - _cosine(teacher, student, dims=(1,))).clamp(0, 2)


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
    return _sum([_mean_square(_difference(pair)) for pair in pairs])


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
    return _sum(terms)


LOSSES: dict[str, Callable[[Sequence[Pair]], Tensor]] = {
    "cosine": cosine_loss,
    "cosine_pixel": cosine_pixel_loss,
    "cosine_channel": cosine_channel_loss,
    "mse": mse_loss,
    "consistency": consistency_loss,
}


def anomaly_map(pairs: Sequence[Pair], size: int, mode: str = "add", sigma: float = 4.0) -> Tensor:
    """Pairs of any sizes -> (B, size, size) float32, >= 0; 0 where teacher and student agree at every level.

    The levels' cosine distances, upsampled (bilinear, corners aligned), are added or multiplied and smoothed by a
    Gaussian of `sigma` pixels (0: not at all) that mirrors the border, as scipy.ndimage.gaussian_filter does. Both are
    linear and separable: matrices from the left and the right. Raises ValueError for another mode or a negative sigma.
    Source: the published RD4AD code; "multiply" is RD4AD's ablation and anomalib's option.
    """
    if mode not in ("add", "multiply"):
        raise ValueError(f"unknown mode '{mode}' of the anomaly map: choose from add, multiply")
    if sigma < 0:
        raise ValueError(f"the anomaly map's sigma must be >= 0 pixels; found {sigma}")
    distances = [cosine_distance(*pair).float() for pair in pairs]
    with torch.autocast(distances[0].device.type, enabled=False):
        if mode == "add":  # smoothing is linear too: it goes into each level's matrices
            return _sum([_enlarge(distance, size, sigma) for distance in distances])
        product = torch.ones((), device=distances[0].device)
        for distance in distances:
            product = product * _enlarge(distance, size, 0.0)
        return _enlarge(product, size, sigma)


def level_maps(pairs: Sequence[Pair], size: int, sigma: float = 4.0) -> Tensor:
    """Pairs -> (levels, B, size, size) float32: each level's own map, smoothed; their sum is `anomaly_map`."""
    return torch.stack([anomaly_map([pair], size, sigma=sigma) for pair in pairs])


@dataclass(frozen=True)
class Normality:
    """What each level's map looks like on normal images: its mean and spread at each place, (levels, S, S) both.

    The spread is the standard deviation at that place plus that of the whole level: where normal images hardly differ,
    a small difference does not become a large one.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, maps: Iterable[Tensor]) -> Normality:
        """From the `level_maps` (levels, B, S, S) of normal images, batch by batch; summed up in float64."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in maps:
            count += batch.shape[1]
            total = total + batch.double().sum(dim=1)
            squares = squares + batch.double().square().sum(dim=1)
        mean = total / count
        at_place = (squares / count - mean.square()).clamp(min=0).sqrt()
        of_level = (squares / count).mean(dim=(1, 2), keepdim=True) - mean.mean(dim=(1, 2), keepdim=True).square()
        return cls(mean.float(), (at_place + of_level.clamp(min=0).sqrt()).float())

    def standardised(self, maps: Tensor) -> Tensor:
        """(levels, B, S, S) -> (B, S, S): each level's deviation in spreads, summed; about 0 where normal."""
        return ((maps - self.mean[:, None]) / self.spread[:, None].clamp(min=EPSILON)).sum(dim=0)


def image_score(maps: Tensor, top: int = 1) -> Tensor:
    """(B, H, W) -> (B,): the mean of each map's `top` largest pixels; 1 is the maximum.

    Raises ValueError when a map has no `top` pixels.
    """
    pixels = maps.flatten(1)
    if not 1 <= top <= pixels.shape[1]:
        raise ValueError(f"an image score is the mean of 1 to {pixels.shape[1]} pixels; found {top}")
    return pixels.topk(top, dim=1).values.mean(dim=1)


def _wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(dim=0)


def _cosine(teacher: Tensor, student: Tensor, dims: tuple[int, ...]) -> Tensor:
    # The clamp lies under the root: a zero vector then has cosine 0 and a finite gradient.
    teacher_norm = teacher.square().sum(dims).clamp(min=EPSILON**2).sqrt()
    student_norm = student.square().sum(dims).clamp(min=EPSILON**2).sqrt()
    return (teacher * student).sum(dims) / (teacher_norm * student_norm)


def _cosine_over(pairs: Sequence[Pair], dims: tuple[int, ...]) -> Tensor:
    return _sum([(1 - _cosine(_wide(teacher), _wide(student), dims)).mean() for teacher, student in pairs])


def _difference(pair: Pair) -> Tensor:
    teacher, student = pair
    return _wide(teacher) - _wide(student)


def _mean_square(difference: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The mean square of a difference (B, C, H, W), after upsampling it to `size` where one is given."""
    return _MeanSquare.apply(difference, size)


class _MeanSquare(torch.autograd.Function):
    """<d, G d K> / n and its gradient 2 G d K / n, with G = U'U and K = V'V for the upsampling U d V' (else ones)."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, size: tuple[int, int] | None) -> Tensor:
        weighed, count = difference, difference.numel()
        if size is not None:
            height, width = difference.shape[-2:]
            kind = (difference.device, difference.dtype)
            with torch.autocast(difference.device.type, enabled=False):
                weighed = _gram(size[0], height, *kind) @ difference @ _gram(size[1], width, *kind)
            count = count // (height * width) * size[0] * size[1]
        ctx.save_for_backward(weighed)
        ctx.count = count
        return (difference * weighed).sum() / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weighed,) = ctx.saved_tensors
        return weighed * (2 * gradient / ctx.count), None


def _enlarge(maps: Tensor, size: int, sigma: float) -> Tensor:
    """(B, h, w) -> (B, size, size): upsampled where smaller, then smoothed."""
    kind = (maps.device, maps.dtype)
    rows = _enlarging(size, maps.shape[-2], sigma, *kind)
    columns = _enlarging(size, maps.shape[-1], sigma, *kind)
    return rows @ maps @ columns.T


# The cached matrices are made outside of inference mode: a tensor born in it could never be used in training.


@lru_cache(maxsize=64)
def _gram(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """U'U (inputs, inputs) of the upsampling matrix U."""
    with torch.inference_mode(False), torch.no_grad():
        up = _upsampling(outputs, inputs)
        return (up.T @ up).to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _enlarging(outputs: int, inputs: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs): upsampling followed by smoothing."""
    with torch.inference_mode(False), torch.no_grad():
        return (_gaussian(outputs, sigma) @ _upsampling(outputs, inputs)).to(device=device, dtype=dtype)


def _upsampling(outputs: int, inputs: int) -> Tensor:
    """(outputs, inputs) float64: bilinear interpolation of a line, corners aligned."""
    if outputs == 1 or inputs == 1:
        matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
        matrix[:, 0] = 1
        return matrix
    places = torch.arange(outputs, dtype=torch.float64) * (inputs - 1) / (outputs - 1)
    return (1 - (places[:, None] - torch.arange(inputs, dtype=torch.float64)).abs()).clamp(min=0)


def _gaussian(size: int, sigma: float) -> Tensor:
    """(size, size) float64: smoothing of a line, cut off at 4 sigma, its border mirrored (c b a | a b c | c b a)."""
    if sigma == 0:
        return torch.eye(size, dtype=torch.float64)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights = weights / weights.sum()
    sources = (torch.arange(size)[:, None] + offsets) % (2 * size)  # the mirrored line repeats after 2 * size
    sources = torch.where(sources < size, sources, 2 * size - 1 - sources)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, weights.expand(size, -1).contiguous())
