"""MVTec AD 2: a public test set with masks, and two private ones that the benchmark's server scores.

    <class>/train/good/NNN_regular.png             normal
    <class>/validation/good/NNN_regular.png        normal: the threshold comes from these
    <class>/test_public/{good,bad}/NNN_LIGHT.png   the test set; LIGHT: regular, overexposed, underexposed, shift_1, ...
    <class>/test_public/ground_truth/bad/NNN_LIGHT_mask.png
    <class>/test_private/NNN_regular.png           flat and without labels, numbered from 000
    <class>/test_private_mixed/NNN_mixed.png       the same objects in other light

The light is the group of a sample. Heckler-Kram et al., "The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised
Anomaly Detection", 2025.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from readers.base import (
    VALIDATION,
    Sample,
    Source,
    check_split,
    find_class_folder,
    list_images,
    no_images_error,
    require_folder,
)
from readers.mvtec import read_normals, read_test_folders
from utils import printable

PUBLIC, MASKS = "test_public", "ground_truth"
PRIVATE = {"test_private": "regular", "test_private_mixed": "mixed"}  # the end of the names in each


def read_mvtec_ad_2(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of one class and split, sorted by folder and file name; the test split is test_public.

    None of a validation split that is not there. Raises FileNotFoundError for a class without images and for an
    anomalous image without a mask.
    """
    check_split(split, VALIDATION)
    root = require_folder(source.root, "--data_path")
    folder = find_class_folder(root, class_name)
    if split == "test":
        samples, wanted = read_test_folders(folder / PUBLIC, folder / PUBLIC / MASKS), folder / PUBLIC
    else:
        samples, wanted = read_normals(folder / split), folder / split / "good"
    if not samples and split != VALIDATION:
        raise no_images_error(split, wanted, root)
    return [replace(sample, group=light_of(sample.image)) for sample in samples]


def light_of(image: Path) -> str:
    """000_shift_1.png -> shift_1; empty where the name has another form."""
    found = re.fullmatch(r"\d+_(.+)", image.stem)
    return found[1] if found else ""


def private_stems(split: str, count: int) -> list[str]:
    """The stems of so many images of a private test set: 000_regular, 001_regular, ..."""
    return [f"{number:03}_{PRIVATE[split]}" for number in range(count)]


def list_private(root: Path, class_name: str, split: str, count: int) -> list[Path]:
    """The images of a private test set of a class, by number. Raises FileNotFoundError in one line where they are not
    the `count` images that were published."""
    folder = find_class_folder(root, class_name) / split
    images = list_images(folder)
    if problems := private_problems(images, folder, split, count):
        raise FileNotFoundError("; ".join(problems))
    return images


def private_problems(images: Sequence[Path], folder: Path, split: str, count: int) -> list[str]:
    """What is wrong with the images of a private test set: those that are missing, and those with other names."""
    wanted, found = private_stems(split, count), [image.stem for image in images]
    missing = sorted(set(wanted) - set(found))
    others = [image for image in images if image.stem not in set(wanted)]
    twice = [stem for stem in dict.fromkeys(found) if found.count(stem) > 1] if len(found) > len(set(found)) else []
    problems = []
    if missing:
        problems.append(
            f"{printable(folder)}: {len(missing)} of {count} images are missing, the first {missing[0]}.png: unpack "
            "the data set again"
        )
    if others:
        problems.append(
            f"{printable(folder)}: {len(others)} images with other names than {wanted[0]} to {wanted[-1]}, the first "
            f"{printable(others[0].name)}: move them away"
        )
    if twice:
        problems.append(f"{printable(folder)}: {twice[0]} is there with two suffixes: remove one of them")
    return problems
