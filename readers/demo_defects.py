"""Painted defects, pure and seeded: an image and a NumPy generator in; the image with a defect, and its mask, out.

A mask is exact by construction: outside it the image is unchanged to the bit, inside it was painted. Sizes are in
pixels, places are (row, column). Each painter draws with the generator it is given and nothing else, so equal seeds
give equal images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGBImage = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
Plane = NDArray[np.float64]  # (H, W)
Place = tuple[float, float]  # row, column

EDGE = 0.25  # coverage below which a pixel is neither painted nor in the mask


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Plane:
    """(H, W) in about [-1, 1]: random numbers `scale` pixels apart, joined smoothly."""
    height, width = shape
    grid = rng.uniform(-1, 1, (int(height / scale) + 3, int(width / scale) + 3)).astype(np.float32)
    # cut a window off the grid's border, where the interpolation has only one side
    box = (1.0, 1.0, 1.0 + width / scale, 1.0 + height / scale)
    return np.asarray(
        Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float64
    )


def blob(
    rng: np.random.Generator, shape: tuple[int, int], center: Place, radius: float, rough: float, soft: float = 1.0
) -> Plane:
    """Coverage in [0, 1] of a round patch whose outline wavers by `rough` of its radius, fading over `soft` pixels."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    down, right = rows - center[0], columns - center[1]
    angle = np.arctan2(down, right)
    outline = np.full(shape, float(radius))
    for waves in range(2, 7):
        outline += radius * rough / waves * rng.normal() * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.clip(0.5 + (outline - np.hypot(down, right)) / soft, 0, 1)


def stroke(
    rng: np.random.Generator, shape: tuple[int, int], center: Place, length: float, width: float, bend: float = 0.3
) -> Plane:
    """Coverage in [0, 1] of a line through `center` in any direction; `bend`: about its turn in all, in radians."""
    steps = max(int(length / 2), 2)
    turns = np.cumsum(rng.normal(0, bend / np.sqrt(steps), steps)) + rng.uniform(0, 2 * np.pi)
    path = np.cumsum(np.stack([np.sin(turns), np.cos(turns)]), axis=1) * (length / steps)
    path += np.reshape(center, (2, 1)) - path[:, [steps // 2]]
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    nearest = np.full(shape, np.inf)
    for row, column in path.T:
        np.minimum(nearest, (rows - row) ** 2 + (columns - column) ** 2, out=nearest)
    return np.clip(0.5 + width / 2 - np.sqrt(nearest), 0, 1)


def choose_place(rng: np.random.Generator, allowed: Mask, margin: int) -> Place:
    """A random pixel of `allowed`, at least `margin` from the image's border."""
    inner = np.zeros_like(allowed)
    inner[margin:-margin, margin:-margin] = allowed[margin:-margin, margin:-margin]
    rows, columns = np.nonzero(inner)
    pick = rng.integers(len(rows))
    return float(rows[pick]), float(columns[pick])


def lay_over(image: RGBImage, layer: NDArray[np.floating], coverage: Plane) -> tuple[RGBImage, Mask]:
    """Blend `layer` (H, W, 3) in by coverage; returns the image and where it was painted."""
    mask = coverage >= EDGE
    blended = image + coverage[..., None] * (layer - image)
    painted = np.where(mask[..., None], np.clip(np.rint(blended), 0, 255), image)
    return painted.astype(np.uint8), mask


def scratch(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, length: float, width: float, change: float
) -> tuple[RGBImage, Mask]:
    """A line that is `change` gray levels brighter (darker if negative), now stronger, now weaker along its way."""
    coverage = stroke(rng, allowed.shape, choose_place(rng, allowed, 40), length, width) * allowed
    strength = change * (1 + 0.4 * smooth_noise(rng, allowed.shape, 20))
    return lay_over(image, image + strength[..., None], coverage)


def stain(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, tint: tuple[float, float, float]
) -> tuple[RGBImage, Mask]:
    """A blotch through which the surface still shows: its colors times `tint`, unevenly."""
    coverage = blob(rng, allowed.shape, choose_place(rng, allowed, 40), radius, rough=0.35, soft=5.0) * allowed
    depth = np.clip(1 + 0.35 * smooth_noise(rng, allowed.shape, 9), 0, 1.3)
    return lay_over(image, image * (1 + depth[..., None] * (np.array(tint) - 1)), coverage)


def hole(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, color: tuple[float, float, float]
) -> tuple[RGBImage, Mask]:
    """A hole onto `color`, its wall dark on the side of the light (top left) and lit on the other."""
    center = choose_place(rng, allowed, 40)
    coverage = blob(rng, allowed.shape, center, radius, rough=0.15) * allowed
    rows, columns = np.ogrid[: allowed.shape[0], : allowed.shape[1]]
    down, right = (rows - center[0]) / radius, (columns - center[1]) / radius
    wall = np.clip(np.hypot(down, right), 0, 1) ** 4 * (down + right)
    layer = np.array(color) + 35 * wall[..., None] + 6 * rng.normal(size=(*allowed.shape, 1))
    return lay_over(image, layer, coverage)


def blended_patch(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, donor: RGBImage
) -> tuple[RGBImage, Mask]:
    """A piece of `donor` (same size), given a quarter turn and moved, in place of what was there.

    Of eight moves the one that differs most from what was there: a piece that fits by chance would be no defect.
    """
    coverage = blob(rng, allowed.shape, choose_place(rng, allowed, 40), radius, rough=0.2) * allowed
    turned, there = np.rot90(donor), image[coverage >= EDGE].astype(np.float64)
    moves = [np.roll(turned, tuple(rng.integers(0, len(donor), 2)), axis=(0, 1)) for _ in range(8)]
    best = max(moves, key=lambda moved: float(np.abs(moved[coverage >= EDGE] - there).mean()))
    return lay_over(image, best.astype(np.float64), coverage)


def foreign_thread(
    image: RGBImage,
    rng: np.random.Generator,
    allowed: Mask,
    length: float,
    width: float,
    color: tuple[float, float, float],
) -> tuple[RGBImage, Mask]:
    """A loose thread or wire lying on top: rounded by shading, strongly bent."""
    coverage = stroke(rng, allowed.shape, choose_place(rng, allowed, 40), length, width, bend=2.5) * allowed
    grain = 1 + 0.15 * smooth_noise(rng, allowed.shape, 3)
    return lay_over(image, np.array(color) * (0.65 + 0.35 * coverage[..., None]) * grain[..., None], coverage)


def foreign_disc(
    image: RGBImage, rng: np.random.Generator, allowed: Mask, radius: float, color: tuple[float, float, float]
) -> tuple[RGBImage, Mask]:
    """A small round part lying on top, lit from the top left: a rivet, a pebble, a bead."""
    center = choose_place(rng, allowed, 40)
    coverage = blob(rng, allowed.shape, center, radius, rough=0.05)
    rows, columns = np.ogrid[: allowed.shape[0], : allowed.shape[1]]
    lit = 1 - 0.35 * np.clip((rows - center[0] + columns - center[1]) / radius, -1.4, 1.4)
    return lay_over(image, np.array(color) * lit[..., None], coverage)
