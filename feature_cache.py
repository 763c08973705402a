"""The teacher's features of the training images: computed once where that is exact, in memory or in files.

In files, a folder per key, named by its hash: `key.json` says what the features were made of and has a checksum of each
level, `level0` to `level2` hold them, (N, H, W, C) without a header. A folder is filled under another name and renamed
when it is whole, so what lies under its own name is complete, whoever else was filling at the same time. Runs that need
the same features share them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import ImageSet, image_batches
from methods.pairs import TeacherFeatures
from methods.synthetic_anomalies import Corruption
from model.teacher import Teacher
from readers.contents import content_hashes
from scoring.anomaly_map import cosine_distance
from utils import partial_path, prefetch_map, sweep_partials, to_device

GIB = 2**30
KEY = "key.json"


@dataclass(frozen=True)
class CachePolicy:
    """What is cached of the training images from epoch to epoch.

    features  the teacher's features, in memory          images  the resized images, uint8, in memory
    file      the features in memory-mapped files        none    nothing
    auto      the first of features, file, images, none that fits: in `gib` GiB of memory; in files where `folder` is
              named and its disk has the room
    """

    kind: str = "auto"
    gib: float = 4.0
    folder: Path | None = None

    def choose(self, feature_bytes: int, image_bytes: int, with_images: bool) -> str:
        """One of features, file, images, none for data of these sizes; `with_images`: images are needed every epoch."""
        if self.kind != "auto":
            return self.kind
        beside = image_bytes if with_images else 0
        if feature_bytes + beside <= self.gib * GIB:
            return "features"
        if self.folder is not None and beside <= self.gib * GIB and feature_bytes < _free_disk(self.folder):
            return "file"
        return "images" if image_bytes <= self.gib * GIB else "none"


class FeatureCache:
    """The teacher's features of the training images, batch by batch, computed once where that is exact and fits.

    All kinds of cache give the same features; `self.kind` is the one that was chosen. Where `corrupt` paints synthetic
    anomalies anew in every epoch, the kinds features and file keep the images too, since the teacher has to process the
    corrupted ones every time. Features are computed in one pass over the images; a file that holds them already is used
    as it is. Raises ValueError for the kind file without a folder.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: ImageSet,
        policy: CachePolicy = CachePolicy(),
        batch_size: int = 16,
        workers: int = 0,
        corrupt: Corruption | None = None,
    ) -> None:
        self.teacher, self.images, self.workers, self.corrupt = teacher, images, workers, corrupt
        self.device = teacher.device
        first = teacher(to_device(images.image(0)[None], self.device))
        feature_bytes, image_bytes = bytes_of(len(images), first), len(images) * 3 * images.size**2
        self.kind = policy.choose(feature_bytes, image_bytes, corrupt is not None)
        self.pixels: np.ndarray | None = None
        self.levels: list[Tensor] | None = None
        if self.kind == "images" or (self.kind in ("features", "file") and corrupt):
            self.pixels = np.empty((len(images), 3, images.size, images.size), np.uint8)
            for i, pixels in enumerate(prefetch_map(images.image, range(len(images)), workers)):
                self.pixels[i] = pixels
        if self.kind == "features":
            # on the GPU where less than half of what is free there is taken, else in main memory
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
            place = self.device if feature_bytes < free / 2 else torch.device("cpu")
            self.levels = [_allocate(len(images), level, place) for level in first]
            self._fill(self.levels, batch_size)
        elif self.kind == "file":
            if policy.folder is None:
                raise ValueError("--cache file needs --cache_dir, the folder for the teacher's features")
            fill = functools.partial(self._fill, batch_size=batch_size)
            self.levels = stored_levels(policy.folder, self._key(), len(images), first, fill)

    def batches(self, order: Sequence[int], batch_size: int) -> Iterator[TeacherFeatures]:
        """The features of `batch_size` images at a time, on the device; the last batch may be smaller.

        Synthetic anomalies are drawn from a generator that torch's global state seeds.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, ()))) if self.corrupt else None
        if self.levels is not None and rng is None:  # no image is needed any more
            # one copy of the order for the whole epoch: no step waits for a GPU
            for chosen in torch.as_tensor(order, device=self.levels[0].device).split(batch_size):
                yield TeacherFeatures(self._cached(chosen))
            return
        for indices, pixels in self._image_batches(order, batch_size):
            images = to_device(pixels, self.device)
            clean = self.teacher(images) if self.levels is None else self._cached(torch.as_tensor(indices))
            yield TeacherFeatures(clean) if rng is None else self._corrupted_batch(images, clean, rng)

    def _fill(self, levels: list[Tensor], batch_size: int) -> None:
        for indices, pixels in self._image_batches(range(len(self.images)), batch_size):
            for stored, level in zip(levels, self.teacher(to_device(pixels, self.device)), strict=True):
                stored[indices] = level.to(stored.device)

    def _key(self) -> dict[str, Any]:
        """All that decides the features: teacher and precision, image size, and the content of each image's file."""
        teacher = [self.teacher.name, self.teacher.weights, self.teacher.precision, self.device.type]
        samples = list(dict.fromkeys(self.images.samples))  # the windows of an image are samples of one file
        hashes = content_hashes([sample.image for sample in samples], workers=self.workers)
        files = [(hashes[s.image], s.upright) for s in samples]
        return {"teacher": teacher, **self.images.geometry, "torch": torch.__version__, "files": files}

    def _corrupted_batch(self, images: Tensor, clean: list[Tensor], rng: np.random.Generator) -> TeacherFeatures:
        assert self.corrupt is not None
        images = images / 255.0
        corrupted = self.corrupt(images, rng)
        corruption_map = cosine_distance(self.teacher.normalize(corrupted), self.teacher.normalize(images))
        return TeacherFeatures(clean, self.teacher(corrupted), corruption_map[:, None])

    def _cached(self, chosen: Tensor) -> list[Tensor]:
        """The cached levels of the chosen images."""
        assert self.levels is not None
        return [level[chosen.to(level.device)].to(self.device, non_blocking=True) for level in self.levels]

    def _image_batches(self, order: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices, pixels) in this order, from memory or decoded on threads that run ahead of the teacher."""
        if self.pixels is None:
            yield from image_batches(self.images, order, batch_size, self.workers)
            return
        for start in range(0, len(order), batch_size):
            indices = list(order[start : start + batch_size])
            yield indices, self.pixels[indices]


def _allocate(count: int, level: Tensor, place: torch.device) -> Tensor:
    """Memory for `count` levels like the first of these, in the same layout: a batch is gathered in long runs."""
    channels_last = level.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((count, *level.shape[1:]), dtype=level.dtype, device=place, memory_format=layout)


def _free_disk(folder: Path) -> int:
    """Bytes free where `folder` lies or will lie."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free


def stored_levels(
    root: Path, key: Mapping[str, Any], count: int, like: Sequence[Tensor], fill: Callable[[list[Tensor]], None]
) -> list[Tensor]:
    """Levels of `count` images, each (N, C, H, W) laid out channels last, as `like`'s (1, C, H, W): read or made.

    `key` is all that decides them, as JSON takes it. `fill` writes all levels into the tensors it is given. What lies
    there under the same hash with another key, size or checksum is not used but made again. Raises OSError where the
    disk has no room for all of them.
    """
    key = {**key, "count": count, "levels": [[str(x.dtype), *x.shape[1:]] for x in like]}
    folder = root / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    if not _holds(folder, key, count, like):
        if folder.exists():
            print(f"{folder}: the stored features are damaged; they are made again")
        sweep_partials(root)
        partial = partial_path(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for k, level in enumerate(like):
                _reserve(partial / f"level{k}", bytes_of(count, [level]))
            fill(_mapped(partial, count, like, writable=True))
            checksums = [_checksum(partial / f"level{k}") for k in range(len(like))]
            (partial / KEY).write_text(json.dumps({"key": key, "crc32": checksums}, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            try:
                partial.rename(folder)
            except OSError:  # another process was as fast
                if not _holds(folder, key, count, like):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _mapped(folder, count, like, writable=False)


def bytes_of(count: int, like: Sequence[Tensor]) -> int:
    """How much `count` images' levels take, in memory or in a file."""
    return count * sum(level[0].numel() * level.element_size() for level in like)


def _holds(folder: Path, key: Mapping[str, Any], count: int, like: Sequence[Tensor]) -> bool:
    """Whether the folder holds the features of this key, whole and as they were written."""
    files = [folder / f"level{k}" for k in range(len(like))]
    try:
        content = json.loads((folder / KEY).read_text())
        sizes = [path.stat().st_size for path in files if path.is_file()]
        if sizes != [bytes_of(count, [level]) for level in like] or content["key"] != json.loads(json.dumps(key)):
            return False
        return content["crc32"] == [_checksum(path) for path in files]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes. Raises OSError where the disk is too full: writing to a mapped file cannot."""
    with path.open("wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as problem:
                raise OSError(
                    problem.errno, f"{problem.strerror}: {size / GIB:.1f} GiB are needed", str(path)
                ) from None


def _mapped(folder: Path, count: int, like: Sequence[Tensor], writable: bool) -> list[Tensor]:
    levels = []
    for k, level in enumerate(like):
        _, channels, height, width = level.shape
        size = count * channels * height * width
        flat = torch.from_file(str(folder / f"level{k}"), shared=writable, size=size, dtype=level.dtype)
        levels.append(flat.view(count, height, width, channels).permute(0, 3, 1, 2))
    return levels
