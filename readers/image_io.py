"""Image files to arrays, whatever mode they were stored in: images become RGB, masks become bool.

Images are read as stored: an EXIF orientation tag does not turn them. The published code reads them so, and turning
only those images that happen to have a mask would tell normal from anomalous. Where a mask was drawn on the turned
image (its shape fits only that way), the mask is turned back instead.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

ORIENTATION = 0x0112  # the EXIF tag
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
LFS_HEAD = b"version https://git-lfs"
# what undoes the turn that an EXIF orientation asks for
UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
TURNED = (5, 6, 7, 8)  # orientations that swap width and height


def opened(path: Path) -> Image.Image:
    """The image of a file, not decoded yet. Raises FileNotFoundError naming the file, else as Pillow."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None


def open_image(path: Path) -> Image.Image:
    """The decoded image in its own mode.

    Raises FileNotFoundError or ValueError, one line that names the file and what to do about it.
    """
    try:
        with opened(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}: {why_unreadable(path, error)}") from None


def why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that would not decode, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_HEAD))
    except OSError as cause:
        return f"cannot be opened ({cause.strerror}): check its rights and the disk"
    if not head:
        return "is empty (0 bytes): copy it again or remove it"
    if head == LFS_HEAD:
        return "is a Git-LFS pointer, not an image: run `git lfs pull` where it was cloned"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be read: copy it again or remove it"
    return f"cannot be decoded ({error}): copy it again or remove it"


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Any mode to RGB on purpose: gray is repeated, palettes are looked up, 16 bits are scaled (65535 -> 255).

    Transparency is laid over black, so that what was cut away stays away whatever color is stored under it.
    Raises ValueError for floating-point images, whose range nothing tells.
    """
    transparent = image.mode in WITH_ALPHA or "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode == "F":
        raise ValueError(f"{path}: is a floating-point image of unknown range: convert it to 8 or 16 bits")
    if image.mode in WIDE_MODES:
        wide = np.asarray(image).astype(np.float64)
        gray = np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if transparent:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def read_rgb(path: Path) -> Image.Image:
    """The image as RGB, in its stored size and orientation. Raises as `open_image` and `to_rgb`."""
    return to_rgb(open_image(path), path)


def read_mask(path: Path, threshold: int = 0) -> NDArray[np.bool_]:
    """(H, W), True where a stored value exceeds `threshold` (in the file's own units): 1, 255, defect ids alike.

    Palette images are judged by index, color ones by their largest channel, transparency is ignored.
    Raises as `open_image`.
    """
    return mask_values(open_image(path)) > threshold


def mask_values(image: Image.Image) -> NDArray[Any]:
    """(H, W) of the stored numbers. `convert("L")` would not do: it maps palettes to gray and clips 16 bits."""
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        colors = values.shape[2] - (image.mode in WITH_ALPHA)
        values = values[:, :, :colors].max(axis=2)
    return values


def read_orientation(path: Path) -> int:
    """The EXIF orientation, 1 (as stored) where there is no sensible tag."""
    with opened(path) as image:
        tag = image.getexif().get(ORIENTATION, 1)
        stored = image.format != "TIFF"  # Pillow turns a TIFF by itself while decoding
    return tag if stored and tag in UNTURN else 1


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) as stored, from the file's head alone. Raises as `open_image`."""
    try:
        with opened(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}: {why_unreadable(path, error)}") from None


def fits_only_turned(mask_size: tuple[int, int], image_size: tuple[int, int], orientation: int) -> bool:
    """True where EXIF swaps the image's sides and the mask has exactly the swapped size; sizes are (width, height)."""
    swapped = (image_size[1], image_size[0])
    return orientation in TURNED and mask_size == swapped and mask_size != image_size


def read_mask_of(image: Path, mask: Path, threshold: int = 0) -> NDArray[np.bool_]:
    """The mask in its image's stored orientation; warns where it had to be turned back for that."""
    stored = open_image(mask)
    values = mask_values(stored) > threshold
    size = read_size(image)
    # the sizes alone nearly always decide, and reading EXIF of a PNG decodes it whole
    if stored.size != size and fits_only_turned(stored.size, size, orientation := read_orientation(image)):
        # one text for all images, so that Python shows it once
        warnings.warn(
            "masks that fit only the EXIF-turned image are turned back; python -m scripts.check_data names them",
            stacklevel=2,
        )
        turned = Image.fromarray(values.astype(np.uint8) * 255).transpose(UNTURN[orientation])
        values = np.asarray(turned) > 0
    return values
