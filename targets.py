"""What the student is shown in an epoch: the teacher's levels of the training images, computed once where exact."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from damage import Painter
from dataset import ImageSet
from discrepancy import cosine_distance
from features import bytes_of, stored_levels
from model import Seen, Teacher
from readers.base import file_stamp
from utils import map_ahead

GIB = 2**30


@dataclass(frozen=True)
class Cache:
    """What of the training images is kept from epoch to epoch.

    features  the teacher's levels, in memory        images  the resized images, uint8, in memory
    file      the levels in memory-mapped files      none    nothing
    auto      the first of features, file, images, none that is allowed: in memory `gib` GiB; in files where `folder`
              is named and has the room
    """

    kind: str = "auto"
    gib: float = 4.0
    folder: Path | None = None

    def choose(self, feature_bytes: int, image_bytes: int, with_images: bool) -> str:
        """One of features, file, images, none for data of these sizes; `with_images`: levels alone do not do."""
        if self.kind != "auto":
            return self.kind
        beside = image_bytes if with_images else 0
        if feature_bytes + beside <= self.gib * GIB:
            return "features"
        if self.folder is not None and beside <= self.gib * GIB and feature_bytes < _free_disk(self.folder):
            return "file"
        return "images" if image_bytes <= self.gib * GIB else "none"


class Targets:
    """What the teacher sees of the training images, batch by batch, computed once where that is exact and fits.

    All kinds of `cache` give the same levels; `self.cache` is the kind that was chosen. Where `paint` damages the
    images anew in each epoch, features and file keep the images too: the teacher has to look at the damaged ones every
    time. Levels are computed in one pass over the images; a file that holds them already is used as it lies. Raises
    ValueError for a cache file without a folder.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: ImageSet,
        device: torch.device,
        cache: Cache = Cache(),
        batch_size: int = 16,
        workers: int = 0,
        paint: Painter | None = None,
    ) -> None:
        self.teacher, self.images, self.device, self.workers, self.paint = teacher, images, device, workers, paint
        first = teacher(self._on_device(images.image(0)[None]))
        feature_bytes, image_bytes = bytes_of(len(images), first), len(images) * 3 * images.size**2
        self.cache = cache.choose(feature_bytes, image_bytes, paint is not None)
        self.pixels: np.ndarray | None = None
        self.levels: list[Tensor] | None = None
        if self.cache == "images" or (self.cache in ("features", "file") and paint):
            self.pixels = np.stack(list(map_ahead(images.image, range(len(images)), workers)))
        if self.cache == "features":
            # on the GPU where less than half of what is free there is taken, else in main memory
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            place = device if feature_bytes < free / 2 else torch.device("cpu")
            self.levels = [_room(len(images), level, place) for level in first]
            self._fill(self.levels, batch_size)
        elif self.cache == "file":
            if cache.folder is None:
                raise ValueError("--cache file wants --cache_dir, the folder for the teacher's features")
            fill = functools.partial(self._fill, batch_size=batch_size)
            self.levels = stored_levels(cache.folder, self._key(), len(images), first, fill)

    def _fill(self, levels: list[Tensor], batch_size: int) -> None:
        for indices, pixels in self._pictures(range(len(self.images)), batch_size):
            for kept, level in zip(levels, self.teacher(self._on_device(pixels)), strict=True):
                kept[indices] = level.to(kept.device)

    def _key(self) -> dict[str, Any]:
        """All that decides the levels: teacher and precision, image size, and each image's file as it is now."""
        teacher = [self.teacher.name, self.teacher.weights, self.teacher.precision, self.device.type]
        files = [(str(path.resolve()), *file_stamp(path)) for path in (s.image for s in self.images.samples)]
        return {"teacher": teacher, "size": self.images.size, "torch": torch.__version__, "files": files}

    def batches(self, order: Sequence[int], batch_size: int) -> Iterator[Seen]:
        """What is seen of `batch_size` images at a time, on the device; the last batch may be smaller.

        Damage is drawn from a generator that torch's global state seeds.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, ()))) if self.paint else None
        if self.levels is not None and rng is None:  # no picture is needed any more
            # one copy of the order for the whole epoch: no step waits for a GPU
            for chosen in torch.as_tensor(order, device=self.levels[0].device).split(batch_size):
                yield Seen(self._kept(chosen))
            return
        for indices, pixels in self._pictures(order, batch_size):
            images = self._on_device(pixels)
            clean = self.teacher(images) if self.levels is None else self._kept(torch.as_tensor(indices))
            yield Seen(clean) if rng is None else self._damaged(images, clean, rng)

    def _damaged(self, images: Tensor, clean: list[Tensor], rng: np.random.Generator) -> Seen:
        assert self.paint is not None
        images = images / 255.0
        painted = self.paint(images, rng)
        damage = cosine_distance(self.teacher.normalised(painted), self.teacher.normalised(images))
        return Seen(clean, self.teacher(painted), damage[:, None])

    def _kept(self, chosen: Tensor) -> list[Tensor]:
        """The cached levels of the chosen images."""
        assert self.levels is not None
        return [level[chosen.to(level.device)].to(self.device, non_blocking=True) for level in self.levels]

    def _pictures(self, order: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices, pixels) in this order, from memory or decoded on threads that run ahead of the teacher."""
        if self.pixels is None:
            yield from image_batches(self.images, order, batch_size, self.workers)
            return
        for start in range(0, len(order), batch_size):
            indices = list(order[start : start + batch_size])
            yield indices, self.pixels[indices]

    def _on_device(self, pixels: np.ndarray) -> Tensor:
        return on_device(pixels, self.device)


def on_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Pixels on the device; a GPU gets them from pinned memory while the processor goes on."""
    images = torch.from_numpy(pixels)
    return images.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else images.to(device)


def image_batches(
    images: ImageSet, order: Sequence[int], batch_size: int, workers: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(indices, pixels (B, 3, S, S) uint8) in this order, decoded on `workers` threads ahead of the reader."""
    decoded = map_ahead(images.image, order, workers)
    for start in range(0, len(order), batch_size):
        indices = list(order[start : start + batch_size])
        yield indices, np.stack([next(decoded) for _ in indices])


def _room(count: int, level: Tensor, place: torch.device) -> Tensor:
    """Room for `count` levels like the first of these, laid out as they are: a batch is gathered in long runs."""
    shape = (count, *level.shape[1:])
    return torch.empty(shape, dtype=level.dtype, device=place, memory_format=torch.channels_last)


def _free_disk(folder: Path) -> int:
    """Bytes free where `folder` lies or will lie."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free
