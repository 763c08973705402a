"""Drawn defects: each function takes an image and a NumPy generator, and returns the image with a defect and its mask.

Masks are exact: outside its mask an image is unchanged to the bit. Sizes are in pixels, points are (row, column). All
random numbers come from the generator, so equal seeds give equal images. `allowed` says where a defect may be drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGBImage = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
Plane = NDArray[np.float64]  # (H, W)
Point = tuple[float, float]  # row, column

EDGE = 0.25  # pixels of lower coverage stay unchanged and outside the mask


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Plane:
    """(H, W) in about [-1, 1]: random numbers `scale` pixels apart, interpolated smoothly."""
    height, width = shape
    grid = rng.uniform(-1, 1, (int(height / scale) + 3, int(width / scale) + 3)).astype(np.float32)
    # a window inside the grid, since the interpolation lacks neighbors at the border
    box = (1.0, 1.0, 1.0 + width / scale, 1.0 + height / scale)
    return np.asarray(
        Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float64
    )


def blob_coverage(
    rng: np.random.Generator, shape: tuple[int, int], center: Point, radius: float, rough: float, soft: float = 1.0
) -> Plane:
    """Coverage in [0, 1] of a round patch; its outline varies by `rough` x `radius` and fades over `soft` pixels."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    down, right = rows - center[0], columns - center[1]
    angle = np.arctan2(down, right)
    outline = np.full(shape, float(radius))
    for waves in range(2, 7):
        outline += radius * rough / waves * rng.normal() * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.clip(0.5 + (outline - np.hypot(down, right)) / soft, 0, 1)


def stroke_coverage(
    rng: np.random.Generator, shape: tuple[int, int], center: Point, length: float, width: float, bend: float = 0.3
) -> Plane:
    """Coverage in [0, 1] of a line through `center` in a random direction that turns by about `bend` radians in all."""
    steps = max(int(length / 2), 2)
    turns = np.cumsum(rng.normal(0, bend / np.sqrt(steps), steps)) + rng.uniform(0, 2 * np.pi)
    path = np.cumsum(np.stack([np.sin(turns), np.cos(turns)]), axis=1) * (length / steps)
    path += np.reshape(center, (2, 1)) - path[:, [steps // 2]]
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    nearest = np.full(shape, np.inf)
    for row, column in path.T:
        np.minimum(nearest, (rows - row) ** 2 + (columns - column) ** 2, out=nearest)
    return np.clip(0.5 + width / 2 - np.sqrt(nearest), 0, 1)


def choose_center(rng: np.random.Generator, allowed: Mask, margin: int) -> Point:
    """A random pixel of `allowed`, at least `margin` pixels away from the border of the image."""
    inner = np.zeros_like(allowed)
    inner[margin:-margin, margin:-margin] = allowed[margin:-margin, margin:-margin]
    rows, columns = np.nonzero(inner)
    pick = rng.integers(len(rows))
    return float(rows[pick]), float(columns[pick])


def blend(image: RGBImage, layer: NDArray[np.floating], coverage: Plane) -> tuple[RGBImage, Mask]:
    """Blend `layer` (H, W, 3) into the image by coverage; returns the image and the mask of the changed pixels."""
    mask = coverage >= EDGE
    blended = image + coverage[..., None] * (layer - image)
    blended = np.where(mask[..., None], np.clip(np.rint(blended), 0, 255), image)
    return blended.astype(np.uint8), mask


def draw_scratch(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, length: float, width: float, change: float
) -> tuple[RGBImage, Mask]:
    """A line that is `change` gray levels brighter (darker if negative), with a strength that varies along it."""
    coverage = stroke_coverage(rng, allowed.shape, choose_center(rng, allowed, 40), length, width) * allowed
    strength = change * (1 + 0.4 * smooth_noise(rng, allowed.shape, 20))
    return blend(image, image + strength[..., None], coverage)


def draw_stain(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, tint: tuple[float, float, float]
) -> tuple[RGBImage, Mask]:
    """A stain: the colors of the surface times `tint`, unevenly."""
    coverage = (
        blob_coverage(rng, allowed.shape, choose_center(rng, allowed, 40), radius, rough=0.35, soft=5.0) * allowed
    )
    depth = np.clip(1 + 0.35 * smooth_noise(rng, allowed.shape, 9), 0, 1.3)
    return blend(image, image * (1 + depth[..., None] * (np.array(tint) - 1)), coverage)


def draw_hole(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, color: tuple[float, float, float]
) -> tuple[RGBImage, Mask]:
    """A hole with a ground of `color`, lit from the top left: the wall there is dark, the opposite one bright."""
    center = choose_center(rng, allowed, 40)
    coverage = blob_coverage(rng, allowed.shape, center, radius, rough=0.15) * allowed
    rows, columns = np.ogrid[: allowed.shape[0], : allowed.shape[1]]
    down, right = (rows - center[0]) / radius, (columns - center[1]) / radius
    wall = np.clip(np.hypot(down, right), 0, 1) ** 4 * (down + right)
    layer = np.array(color) + 35 * wall[..., None] + 6 * rng.normal(size=(*allowed.shape, 1))
    return blend(image, layer, coverage)


def draw_patch(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, donor: RGBImage
) -> tuple[RGBImage, Mask]:
    """A patch of `donor`, an image of the same size, rotated by a quarter turn and shifted.

    Of eight shifts the one that differs most from the image is taken, since a patch that fits by chance is no defect.
    """
    coverage = blob_coverage(rng, allowed.shape, choose_center(rng, allowed, 40), radius, rough=0.2) * allowed
    rotated, original = np.rot90(donor), image[coverage >= EDGE].astype(np.float64)
    shifted = [np.roll(rotated, tuple(rng.integers(0, len(donor), 2)), axis=(0, 1)) for _ in range(8)]
    best = max(shifted, key=lambda patch: float(np.abs(patch[coverage >= EDGE] - original).mean()))
    return blend(image, best.astype(np.float64), coverage)


def draw_thread(
    image: RGBImage,
    rng: np.random.Generator,
    allowed: Mask,
    length: float,
    width: float,
    color: tuple[float, float, float],
) -> tuple[RGBImage, Mask]:
    """A loose thread or wire on top of the surface: strongly bent, and shaded to look round."""
    coverage = stroke_coverage(rng, allowed.shape, choose_center(rng, allowed, 40), length, width, bend=2.5) * allowed
    grain = 1 + 0.15 * smooth_noise(rng, allowed.shape, 3)
    return blend(image, np.array(color) * (0.65 + 0.35 * coverage[..., None]) * grain[..., None], coverage)


def draw_disc(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, color: tuple[float, float, float]
) -> tuple[RGBImage, Mask]:
    """A small round part on top of the surface, lit from the top left: a rivet, a pebble, a bead."""
    center = choose_center(rng, allowed, 40)
    coverage = blob_coverage(rng, allowed.shape, center, radius, rough=0.05)
    rows, columns = np.ogrid[: allowed.shape[0], : allowed.shape[1]]
    lit = 1 - 0.35 * np.clip((rows - center[0] + columns - center[1]) / radius, -1.4, 1.4)
    return blend(image, np.array(color) * lit[..., None], coverage)
