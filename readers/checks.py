"""What is checked of a class's files before the first epoch: `check_data` returns warnings and raises errors.

The header of every image and mask is read, and every mask is decoded. Images are decoded for one check only, until one
is bright enough. scripts/validate_data.py decodes everything, and checks more.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from readers.base import IMAGE_SUFFIXES, Sample, list_folders, visible_entries
from readers.headers import Header, read_headers, tell, unlike_kinds
from readers.image_io import (
    ALPHA_MODES,
    MODES_16_BIT,
    fits_only_rotated,
    mask_values,
    open_image,
    read_orientation,
    read_size,
    swap,
    to_rgb,
)
from utils import prefetch_map, printable

# suffixes of image files that are not read
OTHER_SUFFIXES = frozenset(
    ".arw .avif .cr2 .dcm .dng .eps .exr .gif .heic .heif .ico .j2k .jfif .jp2 .jxl .nef .npy .pbm .pcx .pgm .pnm .ppm "
    ".psd .raw .svg .tga".split()
)
DARK = 32  # of 255: where no pixel of a class is as bright, the bit depth is not what it seems
NARROW = 10  # the longer side by the shorter one: a square says little of such an image
GREATEST_ID = 31  # values up to this may be the ids of defects
NEARLY_ALL = 0.9  # the share of an image that no defect covers
MASK_PROBLEMS = {
    "jpeg": "is a JPEG file, whose edges are soft: every value above {threshold} is defect, so areas are too large; "
    "save it as a PNG of two values",
    "gray": "has more than two values: every value above {threshold} is defect, soft edges too; save it with two",
    "alpha": "has transparency that varies, which is ignored: only its colors count",
    "empty": "is empty though its image is anomalous: all pixels count as normal; draw the mask or remove the image",
    "full": "covers nearly all of its image: is it inverted?",
    "aspect": "has another aspect than its image: both are stretched to a square",
    "transposed": "has the sides of its image swapped, so it cannot fit: rotate it",
}
MASK_ERRORS = ("transposed",)


def check_data(
    train: Sequence[Sample], test: Sequence[Sample], threshold: int = 0, workers: int = 0, listed: bool = False
) -> list[str]:
    """The warnings on a class, one line each with a count and the first file; without `train`, on its test set alone.

    `listed`: a file lists the images, so what else lies in their folders is no image that was left out.
    Raises ValueError in one line for files that cannot be read, for training images of more than 8 bits that are all
    but black, and for masks that cannot fit their image.
    """
    anomalous = [sample for sample in test if sample.anomalous and sample.mask is not None]
    files = [(sample.image, sample.upright) for sample in (*train, *test)]
    headers = read_headers([*files, *((s.mask, s.upright) for s in anomalous if s.mask is not None)], workers)
    images, of_test = headers[: len(files)], headers[len(train) : len(files)]
    kinds = sorted({header.kind for header in images[: len(train)]})
    return [
        *(() if listed else left_out(train, test)),
        *check_headers(images),
        *(unlike_kinds(of_test, kinds) if kinds else ()),
        *check_brightness(train, images[: len(train)]),
        *check_masks(anomalous, threshold, workers),
    ]


def left_out(train: Sequence[Sample], test: Sequence[Sample]) -> Iterator[str]:
    """One line on what looks like an image and is not read: other formats, and folders called like images."""
    folders = {sample.image.parent for sample in (*train, *test)}
    for parent in {sample.image.parent.parent for sample in test}:
        folders |= set(list_folders(parent))  # a whole folder of one defect may be of another format
    found = []
    for folder in sorted(folders):
        for entry in visible_entries(folder):
            if is_left_out(entry):
                found.append(Path(entry.path))
    if found:
        what = (
            "a folder called like an image" if found[0].is_dir() else "a format that is not read, save as JPEG or PNG"
        )
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"left out: {printable(found[0])} ({what}){more}"


def is_left_out(entry: os.DirEntry[str]) -> bool:
    """Whether it is an image of a format that is not read, or a folder that is called like an image."""
    suffix = Path(entry.name).suffix.lower()
    return suffix in OTHER_SUFFIXES or (suffix in IMAGE_SUFFIXES and entry.is_dir())


def check_headers(headers: Sequence[Header]) -> Iterator[str]:
    """One line each on very narrow images and on files that hold several images."""
    yield from tell(
        headers,
        lambda h: max(h.aspect, 1 / h.aspect) > NARROW,
        f"have a side more than {NARROW} times the other, and are stretched to a square",
    )
    yield from tell(headers, lambda h: h.frames > 1, "hold several pages or frames, of which the first is read")


def check_brightness(samples: Sequence[Sample], headers: Sequence[Header]) -> Iterator[str]:
    """A line where all pixels of a class are darker than DARK of 255. Decodes images until one is not.

    Raises ValueError where the files have more than 8 bits: 12 bits in a 16-bit file, or 8 in 32.
    """
    brightest, stored = 0, 0
    for sample in samples:
        image = open_image(sample.image)
        brightest = max(brightest, *brightness(to_rgb(image, sample.image)))
        if brightest >= DARK:
            return
        stored = max(stored, int(np.asarray(image).max())) if image.mode in MODES_16_BIT else stored
    if not samples:
        return
    bits = max(header.bits for header in headers)
    text = dark_text(brightest, bits, stored)
    if bits > 8:
        raise ValueError(f"{printable(samples[0].image.parent)}: {text}")
    yield f"{printable(samples[0].image.parent)}: {text}"


def brightness(image: Image.Image) -> tuple[int, ...]:
    """The greatest value of each channel of an RGB image."""
    return tuple(int(high) for _, high in np.reshape(image.getextrema(), (-1, 2)))


def dark_text(brightest: int, bits: int, stored: int = 0) -> str:
    """What is wrong with a class whose brightest pixel has this value, of 255; `stored`: as written in the file."""
    text = f"no pixel of the training images is brighter than {brightest} of 255"
    if bits <= 8:
        return f"{text}: images this dark tell little; are the values right?"
    depth = f", in the files {stored} ({stored.bit_length()} bits)" if stored else ""
    return f"{text}{depth}, and the files have {bits} bits: scale their values to the whole range"


def check_masks(samples: Sequence[Sample], threshold: int = 0, workers: int = 0) -> Iterator[str]:
    """One line for each kind of problem of the masks of these samples; see MASK_PROBLEMS.

    Raises ValueError for masks that cannot fit their image, or cannot be read.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    inspected = prefetch_map(partial(mask_problems, threshold=threshold), samples, workers)
    for sample, problems in zip(samples, inspected, strict=True):
        for problem in problems:
            assert sample.mask is not None
            found[problem].append(sample.mask)
    for problem in MASK_PROBLEMS:
        if problem in found:
            paths, text = found[problem], MASK_PROBLEMS[problem].format(threshold=threshold)
            line = f"{printable(paths[0])}: {text}{count_masks(paths)}"
            if problem in MASK_ERRORS:
                raise ValueError(line)
            yield line


def count_masks(paths: Sequence[Path]) -> str:
    """What follows a line on the first of these masks: how many there are, where they are several."""
    return f" ({len(paths)} masks)" if len(paths) > 1 else ""


def mask_problems(sample: Sample, threshold: int = 0) -> list[str]:
    """The names in MASK_PROBLEMS that hold for the mask of a sample. Raises ValueError where it cannot be read."""
    assert sample.mask is not None
    with_format, image = open_mask(sample.mask, sample.upright)
    values = mask_values(image)
    share = float((values > threshold).mean())
    size = read_size(sample.image, sample.upright)
    holds = {
        "jpeg": with_format == "JPEG",
        "gray": with_format != "JPEG" and has_gray(values),
        "alpha": image.mode in ALPHA_MODES and len(np.unique(np.asarray(image)[..., -1])) > 1,
        "empty": share == 0,
        "full": share > NEARLY_ALL,
    }
    problems = [name for name, is_so in holds.items() if is_so]
    return [*problems, *shape_problems(image.size, size, sample.image)]


def open_mask(path: Path, upright: bool) -> tuple[str, Image.Image]:
    """(format, decoded image) of a mask."""
    (header,) = read_headers([(path, upright)])
    return header.format, open_image(path, upright)


def has_gray(values: NDArray[np.generic]) -> bool:
    """Whether there are more than two values, other than the ids of defects (0, 1, 2, ...)."""
    if values.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    else:
        found = np.unique(values)
    return len(found) > 2 and bool(found[-1] > GREATEST_ID)


def shape_problems(mask: tuple[int, int], image: tuple[int, int], path: Path) -> list[str]:
    """What is wrong with a mask of this (width, height) for the image at `path`: nothing, its aspect, swapped sides."""
    (width, height), (w, h) = image, mask
    if abs(w * height - h * width) <= max(w, h, width, height):
        return []  # but for one pixel
    if fits_only_rotated(mask, image, read_orientation(path)):
        return []  # `read_oriented_mask` rotates it, and says so
    return ["transposed" if mask == swap(image) else "aspect"]
