"""What a submission holds: an anomaly map and a thresholded map for each private image of MVTec AD 2.

    anomaly_images/<class>/<split>/<stem>.tiff               (H, W) float16, of the size of the image
    anomaly_images_thresholded/<class>/<split>/<stem>.png    (H, W) uint8, 255 where anomalous, else 0

The splits are test_private and test_private_mixed, the stems 000_regular and 000_mixed, 001_..., and so on for each
image. They are uploaded as one .tar.gz. Written from the published description of the format.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from readers.expected import published_counts
from readers.mvtec_ad_2 import PRIVATE, private_stems

BENCHMARK = "mvtec_ad_2"
MAPS, THRESHOLDED = "anomaly_images", "anomaly_images_thresholded"
SUFFIXES = {MAPS: ".tiff", THRESHOLDED: ".png"}
LARGEST = float(np.finfo(np.float16).max)  # 65504
LOW, HIGH = 2.0**-4, 2.0**8  # levels of a map that float16 holds well, with room on both sides


def private_counts() -> dict[str, int]:
    """{class: the images of each of its private test sets}, as published."""
    return {name: counts["private"] for name, counts in published_counts(BENCHMARK).items()}


def sets_of_images() -> Iterator[tuple[str, str, list[str]]]:
    """(class, split, stems) of every private test set."""
    for class_name, count in private_counts().items():
        for split in PRIVATE:
            yield class_name, split, private_stems(split, count)


def member_name(folder: str, class_name: str, split: str, stem: str) -> str:
    """The name of a file in the archive."""
    return f"{folder}/{class_name}/{split}/{stem}{SUFFIXES[folder]}"


def float16_factor(level: float) -> float:
    """The power of two by which maps are multiplied where `level`, a typical value of theirs, is far from 1.

    float16 has eleven significant bits between 0.00006 and 65504. A level from 1/16 to 256 is left as it is; any other
    becomes one from 1 to 2. A power of two changes no order, and no other bit of a value that stays in that range.
    """
    size = abs(level)
    if size == 0 or LOW <= size < HIGH:
        return 1.0
    return float(2.0 ** (1 - np.frexp(size)[1]))


def to_float16(anomaly_map: np.ndarray, factor: float) -> tuple[np.ndarray, int]:
    """(H, W) finite float32 -> the map times the factor as float16, and how many values had to be cut at 65504."""
    scaled = anomaly_map.astype(np.float64) * factor
    cut = int((np.abs(scaled) > LARGEST).sum())
    return np.clip(scaled, -LARGEST, LARGEST).astype(np.float16), cut


def encode_map(values: np.ndarray) -> bytes:
    """(H, W) float16 -> a TIFF file of one page, not compressed: the archive is."""
    import tifffile  # as here and below, imported where it is used: --help is answered at once

    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", metadata=None)
    return file.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """(H, W) bool -> a PNG file of 0 and 255."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG", compress_level=6)
    return file.getvalue()
