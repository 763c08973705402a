"""Image files to arrays, whatever their mode: images become RGB, masks become bool.

Only the formats that the suffixes stand for are decoded, whatever a file is called: Pillow's other decoders start
programs (Ghostscript) or are rarely used. Only regular files are opened, up to a number of pixels (`limit_pixels`).

Images of benchmarks are read as stored: an EXIF orientation does not rotate them. The published code does the same, and
to rotate only the images that have a mask would let a network tell normal from anomalous images. Own images are read
upright (`Sample.upright`): telephones store all images as the sensor lies. Both hold for every format; Pillow itself
would rotate TIFF files and no others. A mask that fits its image only after the other choice is rotated to fit.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from utils import printable

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
WANTED = "PNG, JPEG, BMP, TIFF or WebP"
MAX_PIXELS = 100_000_000
ORIENTATION = 0x0112  # the EXIF tag
MODES_16_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("LA", "PA", "La", "RGBA", "RGBa")
LFS_POINTER = b"version https://git-lfs"
PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # one of them is in every PNG with an orientation
# the operation that rotates an image of each EXIF orientation upright, and the one that undoes it
ROTATE_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNDO_ORIENTATION = ROTATE_UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
SIDES_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
KINDS_OF_FILE = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; `limit_pixels` sets ours
_pixel_limit = MAX_PIXELS


class ImageFileError(ValueError):
    """A file that is not read as an image: one line with the file, what is wrong and what to do."""


def limit_pixels(count: int) -> None:
    """Refuse images of more than `count` pixels from now on, in this process: --max_pixels."""
    global _pixel_limit
    _pixel_limit = count


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file, not decoded yet.

    Raises FileNotFoundError or ImageFileError in one line, with the file and what to do; also for what Pillow raises
    in the block.
    """
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            check_pixels(path, image.size)
            check_bmp(path, image)
            yield image
    except ImageFileError:
        raise
    except FileNotFoundError:
        missing = "a link to a file that does not exist" if path.is_symlink() else "no such file"
        raise FileNotFoundError(f"{printable(path)}: {missing}") from None
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise ImageFileError(f"{printable(path)}: {explain_unreadable(path, error)}") from None


def check_regular(path: Path) -> None:
    """Raises ImageFileError for what is no regular file: to open a FIFO would wait forever. Links are followed."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in KINDS_OF_FILE.items() if is_kind(mode)), "no file")
        raise ImageFileError(f"{printable(path)}: is {kind}, wanted an image file: remove or rename it")


def check_pixels(path: Path, size: tuple[int, int], has: str = "has") -> None:
    """Raises ImageFileError for an image of more pixels than the limit; `has`: or is to be resized to so many."""
    width, height = size
    if width * height > _pixel_limit:
        raise ImageFileError(
            f"{printable(path)}: {has} {width} x {height} = {width * height} pixels, more than --max_pixels "
            f"{_pixel_limit}: scale the image down, or raise the limit if memory allows"
        )


def check_bmp(path: Path, image: Image.Image) -> None:
    """Raises ImageFileError for a BMP of two colors that has more than one bit a pixel: Pillow takes it for one bit."""
    if image.format != "BMP" or image.mode != "1":
        return
    with path.open("rb") as file:
        head = file.read(30)
    bits = int.from_bytes(head[24:26] if head[14] == 12 else head[28:30], "little")  # 12: the header of OS/2
    if bits != 1:
        raise ImageFileError(
            f"{printable(path)}: is a BMP of {bits} bits with a palette of black and white, which is not decoded "
            "correctly: save it as PNG"
        )


def open_image(path: Path, upright: bool = False) -> Image.Image:
    """The decoded image in its own mode: as stored, or rotated upright by its EXIF orientation.

    Raises FileNotFoundError or ImageFileError in one line, with the file and what to do.
    """
    with opened(path) as image:
        tiff = image.format == "TIFF"
        orientation = exif_orientation(image) if tiff else 1  # read now, since Pillow deletes it as it decodes
        image.load()
        if upright and not tiff:
            orientation = exif_orientation(image)
        rotation = (ROTATE_UPRIGHT if upright else UNDO_ORIENTATION).get(orientation)
        return image if rotation is None or (upright and tiff) else image.transpose(rotation)


def decode_png(content: bytes) -> Image.Image:
    """The bytes of a PNG file -> its decoded image, in its own mode. Raises ImageFileError in words, without a name."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > _pixel_limit:
                raise ImageFileError(f"has {image.width} x {image.height} pixels, more than {_pixel_limit}")
            image.load()
            return image
    except ImageFileError:
        raise
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise ImageFileError(f"is no PNG file that can be read ({type(error).__name__})") from None


def rotate_upright(image: Image.Image) -> Image.Image:
    """An image that somebody opened -> rotated upright by its EXIF orientation. Pillow has done so to a TIFF itself."""
    if image.format == "TIFF":
        return image
    rotation = ROTATE_UPRIGHT.get(exif_orientation(image))
    return image if rotation is None else image.transpose(rotation)


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, 1 to 8; 1 where there is no valid tag."""
    try:
        tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged tag: the pixels may be whole
        return 1
    return tag if tag in UNDO_ORIENTATION else 1


def explain_unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be decoded, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as cause:
        return f"cannot be opened ({cause.strerror}): check its permissions and the disk"
    if not head:
        return "is empty (0 bytes): copy it again or remove it"
    if head == LFS_POINTER:
        return "is a Git-LFS pointer, not an image: run `git lfs pull` where it was cloned"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image of a format that is read ({WANTED}): copy it again, convert it or remove it"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded ({printable(reason[:200])}): copy it again or remove it"


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """An image of any mode -> RGB: gray is repeated, palettes are looked up, 16 bits are scaled (65535 -> 255).

    Transparent pixels become black, whatever color is stored in them. Raises ImageFileError where the range of the
    values is unknown: floating-point numbers, and more than 16 bits.
    """
    transparent = image.mode in ALPHA_MODES or "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode == "F":
        raise ImageFileError(
            f"{printable(path)}: is a floating-point image, whose range is unknown: convert it to 8 or 16 bits"
        )
    if image.mode in MODES_16_BIT:
        wide = np.asarray(image).astype(np.float64)
        if wide.min() < 0 or wide.max() > 65535:
            text = (
                f"holds values from {wide.min():.0f} to {wide.max():.0f}, wanted 0 to 65535: convert it to 8 or 16 bits"
            )
            raise ImageFileError(f"{printable(path)}: {text}")
        gray = np.rint(wide / 257).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if transparent:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def read_rgb(path: Path, upright: bool = False) -> Image.Image:
    """The image as RGB in its stored size, as stored or upright. Raises as `open_image` and `to_rgb`."""
    return to_rgb(open_image(path, upright), path)


def read_mask(path: Path, threshold: int = 0) -> NDArray[np.bool_]:
    """(H, W) bool as stored, True where the value exceeds `threshold`, be it 1, 255 or the id of a defect.

    The value of a pixel is as in `mask_values`. Raises as `open_image`.
    """
    return mask_values(open_image(path)) > threshold


def mask_values(image: Image.Image) -> NDArray[Any]:
    """(H, W) of the stored values: the largest of a pixel's color channels, without transparency.

    A palette is looked up, so white counts as 255 wherever it stands in the palette; only where all its colors are
    black does the index count. `convert("L")` would weigh the colors and clip 16 bits.
    """
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if image.mode in ("P", "PA"):
        indices = values if values.ndim == 2 else values[:, :, 0]
        colors = np.zeros(256, np.uint8)
        listed = np.reshape(image.getpalette("RGB") or [], (-1, 3)).max(axis=1)
        colors[: len(listed)] = listed
        return colors[indices] if colors.any() else indices
    if values.ndim == 3:
        channels = values.shape[2] - (image.mode in ALPHA_MODES)
        values = values[:, :, :channels].max(axis=2)
    return values


def read_orientation(path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is no valid tag. Raises as `open_image`."""
    with opened(path) as image:
        return header_orientation(image, path)


def header_orientation(image: Image.Image, path: Path) -> int:
    """The EXIF orientation of an image that is not decoded yet, and is not decoded here unless it must be."""
    if image.format == "PNG" and not any(mark in path.read_bytes() for mark in PNG_EXIF):
        return 1  # Pillow would decode the whole image to look behind it
    return exif_orientation(image)


def header_size(image: Image.Image, path: Path, upright: bool) -> tuple[int, int]:
    """(width, height) as stored or upright, of an image that is not decoded yet."""
    width, height = image.size
    if (image.format == "TIFF") == upright or width == height:  # Pillow swaps the sides of a rotated TIFF itself
        return image.size
    return swap(image.size) if header_orientation(image, path) in SIDES_SWAPPED else image.size


def swap(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) -> (height, width)"""
    return size[1], size[0]


def read_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """(width, height) as stored or upright, from the header of the file. Raises as `open_image`."""
    with opened(path) as image:
        return header_size(image, path, upright)


def fits_only_rotated(mask_size: tuple[int, int], image_size: tuple[int, int], orientation: int) -> bool:
    """Whether EXIF swaps the sides of the image and the mask has that size; sizes are (width, height)."""
    return orientation in SIDES_SWAPPED and mask_size == swap(image_size) and mask_size != image_size


def read_oriented_mask(image: Path, mask: Path, threshold: int = 0, upright: bool = False) -> NDArray[np.bool_]:
    """(H, W) bool: the mask in the orientation in which its image is read. Warns where it had to be rotated for that.

    An upright image's mask is rotated by its own EXIF orientation too.
    """
    drawn = open_image(mask, upright)
    values = mask_values(drawn) > threshold
    size = read_size(image, upright)
    # the sizes are compared first, since it can take long to read the EXIF tags of a PNG
    if drawn.size != size and fits_only_rotated(drawn.size, size, orientation := read_orientation(image)):
        # one text for all images, so Python shows it once
        warnings.warn(
            "masks that fit their image only before or after its EXIF rotation are rotated to fit it; python -m "
            "scripts.validate_data lists them",
            stacklevel=2,
        )
        rotation = (ROTATE_UPRIGHT if upright else UNDO_ORIENTATION)[orientation]
        values = np.asarray(Image.fromarray(values.astype(np.uint8) * 255).transpose(rotation)) > 0
    return values
