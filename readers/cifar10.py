"""CIFAR-10, one class against the nine others: trained on the training images of a class, tested on all test images.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The images lie by the ten thousand in pickled
files, so a sample names one by file and row: `cifar-10-batches-py/test_batch/00042`. torchvision knows the files and
their md5 sums; nothing is unpickled that does not match, and nothing is downloaded.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from readers.base import Sample, Source, candidate_roots, check_split, require_folder

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
SIDE = 32  # pixels
LOADING = threading.Lock()  # images are decoded on several threads, batches loaded by one


def read_cifar10(source: Source, class_name: str, split: str) -> list[Sample]:
    """The training images of a class, or all test images: the class is good, another class's name is the defect.

    Raises FileNotFoundError where files are missing or damaged, ValueError for an unknown class.
    """
    check_split(split)
    folder = find_batches(require_folder(source.root, "--data_path"))
    tables = _torchvision()
    names = _load(folder / tables.meta["filename"])[tables.meta["key"]]
    if class_name not in names:
        raise ValueError(f"unknown class {class_name!r} of cifar10: choose from {', '.join(names)}")
    samples = []
    for file, _ in tables.train_list if split == "train" else tables.test_list:
        for row, label in enumerate(_load(folder / file)["labels"]):
            anomalous = names[label] != class_name
            if split == "test" or not anomalous:
                samples.append(Sample(folder / file / f"{row:05}", anomalous, names[label] if anomalous else "good"))
    return samples


def find_batches(root: Path) -> Path:
    """The folder of the batches: `root` or the first below it that holds one; else where torchvision wants it."""
    files = [file for file, _ in _wanted()]
    holds = (p for p in candidate_roots(root) if any((p / file).is_file() for file in files))
    return next(holds, root / _torchvision().base_folder)


def is_row(path: Path) -> bool:
    """True for an image inside a file: a number below something that is a file. The name nearly always affects_results."""
    return path.name.isdigit() and path.parent.is_file()


def open_row(path: Path) -> Image.Image:
    """The RGB picture, 32x32, at `batch file/row`. Raises FileNotFoundError, also for a row that is not there."""
    rows = _load(path.parent)["data"]
    if int(path.name) >= len(rows):
        raise FileNotFoundError(f"{path}: no such row, the file has {len(rows)}")
    channels = rows[int(path.name)].reshape(3, SIDE, SIDE)  # a row is all of red, then green, then blue
    return Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0)))


def _torchvision() -> Any:
    """torchvision's class of the files' names and sums; imported here, since it costs other benchmarks seconds."""
    from torchvision.datasets import CIFAR10

    return CIFAR10


def _wanted() -> list[tuple[str, str]]:
    """(file name, md5) of the training batches, the test batch and the label names."""
    tables = _torchvision()
    return [*tables.train_list, *tables.test_list, (tables.meta["filename"], tables.meta["md5"])]


@lru_cache
def _check_files(folder: Path) -> None:
    """Compare all sums, once per process and folder. Raises FileNotFoundError that lists every file that differs."""
    from torchvision.datasets.utils import calculate_md5, check_integrity

    problems = []
    for file, md5 in _wanted():
        path = folder / file
        if not check_integrity(path, md5):
            found = f"md5 {calculate_md5(path)}" if path.is_file() else "no such file"
            problems.append(f"{file} (wanted md5 {md5}, found {found})")
    if problems:
        tables = _torchvision()
        raise FileNotFoundError(
            f"{folder}: CIFAR-10 is missing or damaged: {', '.join(problems)}; unpack {tables.filename} (md5 "
            f"{tables.tgz_md5}) from {tables.url} under --data_path: nothing is downloaded here"
        )


def _load(path: Path) -> dict[str, Any]:
    """The content of a batch or of the label names, loaded once and checked before, since a pickle can run code."""
    with LOADING:
        _check_files(path.parent)
        return _unpickle(path)


@lru_cache(maxsize=7)  # all files of one copy, 184 MB
def _unpickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"dtype\(\): align")  # NumPy 2.4.0 to 2.4.4 mind how NumPy 1 wrote types
        return pickle.load(file, encoding="latin1")  # written by Python 2
