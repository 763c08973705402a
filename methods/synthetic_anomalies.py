"""Damage painted on normal images while training, so that a student meets something abnormal to restore.

Images are (B, 3, S, S) floats in [0, 1], before the teacher's normalization; S is at least 32. A painter returns a new
tensor, not clipped, and draws everything from the NumPy generator it is given. Sizes in pixels hold at S = 256 and
scale with S.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from opensimplex import OpenSimplex
from torch import Tensor

DAMAGES = ("copy_paste", "swap_patches", "simplex")
Painter = Callable[[Tensor, np.random.Generator], Tensor]

REFERENCE = 256  # pixels: the image side at which the published sizes hold
STRENGTH = 0.2  # of the pixels under a pasted patch (DRD), of the noise (RD++)
SMALLEST = 32  # pixels: below this side the published sizes have no room


def painter(name: str, seed: int, size: int) -> Painter:
    """The painter `name` of DAMAGES for images of `size` pixels; `seed` makes the one field of "simplex".

    ValueError for another name, or below 32 pixels.
    """
    if size < SMALLEST:
        raise ValueError(f"--image_size {size}: painted damage needs at least {SMALLEST} pixels")
    if name == "copy_paste":
        return copy_paste
    if name == "swap_patches":
        return swap_patches
    if name == "simplex":
        field = simplex_field(seed, _noise_sides(size)[1])
        return lambda images, rng: simplex_noise(images, rng, field)
    raise ValueError(f"unknown damage '{name}': choose from {', '.join(DAMAGES)}")


def copy_paste(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One patch per image, pasted elsewhere as patch + 0.2 x the pixels beneath; one side for the whole batch.

    Side t: 20 % from 150 to 200, 30 % from 64 to 100, 50 % from 10 to 32 pixels; height or width is t - 1 where the
    patch's start and t differ in parity. Source: the published DRD code.
    """
    size = images.shape[-1]
    t = _patch_side(rng, size)
    painted = images.clone()
    for image, source in zip(painted, images, strict=True):
        y, x = rng.integers(0, size - t, 2)
        height, width = t - (y - t) % 2, t - (x - t) % 2
        patch = source[:, y : y + height, x : x + width]
        top, left = rng.integers(1, size - height - 1), rng.integers(1, size - width - 1)
        target = _window(image, top, left, height, width)
        target.copy_(patch + STRENGTH * _window(source, top, left, height, width))
    return painted


def swap_patches(images: Tensor, rng: np.random.Generator) -> Tensor:
    """1 to 4 patches per image, each copied from the untouched image to another place in it.

    Height and width, as fractions of S: 0.03 + gamma(shape 2, scale 0.05), at most 0.4. A simple form of MRKD's
    image-level masking: the published code's sizes per class, object masks, rescaling, blending and second source image
    are left out.
    """
    size = images.shape[-1]
    painted = images.clone()
    for image, source in zip(painted, images, strict=True):
        for _ in range(rng.integers(1, 5)):
            height, width = _gamma_sides(rng, size)
            (y, top), (x, left) = rng.integers(0, size - height + 1, 2), rng.integers(0, size - width + 1, 2)
            _window(image, top, left, height, width).copy_(_window(source, y, x, height, width))
    return painted


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
    painted = images.clone()
    for image in painted:
        height, width = rng.integers(smallest, largest + 1, 2)
        top, left = rng.integers(1, size - height), rng.integers(1, size - width)
        _window(image, top, left, height, width).add_(noise[:, :height, :width])
    return painted


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


def _gamma_sides(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Height and width of a swapped patch in pixels, at least 1."""
    height, width = np.clip(rng.gamma(2, 0.05, 2) + 0.03, 0.03, 0.4)
    return max(1, round(height * size)), max(1, round(width * size))


def _noise_sides(size: int) -> tuple[int, int]:
    """RD++'s smallest and largest side of a noisy rectangle, in pixels: 10 and 31 at 256."""
    smallest = max(2, round(10 * size / REFERENCE))
    return smallest, max(smallest, size // 8 - 1)


def _window(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]
