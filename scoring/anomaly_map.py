"""Where teacher and student disagree: distances, anomaly maps and image scores. Pure functions of tensors.

A pair is (teacher, student), both (B, C, H, W); pairs come finest level first. Half-precision features are
converted to fp32 first, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
EPSILON = 1e-8  # the smallest norm that a cosine divides by, as in torch.nn.CosineSimilarity


def cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, H, W) in [0, 2]; 0 where both point the same way, 1 where either is zero."""
    teacher, student = at_least_fp32(teacher), at_least_fp32(student)
    return (1 - cosine(teacher, student, dims=(1,))).clamp(0, 2)


def anomaly_map(pairs: Sequence[Pair], size: int, mode: str = "add", sigma: float = 4.0) -> Tensor:
    """Pairs of any sizes -> (B, size, size) float32, >= 0; 0 where teacher and student agree at every level.

    The levels' cosine distances, upsampled (bilinear, corners aligned), are added, averaged or multiplied and smoothed
    by a Gaussian of `sigma` pixels (0: not at all) that mirrors the border, as scipy.ndimage.gaussian_filter does. Both
    are linear and separable: matrices from the left and the right. Raises ValueError for another mode or a negative
    sigma. Source: the published RD4AD code; "mean" is DRD's, "multiply" RD4AD's ablation and anomalib's option.
    """
    if mode not in ("add", "mean", "multiply"):
        raise ValueError(f"unknown mode '{mode}' of the anomaly map: choose from add, mean, multiply")
    if sigma < 0:
        raise ValueError(f"the anomaly map's sigma must be >= 0 pixels; found {sigma}")
    distances = [cosine_distance(*pair).float() for pair in pairs]
    with torch.autocast(distances[0].device.type, enabled=False):
        if mode in ("add", "mean"):  # smoothing is linear too: it goes into each level's matrices
            added = sum_of([_upsample_and_smooth(distance, size, sigma) for distance in distances])
            return added / len(distances) if mode == "mean" else added
        product = torch.ones((), device=distances[0].device)
        for distance in distances:
            product = product * _upsample_and_smooth(distance, size, 0.0)
        return _upsample_and_smooth(product, size, sigma)


def level_maps(pairs: Sequence[Pair], size: int, sigma: float = 4.0) -> Tensor:
    """Pairs -> (levels, B, size, size) float32: each level's own map, smoothed; their sum is `anomaly_map`."""
    return torch.stack([anomaly_map([pair], size, sigma=sigma) for pair in pairs])


@dataclass(frozen=True)
class MapStatistics:
    """The mean and spread of each level's map over normal images, at each place: (levels, S, S) both.

    The spread is the standard deviation at that place plus that of the whole level: where normal images hardly differ,
    a small difference does not become a large one.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, maps: Iterable[Tensor]) -> MapStatistics:
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

    def standardized(self, maps: Tensor) -> Tensor:
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


def score_refinement_factor(pairs: Sequence[Pair], size: int) -> Tensor:
    """Pairs -> (B,), at least 1: DRD's factor on an image score.

    1 + the largest value of one level's distances before upsampling: of the level whose upsampled map varies least over
    the image. Source: the published DRD code.
    """
    distances = [cosine_distance(*pair).float() for pair in pairs]
    variances = torch.stack([_upsample_and_smooth(distance, size, 0.0).flatten(1).var(dim=1) for distance in distances])
    largest = torch.stack([distance.flatten(1).amax(dim=1) for distance in distances])
    return 1 + largest.gather(0, variances.argmin(dim=0, keepdim=True))[0]


def at_size(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Map (h, w) -> (height, width) float32: its bilinear interpolation at the centers of the larger map's pixels.

    Pixels are squares and corners are not aligned: a place is the same share of both maps' sides, and beyond the
    outermost centers the value stays. So no value exceeds the map's maximum. A smaller map is sampled, not averaged.
    """
    resized = cv2.resize(np.asarray(anomaly_map, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def color_scale(normal_maps: Iterable[np.ndarray], most: int) -> tuple[float, float]:
    """Maps (H, W) of normal images -> the scores at which an overlay is clear and fully colored.

    Clear is the median pixel; the median of the images' maxima lies at a quarter of the way, so that a normal image
    stays pale and full color means four times what normal images reach. Test images choose nothing. Of a map of more
    than `most` pixels every k-th along both sides is taken for the median.
    """
    maxima, pixels = [], []
    for found in normal_maps:
        step = math.ceil(math.sqrt(found.size / most))
        maxima.append(found.max())
        pixels.append(found[::step, ::step].reshape(-1))
    low, usual = float(np.median(np.concatenate(pixels))), float(np.median(maxima))
    return low, low + max(4 * (usual - low), 1e-6)


def at_least_fp32(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def sum_of(terms: list[Tensor]) -> Tensor:
    """Tensors of one shape -> their sum."""
    return torch.stack(terms).sum(dim=0)


def cosine(teacher: Tensor, student: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The cosine over `dims`, in [-1, 1] up to rounding; 0 where either is zero, with a finite gradient."""
    return _Cosine.apply(teacher, student, dims)


class _Cosine(torch.autograd.Function):
    """c = <t, s> / (|t| |s|) and its gradient t / (|t| |s|) - c s / |s|^2, each in the fewest passes over t and s."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, dims: tuple[int, ...]) -> Tensor:
        # products summed up by torch's `sum`: its vector_norm and dot add a million numbers up in fp32 one by one
        product = (teacher * student).sum(dims, keepdim=True)
        norms = [(x * x).sum(dims, keepdim=True).sqrt().clamp(min=EPSILON) for x in (teacher, student)]
        cosines = product / (norms[0] * norms[1])
        ctx.save_for_backward(teacher, student, *norms, cosines)
        return cosines.squeeze(dims)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        teacher, student, teacher_norm, student_norm, cosines = ctx.saved_tensors
        gradient = gradient.reshape(cosines.shape)
        across = gradient / (teacher_norm * student_norm)

        def towards(other: Tensor, own: Tensor, norm: Tensor) -> Tensor:
            along = torch.where(norm > EPSILON, gradient * cosines / norm.square(), 0)  # a norm at its floor is fixed
            return (other * across).addcmul_(own, along, value=-1)

        to_teacher = towards(student, teacher, teacher_norm) if ctx.needs_input_grad[0] else None
        to_student = towards(teacher, student, student_norm) if ctx.needs_input_grad[1] else None
        return to_teacher, to_student, None


def _upsample_and_smooth(maps: Tensor, size: int, sigma: float) -> Tensor:
    """(B, h, w) -> (B, size, size): upsampled where smaller, then smoothed."""
    kind = (maps.device, maps.dtype)
    rows = _upsample_matrix(size, maps.shape[-2], sigma, *kind)
    columns = _upsample_matrix(size, maps.shape[-1], sigma, *kind)
    return rows @ maps @ columns.T


# The cached matrices are made outside of inference mode: a tensor born in it could never be used in training.


@lru_cache(maxsize=64)
def _upsample_matrix(outputs: int, inputs: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs): upsampling followed by smoothing."""
    with torch.inference_mode(False), torch.no_grad():
        return (_gaussian(outputs, sigma) @ upsampling(outputs, inputs)).to(device=device, dtype=dtype)


def upsampling(outputs: int, inputs: int) -> Tensor:
    """The matrix (outputs, inputs) float64 of bilinear interpolation of a line, corners aligned."""
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
