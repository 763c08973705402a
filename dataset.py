"""Benchmarks as rows, samples as arrays.

A benchmark is a title, its class names and a reader; readers/ has one function per layout on disk. All images are
resized to a square of `size` pixels with Pillow, before they become tensors, as in the published code.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from readers.base import (
    Reader,
    Sample,
    Source,
    check_name,
    discover_classes,
    find_class_folder,
    is_class_folder,
    list_folders,
)
from readers.cifar10 import CIFAR10_CLASSES, prepare_cifar10, read_cifar10
from readers.csv_table import find_csv, find_csv_classes, read_csv_table
from readers.demo import DEMO_CLASSES, prepare_demo
from readers.elpv import ELPV_CLASSES, default_root, read_elpv
from readers.folder import name_class, read_folder
from readers.image_io import check_pixels, read_oriented_mask, read_rgb, read_size, rotate_upright, swap, to_rgb
from readers.mvtec import read_mvtec
from readers.mvtec_ad_2 import MASKS, PUBLIC, read_mvtec_ad_2
from readers.real_iad import REAL_IAD_CLASSES, find_real_iad, find_real_iad_classes, read_real_iad
from readers.vad import find_vad, read_vad
from readers.visa import find_visa_classes, read_visa
from scoring.tiles import Tiling
from utils import prefetch_map

__all__ = [
    "BENCHMARKS",
    "UNIFIED",
    "Benchmark",
    "ImageSet",
    "MeasuredImages",
    "Sample",
    "Source",
    "find_classes",
    "image_batches",
    "load_image",
    "load_mask",
    "locate",
]


Size = int | tuple[int, int]  # the side of a square, or (height, width)

WINDOWED = 4  # decoded images, at most, whose windows are being cut for training
UNIFIED = "unified"  # in place of a class: one model over all classes, scored class by class


@dataclass(frozen=True)
class Benchmark:
    """One row of the table: title, classes, and how they are read.

    classes         empty where the folders of the data set decide
    find            lists the classes that are under a root; None: always all classes
    class_folder    the folder of a class; None where classes have no folders of their own
    default_root    the root where --data_path is not given
    find_root       the root that a --data_path means, which may be a file; None: the folder itself
    prepare         makes the data under the root on first use
    mask_threshold  a mask pixel is a defect where its stored value exceeds this
    validation      the reader knows a split of further normal images, where the folders have one
    exclusive       the normal images of one class are anomalies of the others, so no model is for all of them
    group           what `Sample.group` is called: light, view; empty where samples have none
    test_folder     where test images lie in the folder of a class, and
    mask_folder     where their masks do, where `class_folder` finds one
    listed          a file lists the images, so what lies beside them is none of the benchmark's
    own_folders     the images may also be given as --train_dir, --test_dir, --bad and --mask_dir
    """

    title: str
    classes: tuple[str, ...]
    read: Reader
    find: Callable[[Path], tuple[str, ...]] | None = discover_classes
    class_folder: Callable[[Path, str], Path] | None = find_class_folder
    default_root: Callable[[], Path] | None = None
    find_root: Callable[[Path], Path] | None = None
    prepare: Callable[[Path], None] | None = None
    mask_threshold: int = 0
    validation: bool = False
    exclusive: bool = False
    group: str = ""
    test_folder: str = "test"
    mask_folder: str = "ground_truth"
    listed: bool = False
    own_folders: bool = False


MVTEC_CLASSES = (
    "carpet grid leather tile wood bottle cable capsule hazelnut metal_nut pill screw toothbrush transistor zipper"
)
MVTEC_AD_2_CLASSES = "can fabric fruit_jelly rice sheet_metal vial wallplugs walnuts"
VISA_CLASSES = "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"
MPDD_CLASSES = "bracket_black bracket_brown bracket_white connector metal_plate tubes"

BENCHMARKS: dict[str, Benchmark] = {
    "mvtec": Benchmark("MVTec AD", tuple(MVTEC_CLASSES.split()), read_mvtec, validation=True),
    "mvtec_ad_2": Benchmark(
        "MVTec AD 2, public test set",
        tuple(MVTEC_AD_2_CLASSES.split()),
        read_mvtec_ad_2,
        validation=True,
        group="light",
        test_folder=PUBLIC,
        mask_folder=f"{PUBLIC}/{MASKS}",
    ),
    "visa": Benchmark("VisA", tuple(VISA_CLASSES.split()), read_visa, find=find_visa_classes),
    "real_iad": Benchmark(
        "Real-IAD, all views",
        tuple(REAL_IAD_CLASSES.split()),
        read_real_iad,
        find=find_real_iad_classes,
        class_folder=None,
        find_root=find_real_iad,
        group="view",
        listed=True,
    ),
    "vad": Benchmark("VAD (Valeo), one-class", ("vad",), read_vad, find=None, class_folder=find_vad),
    "btad": Benchmark("BTAD", ("01", "02", "03"), read_mvtec),
    "mpdd": Benchmark("MPDD", tuple(MPDD_CLASSES.split()), read_mvtec),
    "elpv": Benchmark(
        "ELPV solar cells, blocks of 30 cells: two thirds train, one third tests",
        ELPV_CLASSES,
        read_elpv,
        find=None,
        class_folder=None,
        default_root=default_root,
    ),
    "cifar10": Benchmark(
        "CIFAR-10, one class against nine",
        CIFAR10_CLASSES,
        read_cifar10,
        find=None,
        class_folder=None,
        prepare=prepare_cifar10,
        exclusive=True,
    ),
    "folder": Benchmark("own images", (), read_folder, validation=True, own_folders=True),
    "csv": Benchmark(
        "images listed in a CSV file",
        (),
        read_csv_table,
        find=find_csv_classes,
        class_folder=None,
        find_root=find_csv,
        validation=True,
        group="group",
        listed=True,
    ),
    "demo": Benchmark(
        "embedded demonstration, made on first use",
        DEMO_CLASSES,
        read_mvtec,
        default_root=lambda: Path("data/demo"),
        prepare=prepare_demo,
    ),
}


def locate(benchmark: Benchmark, source: Source) -> Source:
    """The source with its default root filled in, after making the data of benchmarks that do so. Call this first.

    Raises ValueError or FileNotFoundError, naming --data_path or --train_dir, where there is nothing to read.
    """
    if any(folder is not None for folder in (source.train_dir, source.test_dir, source.bad)):
        if not benchmark.own_folders:
            raise ValueError(
                "--train_dir, --test_dir and --bad are for --dataset folder; other benchmarks take --data_path"
            )
        if source.train_dir is None:
            raise ValueError("--test_dir and --bad go with --train_dir, the folder of your normal images")
    if source.mask_dir is not None and source.test_dir is None and source.bad is None:
        raise ValueError(
            "--mask_dir goes with --test_dir or --bad: under --data_path masks lie in <class>/ground_truth"
        )
    if source.train_dir is not None:
        return source
    if source.root is None:
        if benchmark.default_root is None:
            own = ", or --train_dir, the folder of your normal images" if benchmark.own_folders else ""
            raise ValueError(f"{benchmark.title} needs --data_path, the folder that holds its files{own}")
        source = replace(source, root=benchmark.default_root())
    assert source.root is not None
    if benchmark.prepare is not None:
        benchmark.prepare(source.root)
    if benchmark.find_root is not None:
        return replace(source, root=benchmark.find_root(source.root))
    if not source.root.is_dir():
        raise FileNotFoundError(f"--data_path {source.root}: no such folder")
    return source


def find_classes(benchmark: Benchmark, source: Source) -> tuple[str, ...]:
    """The classes of `--class all`: the benchmark's classes that exist, in its order; else all class folders.

    Raises FileNotFoundError where there is no class, ValueError for a name that cannot be a run's folder.
    """
    if source.train_dir is not None:
        return (check_name(name_class(source), "--train_dir"),)
    assert source.root is not None, "locate the source first"
    if benchmark.find is None:
        return benchmark.classes
    found = benchmark.find(source.root)
    # a doubled folder (screw/screw/) lies one level deeper than `discover_classes` searches
    known = tuple(c for c in benchmark.classes if c in found or is_class_folder(find_class_folder(source.root, c)))
    if not known and not found:
        there = ", ".join(p.name for p in list_folders(source.root)) or "no folder"
        raise FileNotFoundError(
            f"no class under --data_path {source.root}: it must hold one folder per class, each with train/good; "
            f"found {there}"
        )
    return known or tuple(check_name(name, f"--data_path {source.root}") for name in found)


def load_image(path: Path, size: Size, upright: bool = False) -> NDArray[np.uint8]:
    """(3, height, width) RGB in 0..255, resized bilinearly with antialiasing; the aspect ratio is not kept.

    `upright`: rotated by its EXIF orientation first, else as stored. Raises ValueError or FileNotFoundError naming a
    file that cannot be read.
    """
    return resized(read_rgb(path, upright), size)


def resized(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """An RGB image -> (3, height, width), bilinear with antialiasing."""
    found = image.resize(swap(_sides(size)), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(found).transpose(2, 0, 1))


def load_mask(sample: Sample, size: Size, threshold: int = 0) -> NDArray[np.bool_] | None:
    """A mask of this size, True on the defect; all False for a normal image, None for an anomalous one without a mask.

    Resized as in `resize_mask`. Raises as `load_image`.
    """
    if not sample.anomalous:
        return np.zeros(_sides(size), dtype=bool)
    if sample.mask is None:
        return None
    return resize_mask(read_oriented_mask(sample.image, sample.mask, threshold, sample.upright), size)[0]


def resize_mask(mask: NDArray[np.bool_], size: Size) -> tuple[NDArray[np.bool_], bool]:
    """(H, W) -> the mask in this size, and whether it would have vanished; one that has the size is unchanged.

    The mask is resized bilinearly and thresholded at one half, as in the published code (RD4AD, SK-RD4AD, RD++). A mask
    that would vanish keeps its most covered pixels, so a defect of a few pixels is still a region.
    """
    width_and_height = swap(_sides(size))
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize(width_and_height, Image.Resampling.BILINEAR)
    coverage = np.asarray(image)
    resized = coverage >= 128
    if resized.any() or not mask.any():
        return resized, False
    if not coverage.any():  # less than 1/255 of a pixel, which 8 bits round to 0
        exact = Image.fromarray(mask.astype(np.float32)).resize(width_and_height, Image.Resampling.BILINEAR)
        coverage = np.asarray(exact)
    return coverage == coverage.max(), True


def _sides(size: Size) -> tuple[int, int]:
    """(height, width)"""
    return (size, size) if isinstance(size, int) else size


class ImageSet:
    """Samples as arrays, in order: squares of `size` pixels, or with a `tiling` larger, for windows of that size."""

    def __init__(
        self, samples: Sequence[Sample], size: int, mask_threshold: int = 0, tiling: Tiling | None = None
    ) -> None:
        self.samples = tuple(samples)
        self.size = size
        self.mask_threshold = mask_threshold
        self.tiling = tiling
        self._vanished: set[Path] = set()

    def like(self, samples: Sequence[Sample]) -> ImageSet:
        """Other samples, read as these are."""
        return ImageSet(samples, self.size, self.mask_threshold, self.tiling)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether every anomalous image has a mask, so that pixel metrics are defined."""
        return all(s.mask is not None for s in self.samples if s.anomalous)

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(n,), True for anomalous images, by their folder rather than their mask."""
        return np.array([s.anomalous for s in self.samples], dtype=bool)

    @property
    def vanished(self) -> tuple[Path, ...]:
        """The images whose mask would have vanished at this size, among the masks loaded so far."""
        return tuple(sample.image for sample in self.samples if sample.image in self._vanished)

    @property
    def units(self) -> list[str]:
        """The object that each image shows, the image itself where none is named; empty where none is anywhere."""
        named = any(s.unit for s in self.samples)
        return [s.unit or str(s.image) for s in self.samples] if named else []

    @functools.cached_property
    def by_class(self) -> dict[str, ImageSet]:
        """The images of each class in order; empty in a run of one class, whose samples name none."""
        parts: dict[str, list[Sample]] = {}
        for sample in self.samples:
            if sample.class_name:
                parts.setdefault(sample.class_name, []).append(sample)
        found = {name: self.like(samples) for name, samples in parts.items()}
        for part in found.values():
            part._vanished = self._vanished
        return found

    def own_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image's file, as it is read: from its header. Raises as `load_image`."""
        sample = self.samples[index]
        return swap(read_size(sample.image, sample.upright))

    def scaled_size(self, index: int) -> tuple[int, int]:
        """(height, width) that an image and its mask are resized to. Raises ValueError for one of too many pixels."""
        if self.tiling is None:
            return self.size, self.size
        size = self.tiling.scaled(self.own_size(index), self.size)
        check_pixels(self.samples[index].image, swap(size), has=f"with --tiles {self.tiling.scale:g} becomes")
        return size

    @functools.cached_property
    def training_samples(self) -> ImageSet:
        """What is trained on: the images themselves, or all their windows."""
        return self if self.tiling is None else Windows(self)

    @property
    def geometry(self) -> dict[str, Any]:
        """How files become arrays, beside their contents."""
        return {"size": self.size}

    def image(self, index: int) -> NDArray[np.uint8]:
        """(3, height, width) in 0..255, of the `scaled_size`; see `load_image`."""
        sample = self.samples[index]
        return load_image(sample.image, self.scaled_size(index), sample.upright)

    def mask(self, index: int, own_size: bool = False) -> NDArray[np.bool_] | None:
        """(height, width) of the `scaled_size`, or of the image's own size, or None; see `load_mask`."""
        sample = self.samples[index]
        size = self.own_size(index) if own_size else self.scaled_size(index)
        if not sample.anomalous or sample.mask is None:
            return load_mask(sample, size)
        mask = read_oriented_mask(sample.image, sample.mask, self.mask_threshold, sample.upright)
        resized, vanished = resize_mask(mask, size)
        if vanished:
            self._vanished.add(sample.image)
        return resized


class Windows(ImageSet):
    """The windows of normal images, those of one image after the other, as samples (3, size, size) of their own.

    An image is decoded when one of its windows is asked for. The last few stay in memory, so it is decoded once where
    windows are asked for in order, and nearly always anew where they are not.
    """

    def __init__(self, images: ImageSet) -> None:
        assert images.tiling is not None, "images without a tiling have no windows"
        self.images, self.cut_by = images, images.tiling
        self._grids = [self.cut_by.grid(images.scaled_size(i), images.size) for i in range(len(images))]
        self._places = [(i, number) for i, grid in enumerate(self._grids) for number in range(len(grid))]
        super().__init__([images.samples[i] for i, _ in self._places], images.size)
        self._decoded = functools.lru_cache(WINDOWED)(images.image)
        self._locks = [threading.Lock() for _ in self._grids]  # threads that want the same image decode it once

    @property
    def geometry(self) -> dict[str, Any]:
        """How files become arrays, beside their contents."""
        return {"size": self.size, "tiles": [self.cut_by.scale, self.cut_by.overlap]}

    def image(self, index: int) -> NDArray[np.uint8]:
        """(3, size, size) in 0..255."""
        i, number = self._places[index]
        with self._locks[i]:
            pixels = self._decoded(i)
        return self._grids[i].cut(pixels, number).copy()  # a view would keep the whole image in memory


class MeasuredImages(ImageSet):
    """Images whose `brightness` (mean of all pixels, 0..255) is noted, by number, as they are read."""

    def __init__(
        self, samples: Sequence[Sample], size: int, mask_threshold: int = 0, tiling: Tiling | None = None
    ) -> None:
        super().__init__(samples, size, mask_threshold, tiling)
        self.brightness: dict[int, float] = {}

    def image(self, index: int) -> NDArray[np.uint8]:
        """(3, height, width) in 0..255."""
        pixels = super().image(index)
        self.brightness[index] = float(pixels.mean())
        return pixels

    @property
    def brightness_range(self) -> list[float]:
        """[lowest, highest] brightness of the images read so far, at least one."""
        means = self.brightness.values()
        return [round(min(means), 2), round(max(means), 2)]


class GivenImages(ImageSet):
    """Images that are at hand, as paths, PIL images or arrays (H, W, 3) or (H, W) uint8; upright, without labels."""

    def __init__(
        self,
        images: Sequence[str | Path | Image.Image | NDArray[np.uint8]],
        size: int,
        tiling: Tiling | None = None,
    ) -> None:
        names = [
            Path(image) if isinstance(image, (str, Path)) else Path(f"image {i}") for i, image in enumerate(images)
        ]
        samples = [Sample(name, anomalous=False, defect="good", upright=True) for name in names]
        super().__init__(samples, size, tiling=tiling)
        self.given = images

    def own_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, upright."""
        given = self.given[index]
        if isinstance(given, (str, Path)):
            return super().own_size(index)
        return given.shape[:2] if isinstance(given, np.ndarray) else swap(rotate_upright(given).size)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(3, height, width) in 0..255. Raises ValueError or FileNotFoundError."""
        given, name = self.given[index], self.samples[index].image
        if isinstance(given, (str, Path)):
            return super().image(index)
        if isinstance(given, np.ndarray):
            if given.dtype != np.uint8 or not (given.ndim == 2 or (given.ndim == 3 and given.shape[2] == 3)):
                raise ValueError(f"{name}: want (H, W, 3) or (H, W) uint8, found {given.shape} {given.dtype}")
            return resized(Image.fromarray(given).convert("RGB"), self.scaled_size(index))
        return resized(to_rgb(rotate_upright(given), name), self.scaled_size(index))


def image_batches(
    images: ImageSet, order: Sequence[int], batch_size: int, workers: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """(indices, pixels (B, 3, S, S) uint8) in this order; `workers` threads decode the next images meanwhile."""
    decoded = prefetch_map(images.image, order, workers)
    for start in range(0, len(order), batch_size):
        indices = list(order[start : start + batch_size])
        yield indices, np.stack([next(decoded) for _ in indices])
