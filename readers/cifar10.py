"""CIFAR-10, one class against the nine others: trained on the training images of a class, tested on all test images.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The data set is published as pickled files of
10,000 images each, cifar-10-batches-py. On first use they are unpacked to PNG files with the same pixels:

    cifar-10-images/{train,test}/<class>/<index>.png

where the index counts the images of a split in the order of the files. From then on only the PNG files are read.
torchvision lists the pickled files with their md5 sums; a file is unpickled only if its sum matches, and nothing is
downloaded.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from readers.base import (
    IMAGE_SUFFIXES,
    SPLITS,
    Sample,
    Source,
    candidate_roots,
    check_split,
    is_vacant,
    list_images,
    make_folder,
    read_readme,
    require_folder,
    visible_entries,
)
from utils import prefetch_map

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
SIDE = 32  # pixels
FOLDER = "cifar-10-images"
TITLE = "CIFAR-10 as PNG files"
VERSION = 1


def read_cifar10(source: Source, class_name: str, split: str) -> list[Sample]:
    """The training images of a class, or all test images, sorted by index.

    A test image of another class is anomalous; its defect is the name of that class. There are no masks.
    Raises FileNotFoundError where the images are not unpacked (see `prepare_cifar10`), ValueError for an unknown class.
    """
    check_split(split)
    root = require_folder(source.root, "--data_path")
    if class_name not in CIFAR10_CLASSES:
        raise ValueError(f"unknown class {class_name!r} of cifar10: choose from {', '.join(CIFAR10_CLASSES)}")
    folder = find_images(root)
    if folder is None:
        raise FileNotFoundError(f"no {FOLDER} under --data_path {root}: CIFAR-10 is not unpacked yet")
    names = (class_name,) if split == "train" else CIFAR10_CLASSES
    images = [(image, name) for name in names for image in list_images(folder / split / name)]
    images.sort(key=lambda pair: pair[0].name)
    return [
        Sample(image, anomalous=name != class_name, defect="good" if name == class_name else name)
        for image, name in images
    ]


def prepare_cifar10(root: Path) -> None:
    """Unpack the batches under `root` to PNG files beside them, whole or not at all, unless that has been done.

    The images always lie below `root`, even where `root` is the folder of the batches itself. Raises
    FileNotFoundError where the batches are needed and one is missing or damaged, ValueError where the images cannot be
    written or their folder holds something else.
    """
    images = find_images(require_folder(root, "--data_path"))
    if images is not None and is_whole(images):
        return
    batches = find_batches(root)
    try:
        contents = read_files(batches)
    except FileNotFoundError as problem:
        if images is None:
            raise
        raise FileNotFoundError(
            f"{images} no longer holds what was unpacked to it, and it cannot be made again: {problem}"
        ) from None
    if images is None:
        images = (root if batches == root else batches.parent) / FOLDER
        if not is_vacant(images):
            raise ValueError(f"--data_path {root}: CIFAR-10 goes to {images}, which holds something else: rename that")
    print(f"unpacking CIFAR-10 once, from {batches} to PNG files in {images}", file=sys.stderr, flush=True)
    try:
        make_folder(images, partial(unpack, contents), is_unpacked, is_whole)
    except OSError as problem:
        raise ValueError(
            f"--data_path {root}: CIFAR-10 cannot be unpacked to {images} ({problem.strerror or problem}): free some "
            "space or allow writing there, or copy the files to a folder where you may write"
        ) from None


def find_images(root: Path) -> Path | None:
    """The folder of unpacked images, complete or not: `root` or the first below it; None where there is none."""
    return next(filter(is_unpacked, candidate_roots(root)), None)


def is_unpacked(folder: Path) -> bool:
    """Whether `folder` was written by some version of `prepare_cifar10`."""
    return read_readme(folder).startswith(TITLE)


def is_whole(folder: Path) -> bool:
    """Whether `folder` was written by this version and still has as many images as its readme.txt states."""
    suffixes = tuple(IMAGE_SUFFIXES)
    classes = [folder / split / name for split in SPLITS for name in CIFAR10_CLASSES]
    count = sum(entry.name.lower().endswith(suffixes) for place in classes for entry in visible_entries(place))
    return read_readme(folder) == readme(count)


def readme(count: int) -> str:
    """The text of readme.txt for `count` images; it is written last and marks a complete folder."""
    return f"""{TITLE}, version {VERSION}

{count} images, unpacked by the program from cifar-10-batches-py to <split>/<class>/<index>.png, where the index counts
the images of a split in the order of the files. While you keep cifar-10-batches-py, this folder may be deleted: it is
made again. Keep nothing of your own in it.
"""


def find_batches(root: Path) -> Path:
    """The folder of the batches: `root` or the first below it that holds one; else torchvision's default."""
    files = [file for file, _ in _file_sums()]
    holds = (p for p in candidate_roots(root) if any((p / file).is_file() for file in files))
    return next(holds, root / _torchvision().base_folder)


def read_files(folder: Path) -> dict[str, bytes]:
    """{file name: content} of all batches and of the label names, after comparing each with its md5 sum.

    Raises FileNotFoundError with a list of all files that are missing or differ.
    """
    contents, problems = {}, []
    for file, md5 in _file_sums():
        try:
            contents[file] = (folder / file).read_bytes()
            found = f"md5 {hashlib.md5(contents[file], usedforsecurity=False).hexdigest()}"
        except OSError as problem:
            missing = isinstance(problem, FileNotFoundError | NotADirectoryError)
            found = "no such file" if missing else f"a file that cannot be read: {problem.strerror}"
        if found != f"md5 {md5}":
            problems.append(f"{file} (wanted md5 {md5}, found {found})")
    if problems:
        cifar10 = _torchvision()
        raise FileNotFoundError(
            f"{folder}: CIFAR-10 is missing or damaged: {', '.join(problems)}; unpack {cifar10.filename} (md5 "
            f"{cifar10.tgz_md5}) from {cifar10.url} under --data_path: nothing is downloaded here"
        )
    return contents


def unpack(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write all images as PNG files below `folder`, then readme.txt with their number."""
    for split in SPLITS:
        for name in CIFAR10_CLASSES:
            (folder / split / name).mkdir(parents=True)
    written = prefetch_map(write_image, iterate_images(contents, folder), os.cpu_count() or 1)
    count = sum(1 for _ in written)
    (folder / "readme.txt").write_text(readme(count), encoding="utf-8")


def iterate_images(contents: Mapping[str, bytes], folder: Path) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """(path below `folder`, (3072,) pixels) of every image, unpickling one batch after the other."""
    cifar10 = _torchvision()
    names = _unpickle(contents[cifar10.meta["filename"]])[cifar10.meta["key"]]
    for split, files in zip(SPLITS, (cifar10.train_list, cifar10.test_list), strict=True):
        index = 0
        for file, _ in files:
            batch = _unpickle(contents[file])
            for label, pixels in zip(batch["labels"], batch["data"], strict=True):
                yield folder / split / names[label] / f"{index:05}.png", pixels
                index += 1


def write_image(row: tuple[Path, NDArray[np.uint8]]) -> None:
    """Save (3072,) pixels (the red channel, then green, then blue) as a 32x32 PNG file."""
    path, pixels = row
    channels = pixels.reshape(3, SIDE, SIDE)
    Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0))).save(path, compress_level=1)


def _torchvision() -> Any:
    """torchvision's data set, for file names and md5 sums; imported here because that takes seconds."""
    from torchvision.datasets import CIFAR10

    return CIFAR10


def _file_sums() -> list[tuple[str, str]]:
    """(file name, md5 sum) of the training batches, the test batch and the label names."""
    cifar10 = _torchvision()
    return [*cifar10.train_list, *cifar10.test_list, (cifar10.meta["filename"], cifar10.meta["md5"])]


def _unpickle(content: bytes) -> dict[str, Any]:
    """The content of a file as Python objects. A pickle can run code: compare the md5 sum before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"dtype\(\): align")  # NumPy 2.4.0 to 2.4.4 warn of types written by NumPy 1
        return pickle.loads(content, encoding="latin1")  # written by Python 2
