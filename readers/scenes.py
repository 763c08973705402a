"""The classes of the demo: how each draws its scene and its defects, and how a camera changes the result.

Images are (256, 256, 3) uint8. Defects are drawn into the scene, before the camera adds light and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from readers.demo_defects import (
    Mask,
    Plane,
    RGBImage,
    draw_disc,
    draw_hole,
    draw_patch,
    draw_scratch,
    draw_stain,
    draw_thread,
    smooth_noise,
)

SIDE = 256
STEP = 3  # pixel values are multiples of this: less than the noise, and the files are a third smaller
# Disjoint parts of the brick photograph: first and last row, least and greatest side of a crop. The sides differ since
# the photograph is in perspective.
BRICK_PARTS = {"train": (0, 288, 172, 204), "test": (292, 512, 198, 218)}


@dataclass(frozen=True)
class Scene:
    """An image without light and noise, and where a defect may be drawn."""

    image: RGBImage
    allowed: Mask


Defect = Callable[[Scene, np.random.Generator], tuple[RGBImage, Mask]]


def apply_camera(image: RGBImage, rng: np.random.Generator, exposure: float) -> RGBImage:
    """The image with exposure, uneven light, color cast and noise added. Each pixel changes by itself: no blur."""
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.18) * (np.cos(turn) * rows + np.sin(turn) * columns)
    light *= 1 - rng.uniform(0, 0.12) * (rows**2 + columns**2)
    # the sine of a uniform angle: most images are clearly darker or brighter than the mean, and there are no outliers
    cast = (1 + exposure * np.sin(rng.uniform(0, 2 * np.pi))) * rng.uniform(0.99, 1.01, 3)
    noise = rng.normal(0, rng.uniform(0.8, 1.6), light.shape)
    levels = np.rint((image * light[..., None] * cast + noise[..., None]) / STEP)
    return np.clip(STEP * levels, 0, 255).astype(np.uint8)


# --- brick ---


@lru_cache(maxsize=1)
def brick_photograph() -> NDArray[np.uint8]:
    """(512, 512) gray."""
    from skimage import data  # imported here, since only the demo needs it

    return data.brick()


def brick_scene(rng: np.random.Generator, split: str) -> Scene:
    """A crop of the photograph of random place and scale, mirrored half the time."""
    top, bottom, smallest, largest = BRICK_PARTS[split]
    photo = Image.fromarray(brick_photograph()[top:bottom])
    side = rng.uniform(smallest, largest)
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    gray = np.asarray(crop, dtype=np.float64)[:, :: rng.choice([1, -1])]
    colors = np.clip(gray[..., None] * (1.12, 0.93, 0.80) + (28, 8, 0), 0, 255)
    return Scene(np.rint(colors).astype(np.uint8), np.ones((SIDE, SIDE), dtype=bool))


BRICK: dict[str, Defect] = {
    "scratch": lambda s, rng: draw_scratch(
        *inputs(s, rng), rng.uniform(70, 120), rng.uniform(3, 4.5), rng.uniform(55, 75)
    ),
    "stain": lambda s, rng: draw_stain(*inputs(s, rng), rng.uniform(16, 28), (0.62, 0.66, 0.72)),
    "hole": lambda s, rng: draw_hole(*inputs(s, rng), rng.uniform(8, 13), (52, 44, 40)),
    "foreign_part": lambda s, rng: draw_disc(*inputs(s, rng), rng.uniform(7, 11), (128, 122, 118)),
    "patch": lambda s, rng: draw_patch(*inputs(s, rng), rng.uniform(20, 32), s.image),
}


# --- denim ---


def denim_scene(rng: np.random.Generator, split: str) -> Scene:
    """Twill of blue and pale threads (over two, under two, shifted by one each row), slightly rotated and wavy."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    rows += 2.5 * smooth_noise(rng, rows.shape, 90)
    columns += 2.5 * smooth_noise(rng, rows.shape, 90)
    turn, pitch = rng.uniform(-0.04, 0.04), rng.uniform(12.4, 13.2)
    across = (np.cos(turn) * columns + np.sin(turn) * rows) / pitch + rng.uniform(0, 4) + 8
    along = (np.cos(turn) * rows - np.sin(turn) * columns) / pitch + rng.uniform(0, 4) + 8
    warp, weft = np.floor(across).astype(int), np.floor(along).astype(int)
    over = (warp + weft) % 4 < 2  # the warp thread lies on top
    bulge = np.where(over, across - warp, along - weft)  # position across the upper thread
    round_off = 0.62 + 0.38 * np.sin(np.pi * bulge)
    shades = 1 + 0.05 * rng.normal(size=(2, 64))
    shade = np.where(over, shades[0, warp % 64], shades[1, weft % 64]) * round_off
    shade *= 1 + 0.04 * smooth_noise(rng, rows.shape, 4)
    colors = np.where(over[..., None], (74.0, 98.0, 142.0), (168.0, 172.0, 178.0)) * shade[..., None]
    return Scene(np.clip(np.rint(colors), 0, 255).astype(np.uint8), np.ones((SIDE, SIDE), dtype=bool))


DENIM: dict[str, Defect] = {
    "scratch": lambda s, rng: draw_scratch(
        *inputs(s, rng), rng.uniform(70, 120), rng.uniform(4, 6), rng.uniform(55, 75)
    ),
    "stain": lambda s, rng: draw_stain(*inputs(s, rng), rng.uniform(16, 28), (0.88, 0.74, 0.52)),
    "hole": lambda s, rng: draw_hole(*inputs(s, rng), rng.uniform(8, 12), (92, 98, 112)),
    "foreign_thread": lambda s, rng: draw_thread(
        *inputs(s, rng), rng.uniform(60, 100), rng.uniform(3, 4), (158, 92, 74)
    ),
    "patch": lambda s, rng: draw_patch(*inputs(s, rng), rng.uniform(16, 28), s.image),
}


# --- gear ---

TEETH = 14
OUTER, TOOTH, BORE, RING, DRILL = 90.0, 16.0, 18.0, 52.0, 12.0  # radii and tooth height in pixels
DRILLS = 5
Wheel = Callable[[Plane, Plane], Plane]


@dataclass(frozen=True)
class Gear(Scene):
    """The scene, and a function that draws it again with another wheel.

    A wheel is a function from polar coordinates (radius, angle) to coverage in [0, 1].
    """

    redraw: Callable[[Wheel], RGBImage]


def gear_scene(rng: np.random.Generator, split: str) -> Gear:
    """A gear with a bore and drilled holes, of metal turned on a lathe, and its shadow on a bench."""
    shape = (SIDE, SIDE)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    center = SIDE / 2 + rng.uniform(-18, 18, 2)
    scale, turn = rng.uniform(0.95, 1.02), rng.uniform(-0.22, 0.22)
    down, right = (rows - center[0]) / scale, (columns - center[1]) / scale
    radius, direction = np.hypot(down, right), np.arctan2(down, right)
    shadow_radius, shadow_direction = np.hypot(down - 5, right - 5), np.arctan2(down - 5, right - 5)

    fibre = smooth_noise(rng, (SIDE, SIDE // 16), 2).repeat(16, axis=1)
    bench = np.array([126.0, 104.0, 82.0]) * (1 + 0.08 * smooth_noise(rng, shape, 60) + 0.03 * fibre)[..., None]
    turned = 5 * np.sin(radius * 0.9)  # the grooves of the lathe
    glint = 24 * np.cos(2 * direction + rng.uniform(-0.6, 0.6)) * np.clip(radius / 60, 0, 1)
    gray = 138 + rng.uniform(-8, 8) + turned + glint + 2 * smooth_noise(rng, shape, 5)
    gray -= 30 * np.exp(-(((radius - 28) / 2.5) ** 2))  # the hub's step
    metal = gray[..., None] * (0.98, 1.0, 1.03)

    def redraw(wheel: Wheel) -> RGBImage:
        ground = bench * (1 - 0.4 * wheel(shadow_radius, shadow_direction + turn))[..., None]
        mixed = ground + wheel(radius, direction + turn)[..., None] * (metal - ground)
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)

    return Gear(redraw(intact_wheel), intact_wheel(radius, direction + turn) > 0.99, redraw)


def intact_wheel(radius: Plane, angle: Plane) -> Plane:
    """Coverage of the wheel without defects: teeth, bore, drilled holes."""
    sector = 2 * np.pi / DRILLS
    offset = angle - sector * np.rint(angle / sector)  # from the nearest drilled hole
    drilled = np.clip(0.5 + np.hypot(radius * np.cos(offset) - RING, radius * np.sin(offset)) - DRILL, 0, 1)
    profile = np.clip(1.6 * np.cos(TEETH * angle), -1, 1)
    rim = np.clip(0.5 + OUTER + TOOTH / 2 * profile - radius, 0, 1)
    return rim * drilled * np.clip(0.5 + radius - BORE, 0, 1)


def draw_broken_tooth(scene: Scene, rng: np.random.Generator) -> tuple[RGBImage, Mask]:
    """A tooth is broken off with a jagged edge, and so is its shadow; the mask holds all pixels that changed."""
    assert isinstance(scene, Gear)
    pitch = 2 * np.pi / TEETH
    middle, stump = pitch * rng.integers(TEETH), OUTER - TOOTH / 2 - rng.uniform(3, 8)
    jags = 4 * smooth_noise(rng, scene.allowed.shape, 6)

    def broken_wheel(radius: Plane, angle: Plane) -> Plane:
        offset = (angle - middle + np.pi) % (2 * np.pi) - np.pi
        kept = np.where(np.abs(offset) < pitch / 2, np.clip(0.5 + stump + jags - radius, 0, 1), 1)
        return intact_wheel(radius, angle) * kept

    image = scene.redraw(broken_wheel)
    return image, (image != scene.image).any(axis=-1)


GEAR: dict[str, Defect] = {
    "scratch": lambda s, rng: draw_scratch(
        *inputs(s, rng), rng.uniform(60, 100), rng.uniform(3, 4), rng.choice([-60, 60])
    ),
    "rust": lambda s, rng: draw_stain(*inputs(s, rng), rng.uniform(14, 22), (0.74, 0.50, 0.34)),
    "broken_tooth": draw_broken_tooth,
    "hole": lambda s, rng: draw_hole(*inputs(s, rng), rng.uniform(7, 10), (58, 54, 52)),
    "foreign_part": lambda s, rng: draw_disc(*inputs(s, rng), rng.uniform(8, 11), (168, 134, 70)),
}


def inputs(scene: Scene, rng: np.random.Generator) -> tuple[RGBImage, np.random.Generator, Mask]:
    """The first three arguments of every function that draws a defect."""
    return scene.image, rng, scene.allowed


@dataclass(frozen=True)
class DemoClass:
    """One class of the demo: how its scene is drawn, its defects, and the fraction by which its exposure varies."""

    draw: Callable[[np.random.Generator, str], Scene]
    defects: dict[str, Defect]
    exposure: float


CLASSES = {
    "brick": DemoClass(brick_scene, BRICK, exposure=0.16),
    "denim": DemoClass(denim_scene, DENIM, exposure=0.14),
    "gear": DemoClass(gear_scene, GEAR, exposure=0.22),
}
