"""CIFAR-10, one class against the nine others: trained on the training images of a class, tested on all test images.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. It is published as pickled files of 10,000
images each, cifar-10-batches-py. On first use they are unpacked to PNG files, which hold the same pixels:

    cifar-10-images/{train,test}/<class>/<index>.png

where the index counts the images of a split in the order of the files. From then on the PNG files alone are read.
torchvision knows the pickled files and their md5 sums; nothing is unpickled that does not match, and nothing is
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

    A test image of another class is anomalous, and that class's name is its defect. There are no masks.
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

    The images always lie below `root`: inside it where `root` is the folder of the batches itself. Raises
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
    """The folder of unpacked images, whole or not: `root` or the first below it; None where there is none."""
    return next(filter(is_unpacked, candidate_roots(root)), None)


def is_unpacked(folder: Path) -> bool:
    """True where `folder` was written by `prepare_cifar10`, in some version."""
    return read_readme(folder).startswith(TITLE)


def is_whole(folder: Path) -> bool:
    """True where `folder` holds this version, and as many images as were written."""
    suffixes = tuple(IMAGE_SUFFIXES)
    classes = [folder / split / name for split in SPLITS for name in CIFAR10_CLASSES]
    count = sum(entry.name.lower().endswith(suffixes) for place in classes for entry in visible_entries(place))
    return read_readme(folder) == readme(count)


def readme(count: int) -> str:
    """What readme.txt says in a folder of `count` images; it is written last, so it marks a whole folder."""
    return f"""{TITLE}, version {VERSION}

{count} images, unpacked by the program from cifar-10-batches-py to <split>/<class>/<index>.png, where the index counts
the images of a split in the order of the files. While you keep cifar-10-batches-py, this folder may be deleted: it is
made again. Keep nothing of your own in it.
"""


def find_batches(root: Path) -> Path:
    """The folder of the batches: `root` or the first below it that holds one; else where torchvision wants it."""
    files = [file for file, _ in _wanted()]
    holds = (p for p in candidate_roots(root) if any((p / file).is_file() for file in files))
    return next(holds, root / _torchvision().base_folder)


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of every batch and of the label names by file name, each compared with its md5 sum.

    Raises FileNotFoundError that lists every file that is missing or differs.
    """
    contents, problems = {}, []
    for file, md5 in _wanted():
        try:
            contents[file] = (folder / file).read_bytes()
            found = f"md5 {hashlib.md5(contents[file], usedforsecurity=False).hexdigest()}"
        except OSError as problem:
            missing = isinstance(problem, FileNotFoundError | NotADirectoryError)
            found = "no such file" if missing else f"a file that cannot be read: {problem.strerror}"
        if found != f"md5 {md5}":
            problems.append(f"{file} (wanted md5 {md5}, found {found})")
    if problems:
        tables = _torchvision()
        raise FileNotFoundError(
            f"{folder}: CIFAR-10 is missing or damaged: {', '.join(problems)}; unpack {tables.filename} (md5 "
            f"{tables.tgz_md5}) from {tables.url} under --data_path: nothing is downloaded here"
        )
    return contents


def unpack(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write every image of the files' contents as PNG below `folder`, then the readme that states their number."""
    for split in SPLITS:
        for name in CIFAR10_CLASSES:
            (folder / split / name).mkdir(parents=True)
    written = prefetch_map(write_image, list_rows(contents, folder), os.cpu_count() or 1)
    count = sum(1 for _ in written)
    (folder / "readme.txt").write_text(readme(count), encoding="utf-8")


def list_rows(contents: Mapping[str, bytes], folder: Path) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """(path below `folder`, (3072,) pixels) of every image; a file is unpickled when its turn comes."""
    tables = _torchvision()
    names = _unpickle(contents[tables.meta["filename"]])[tables.meta["key"]]
    for split, files in zip(SPLITS, (tables.train_list, tables.test_list), strict=True):
        index = 0
        for file, _ in files:
            batch = _unpickle(contents[file])
            for label, pixels in zip(batch["labels"], batch["data"], strict=True):
                yield folder / split / names[label] / f"{index:05}.png", pixels
                index += 1


def write_image(row: tuple[Path, NDArray[np.uint8]]) -> None:
    """Save (3072,) pixels, all of red, then green, then blue, as a 32x32 PNG file."""
    path, pixels = row
    channels = pixels.reshape(3, SIDE, SIDE)
    Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0))).save(path, compress_level=1)


def _torchvision() -> Any:
    """torchvision's class of the files' names and sums; imported here, since it costs other benchmarks seconds."""
    from torchvision.datasets import CIFAR10

    return CIFAR10


def _wanted() -> list[tuple[str, str]]:
    """(file name, md5) of the training batches, the test batch and the label names."""
    tables = _torchvision()
    return [*tables.train_list, *tables.test_list, (tables.meta["filename"], tables.meta["md5"])]


def _unpickle(content: bytes) -> dict[str, Any]:
    """The content of a file as Python objects. A pickle can run code: call this only once the md5 sum has matched."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"dtype\(\): align")  # NumPy 2.4.0 to 2.4.4 mind how NumPy 1 wrote types
        return pickle.loads(content, encoding="latin1")  # written by Python 2
