"""Synthetic anomalies: what corrupts the normal images that a student learns to denoise.

Images are (B, 3, S, S) floats in [0, 1], before the teacher's normalization; S is at least 32. A corruption returns a
new tensor, not clipped, and draws everything from the NumPy generator it is given. Sizes in pixels hold at S = 256 and
scale with S.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from opensimplex import OpenSimplex
from torch import Tensor

from methods.mrkd_patches import swap_patches

Corruption = Callable[[Tensor, np.random.Generator], Tensor]

REFERENCE = 256  # pixels: the image side at which the published sizes hold
STRENGTH = 0.2  # of the pixels under a pasted patch (DRD), of the noise (RD++)
SMALLEST = 32  # pixels: below this side the published sizes have no room


def build_corruption(name: str, seed: int, size: int, class_name: str = "") -> Corruption:
    """The corruption `name` of `CORRUPTIONS` for images of `size` pixels of a class; `seed` is the run's.

    Raises ValueError for another name, or below 32 pixels.
    """
    if size < SMALLEST:
        raise ValueError(f"--image_size {size}: synthetic anomalies need at least {SMALLEST} pixels")
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption '{name}': choose from {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[name](seed, size, class_name)


def copy_paste(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One patch per image, pasted elsewhere as patch + 0.2 x the pixels beneath; one side for the whole batch.

    Side t: 20 % from 150 to 200, 30 % from 64 to 100, 50 % from 10 to 32 pixels; height or width is t - 1 where the
    patch's start and t differ in parity. Source: the published DRD code.
    """
    size = images.shape[-1]
    t = _patch_side(rng, size)
    corrupted = images.clone()
    for image, source in zip(corrupted, images, strict=True):
        y, x = rng.integers(0, size - t, 2)
        height, width = t - (y - t) % 2, t - (x - t) % 2
        patch = source[:, y : y + height, x : x + width]
        top, left = rng.integers(1, size - height - 1), rng.integers(1, size - width - 1)
        target = _window(image, top, left, height, width)
        target.copy_(patch + STRENGTH * _window(source, top, left, height, width))
    return corrupted


def simplex_noise(images: Tensor, rng: np.random.Generator, field: np.ndarray) -> Tensor:
    """One rectangle per image, with 0.2 x `field` (3, side, side) added; height and width from 10 to 31 pixels.

    As in the published RD++ code one field serves a whole run, and each rectangle gets the field's corner: its noise
    differs in extent only. ValueError where the field is smaller than the largest rectangle.
    """
    size = images.shape[-1]
    smallest, largest = _noise_sides(size)
    if min(field.shape[1:]) < largest:
        raise ValueError(f"simplex field {field.shape}: images of {size} pixels need sides of at least {largest}")
    noise = STRENGTH * torch.as_tensor(field, dtype=images.dtype, device=images.device)
    corrupted = images.clone()
    for image in corrupted:
        height, width = rng.integers(smallest, largest + 1, 2)
        top, left = rng.integers(1, size - height), rng.integers(1, size - width)
        _window(image, top, left, height, width).add_(noise[:, :height, :width])
    return corrupted


def simplex_field(seed: int, side: int = 31) -> np.ndarray:
    """(3, side, side) float64: six octaves of 3-D OpenSimplex noise, z the color channel.

    The first octave's coordinates are pixels / 32 and its amplitude is 1; each further one doubles the coordinates and
    takes 0.6 of the amplitude. `side` only crops: a larger field starts with the smaller one.
    Source: the published RD++ code.
    """
    noise = OpenSimplex(seed)
    along, colors = np.arange(side, dtype=float), np.arange(3, dtype=float)
    field = np.zeros((3, side, side))
    frequency, amplitude = 32.0, 1.0
    for _ in range(6):
        field += amplitude * noise.noise3array(along / frequency, along / frequency, colors / frequency)
        frequency, amplitude = frequency / 2, amplitude * 0.6
    return field


def _patch_side(rng: np.random.Generator, size: int) -> int:
    """DRD's side of a patch in pixels, at least 2 and below size - 2, so that a place to paste it exists."""
    low, high = ((150, 200), (64, 100), (10, 32))[rng.choice(3, p=(0.2, 0.3, 0.5))]
    return max(2, round(int(rng.integers(low, high + 1)) * size / REFERENCE))


def _noise_sides(size: int) -> tuple[int, int]:
    """RD++'s smallest and largest side of a noisy rectangle, in pixels: 10 and 31 at 256."""
    smallest = max(2, round(10 * size / REFERENCE))
    return smallest, max(smallest, size // 8 - 1)


def _window(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]


def _simplex(seed: int, size: int, class_name: str) -> Corruption:
    return partial(simplex_noise, field=simplex_field(seed, _noise_sides(size)[1]))


# Each makes a corruption from (seed, image size, class name): of the three, only what it needs.
CORRUPTIONS: dict[str, Callable[[int, int, str], Corruption]] = {
    "copy_paste": lambda seed, size, class_name: copy_paste,
    "swap_patches": lambda seed, size, class_name: partial(swap_patches, class_name=class_name),
    "simplex": _simplex,
}
