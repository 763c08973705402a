"""Image files to arrays, whatever their mode: images become RGB, masks become bool.

Images are read as stored: an EXIF orientation tag does not rotate them. The published code does the same, and to rotate
only the images that have a mask would let a network tell normal from anomalous images. A mask that was drawn on the
rotated image (its size fits only that way) is rotated back instead.
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
MODES_16_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("LA", "PA", "La", "RGBA", "RGBa")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
LFS_POINTER = b"version https://git-lfs"
# the operation that undoes each EXIF orientation
UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
SIDES_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def open_file(path: Path) -> Image.Image:
    """The image of a file, not decoded yet. Raises FileNotFoundError naming the file, and what Pillow raises."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None


def open_image(path: Path) -> Image.Image:
    """The decoded image in its own mode.

    Raises FileNotFoundError or ValueError in one line, with the file and what to do.
    """
    try:
        with open_file(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}: {explain_unreadable(path, error)}") from None


def explain_unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be decoded, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as cause:
        return f"cannot be open_file ({cause.strerror}): check its permissions and the disk"
    if not head:
        return "is empty (0 bytes): copy it again or remove it"
    if head == LFS_POINTER:
        return "is a Git-LFS pointer, not an image: run `git lfs pull` where it was cloned"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be read: copy it again or remove it"
    return f"cannot be decoded ({error}): copy it again or remove it"


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """An image of any mode -> RGB: gray is repeated, palettes are looked up, 16 bits are scaled (65535 -> 255).

    Transparent pixels become black, whatever color is stored in them. Raises ValueError for floating-point images,
    whose range is unknown.
    """
    transparent = image.mode in ALPHA_MODES or "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode == "F":
        raise ValueError(f"{path}: is a floating-point image of unknown range: convert it to 8 or 16 bits")
    if image.mode in MODES_16_BIT:
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
    """(H, W) bool, True where the stored value exceeds `threshold`, be it 1, 255 or the id of a defect.

    The value of a pixel is its palette index, or the largest of its color channels; transparency is ignored.
    Raises as `open_image`.
    """
    return mask_values(open_image(path)) > threshold


def mask_values(image: Image.Image) -> NDArray[Any]:
    """(H, W) of the stored values. `convert("L")` would map palettes to gray values and clip 16 bits."""
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        colors = values.shape[2] - (image.mode in ALPHA_MODES)
        values = values[:, :, :colors].max(axis=2)
    return values


def read_orientation(path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) where there is no valid tag."""
    with open_file(path) as image:
        tag = image.getexif().get(ORIENTATION, 1)
        stored = image.format != "TIFF"  # Pillow rotates a TIFF itself while decoding
    return tag if stored and tag in UNDO_ORIENTATION else 1


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) as stored, from the header of the file. Raises as `open_image`."""
    try:
        with open_file(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}: {explain_unreadable(path, error)}") from None


def fits_only_rotated(mask_size: tuple[int, int], image_size: tuple[int, int], orientation: int) -> bool:
    """Whether EXIF swaps the sides of the image and the mask has that size; sizes are (width, height)."""
    swapped = (image_size[1], image_size[0])
    return orientation in SIDES_SWAPPED and mask_size == swapped and mask_size != image_size


def read_oriented_mask(image: Path, mask: Path, threshold: int = 0) -> NDArray[np.bool_]:
    """(H, W) bool: the mask in the stored orientation of its image. Warns where it had to be rotated for that."""
    stored = open_image(mask)
    values = mask_values(stored) > threshold
    size = read_size(image)
    # the sizes are compared first, since reading the EXIF tags of a PNG decodes all of it
    if stored.size != size and fits_only_rotated(stored.size, size, orientation := read_orientation(image)):
        # one text for all images, so Python shows it once
        warnings.warn(
            "masks that fit only the EXIF-rotated image are rotated back; python -m scripts.validate_data lists them",
            stacklevel=2,
        )
        rotated = Image.fromarray(values.astype(np.uint8) * 255).transpose(UNDO_ORIENTATION[orientation])
        values = np.asarray(rotated) > 0
    return values
