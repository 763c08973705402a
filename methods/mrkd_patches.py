"""MRKD's image-level masking: patches of an image moved to other places in it, with settings by class.

Source: main.py and self_sup_tasks.py of the published MRKD code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

REFERENCE = 256  # pixels: the image side of the published code
OVERLAP = 0.25  # more than this share of the object in a patch has to land on the object
ATTEMPTS = 199  # places tried for a patch before it is left out
Bounds = tuple[float, float]
Rectangle = tuple[slice, slice]


@dataclass(frozen=True)
class PatchSettings:
    """How MRKD draws the patches of one class.

    heights, widths  smallest and largest half height and half width, as fractions of the image side
    most             the first patch is certain, each further one up to this number is a coin flip
    background       (brightness, tolerance) in gray levels of 0 to 255, as `object_mask` takes them; None: the whole
                     image counts as object
    object_share     more than this share of a patch has to be object, in [0, 1]
    """

    heights: Bounds
    widths: Bounds
    most: int
    background: tuple[int, int] | None = None
    object_share: float = 0.0


_LARGE, _SMALL, _LONG, _FIXED = (0.03, 0.4), (0.01, 0.05), (0.01, 0.1), (0.01, 0.01)
_BRIGHT, _DARK = (200, 60), (20, 20)

# MVTec AD's classes as in main.py of the published MRKD code (yuxin-jiang/MRKD, commit d812c3e).
PATCH_SETTINGS = {
    "carpet": PatchSettings(_LARGE, _LARGE, 4),
    "leather": PatchSettings(_LARGE, _LARGE, 4),
    "transistor": PatchSettings(_LARGE, _LARGE, 3),
    "bottle": PatchSettings(_LARGE, _LARGE, 3, _BRIGHT, 0.7),
    "hazelnut": PatchSettings((0.03, 0.35), (0.03, 0.35), 3, _DARK, 0.7),
    "grid": PatchSettings(_SMALL, _LONG, 4),
    "tile": PatchSettings(_SMALL, _LONG, 4),
    "cable": PatchSettings(_SMALL, _LONG, 3),
    "wood": PatchSettings(_SMALL, _FIXED, 4),
    "capsule": PatchSettings(_SMALL, _SMALL, 1, _BRIGHT, 0.7),
    "screw": PatchSettings(_SMALL, _SMALL, 1, _BRIGHT, 0.5),
    "pill": PatchSettings(_SMALL, _SMALL, 1, _DARK, 0.7),
    "zipper": PatchSettings(_SMALL, _FIXED, 1, _BRIGHT, 0.7),
    "metal_nut": PatchSettings(_SMALL, _FIXED, 1, _DARK, 0.5),
    "toothbrush": PatchSettings(_FIXED, _FIXED, 1, _DARK, 0.25),
}
# For any other class: each bound and the number of patches is the median over the classes above, which gives cable's
# settings. There is no object mask, because the background of an unknown class is unknown.
MIDDLE = PatchSettings(_SMALL, _LONG, 3)


def swap_patches(images: Tensor, rng: np.random.Generator, class_name: str = "") -> Tensor:
    """Rectangles of each image, copied to other places in it: MRKD's image-level masking, class by class.

    images (B, 3, S, S) in [0, 1]; the result has the same shape. The settings are those of `class_name` in
    PATCH_SETTINGS, MIDDLE for any other class. Half height and half width are drawn apart, each 0.03 + gamma(shape 2,
    scale 0.05) of S, kept within the class's bounds and rounded down, at least 1 pixel. A patch is centered anywhere in
    the image and cropped where it sticks out; it is pasted off the border. All patches come from the untouched image;
    where they overlap, the last one shows.

    With a background the patch has to hold enough object, and enough of that has to land on the object. Only pixels
    that are object in the patch or beneath it change. A patch for which 199 tries find no place is left out, so an
    image without an object stays as it is.

    As published: same image, shifted, not resized, not blended. The published code fixes S at 256; here sizes scale
    with S. Its label masks are left out: its training does not use them.
    """
    settings = PATCH_SETTINGS.get(class_name, MIDDLE)
    corrupted = images.clone()
    for image, source, objects in zip(corrupted, images, _objects(images, settings), strict=True):
        for number in range(settings.most):
            if number == 0 or rng.integers(2):
                _move_patch(image, source, objects, settings, rng)
    return corrupted


def object_mask(images: Tensor, brightness: int, tolerance: int) -> Tensor:
    """(B, S, S) bool: where images (B, 3, S, S) in [0, 1] show an object, not the background.

    A pixel is object where the mean of its channels, in gray levels of 0 to 255, is further than `tolerance` from the
    background's `brightness`. A median filter then removes grain; its side is 7 pixels at S = 256 and scales with S,
    always odd, and the border is repeated outward.
    """
    total = (images * 255).round().sum(dim=1, keepdim=True)  # of whole gray levels: no rounding decides at the limit
    differs = ((total - 3 * brightness).abs() > 3 * tolerance).to(images.dtype)
    reach = round(3 * images.shape[-1] / REFERENCE)
    return avg_pool2d(pad(differs, (reach,) * 4, mode="replicate"), 2 * reach + 1, stride=1)[:, 0] > 0.5


def _objects(images: Tensor, settings: PatchSettings) -> np.ndarray:
    """(B, S, S) bool: the object masks, True everywhere without a background."""
    if settings.background is None:
        return np.ones((len(images), *images.shape[-2:]), dtype=bool)
    return object_mask(images, *settings.background).cpu().numpy()


def _move_patch(
    image: Tensor, source: Tensor, objects: np.ndarray, settings: PatchSettings, rng: np.random.Generator
) -> None:
    """Copy one patch of `source` into `image`, in place; nothing happens where no place is found."""
    found = _source_of_patch(objects, settings, rng)
    if found is None:
        return
    held, patch = objects[found], source[:, found[0], found[1]]
    target = _target_of_patch(objects, held, rng)
    if target is None:
        return
    beneath = image[:, target[0], target[1]]
    changes = torch.from_numpy(held | objects[target]).to(image.device)
    beneath.copy_(torch.where(changes, patch, beneath))


def _source_of_patch(objects: np.ndarray, settings: PatchSettings, rng: np.random.Generator) -> Rectangle | None:
    """Rows and columns of a patch that holds enough object; None where no try finds one."""
    size = len(objects)
    bounds = np.rint(np.array([settings.heights, settings.widths]) * size)
    smallest, largest = np.maximum(1, bounds).astype(int).T
    halves = np.clip((0.03 + rng.gamma(2, 0.05, 2)) * size, smallest, largest).astype(int)
    for _ in range(ATTEMPTS):
        centers = rng.integers(smallest, size - smallest)
        place = _rectangle(np.maximum(0, centers - halves), np.minimum(size, centers + halves))
        if objects[place].mean() > settings.object_share:
            return place
    return None


def _target_of_patch(objects: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> Rectangle | None:
    """Rows and columns where enough of the object that a patch holds lands on the object; None where no try finds any.

    `held` is the patch's own part of the object mask. The target keeps 1 pixel or more off the border.
    """
    sides, size = np.array(held.shape), len(objects)
    for _ in range(ATTEMPTS):
        starts = rng.integers(1, size - 2 * (sides // 2) - 1)
        place = _rectangle(starts, starts + sides)
        if (held & objects[place]).sum() > OVERLAP * held.sum():
            return place
    return None


def _rectangle(starts: np.ndarray, stops: np.ndarray) -> Rectangle:
    """Rows and columns from their two starts to their two stops."""
    rows, columns = map(slice, starts.tolist(), stops.tolist())
    return rows, columns
