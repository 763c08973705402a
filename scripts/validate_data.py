"""Validate a data set: print one line for every problem in a benchmark's files.

    python -m scripts.validate_data --dataset mvtec --data_path D
    python -m scripts.validate_data --dataset folder --train_dir T --test_dir U --mask_dir M
    python -m scripts.validate_data --dataset csv --data_path FILE.csv

Checks: counts against the published ones; files that cannot be read, or lie where they are not read; masks that are
missing, empty, inverted, gray, of another size, or without an image; images that occur twice or nearly so, also
between train and test, rotated or mirrored; images that are all but black; mixed sizes and modes; EXIF orientations;
every row of a CSV file that cannot be used; private test images of MVTec AD 2 that are missing or have other names.
Exit code 0: no errors (there may be warnings); 1: errors; 2: the check could not run.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from commandline import exit_code
from dataset import BENCHMARKS, UNIFIED, Benchmark, Sample, Source, find_classes, locate
from flags import parse_some
from readers.base import (
    IMAGE_SUFFIXES,
    VALIDATION,
    index_masks,
    is_normal_folder,
    list_folders,
    list_images,
    match_mask,
    match_masks,
    printable,
    require_folder,
    visible_entries,
)
from readers.checks import DARK, MASK_PROBLEMS, brightness, count_masks, dark_text, is_left_out, left_out, mask_problems
from readers.csv_table import find_csv, read_table
from readers.expected import published_counts
from readers.headers import read_header
from readers.image_io import fits_only_rotated, limit_pixels, open_image, read_orientation, read_size, to_rgb
from readers.mvtec import read_normals, read_test_folders
from readers.mvtec_ad_2 import PRIVATE, light_of, private_problems
from utils import prefetch_map

THUMBNAIL = 32  # side of the thumbnails that are compared for near-duplicates
# Two thumbnails, with mean and contrast made equal, are near-duplicates up to this root mean square difference in gray
# levels and in units of their standard deviation (so that plain surfaces are not). The least difference between
# training and test images of the demo, ELPV and BSData is 1.5 levels; copies that are compressed, halved or brightened
# differ by 0.3 to 0.9.
NEAR_DUPLICATE = 1.0
NEAR_DUPLICATE_RATIO = 0.06
LISTED = 3  # pairs of near-duplicates that are named


@dataclass(frozen=True)
class Finding:
    """One line of the output. `level` is "error" (metrics would be wrong or missing), "warning" or "note"."""

    level: str
    class_name: str
    path: Path | None
    text: str

    def __str__(self) -> str:
        place = f" {printable(self.path)}:" if self.path else ""
        return f"{self.level}: {self.class_name}:{place} {self.text}"


@dataclass(frozen=True)
class Folders:
    """The folders of a class; None where there is no such folder. That of the masks may lie in that of the test set."""

    train: Path
    test: Path | None
    masks: Path | None

    @property
    def tested(self) -> list[Path]:
        """The folders of test images, one for each kind."""
        return [] if self.test is None else [folder for folder in list_folders(self.test) if folder != self.masks]


@dataclass(frozen=True)
class InspectedImage:
    """The properties of a decoded image, or the problem that prevented decoding.

    `pixels` is a hash of size and RGB values, `thumbnail` (32, 32) gray levels, `brightest` of 255.
    """

    sample: Sample
    split: str
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    brightest: int = 0
    bits: int = 8
    pixels: str = ""
    thumbnail: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings of every class and a summary line; returns the exit code."""
    flags = ("dataset", "classes", "data_path", "train_dir", "test_dir", "mask_dir", "max_pixels", "workers")
    config = parse_some("python -m scripts.validate_data", __doc__, flags, argv)
    benchmark = BENCHMARKS[config.dataset]
    limit_pixels(config.max_pixels)
    source = locate(benchmark, config.source)
    classes = ("all",) if UNIFIED in config.classes else config.classes  # the images are those of all classes
    names, findings = choose_classes(benchmark, source, classes)
    images, levels = 0, Counter[str]()
    for finding in findings:
        print(finding)
        levels[finding.level] += 1
    for class_name in names:
        inspected, found = check_class(config.dataset, benchmark, source, class_name, config.workers)
        images += len(inspected)
        for finding in found:
            print(finding, flush=True)
            levels[finding.level] += 1
    print(f"errors: {levels['error']}, warnings: {levels['warning']}; checked {images} images of {len(names)} classes")
    return 1 if levels["error"] else 0


def choose_classes(
    benchmark: Benchmark, source: Source, requested: tuple[str, ...]
) -> tuple[tuple[str, ...], list[Finding]]:
    """The classes to check; an error for each class that was asked for and is absent, a note on other absent ones.

    No class, and an error for each row that cannot be used, where a CSV file has such rows.
    """
    if benchmark.find_root is find_csv and (problems := read_table(find_csv(source.root)).problems):
        return (), [Finding("error", "all", None, problem) for problem in problems]
    try:
        there = find_classes(benchmark, source)
    except FileNotFoundError:
        if not benchmark.classes:  # the user's own images: no class can be missing
            raise
        there = ()
    wanted = benchmark.classes if requested == ("all",) else requested
    if benchmark.find is None or not wanted:
        return wanted or there, []
    found = tuple(name for name in wanted if name in there)
    if there and not found and requested == ("all",):
        text = f"none of the classes of {benchmark.title}: checking {', '.join(there)}, without published counts"
        return there, [Finding("warning", "all", source.root, text)]
    absent = [name for name in wanted if name not in there]
    if requested != ("all",) or not found:
        missing = f"the class is missing: no folder with train/good under {source.root}"
        missing = f"the class is missing in {source.root}" if benchmark.listed else missing
        return found, [Finding("error", name, None, missing) for name in absent]
    text = f"{len(absent)} of the {len(wanted)} classes of {benchmark.title} are not here: {', '.join(absent)}"
    return found, [Finding("note", "all", source.root, text)] if absent else []


def check_class(
    name: str, benchmark: Benchmark, source: Source, class_name: str, workers: int
) -> tuple[list[InspectedImage], list[Finding]]:
    """Decode every image of a class once; returns the images and all findings on the class."""
    findings: list[Finding] = []
    folders = find_folders(benchmark, source, class_name)
    splits: dict[str, list[Sample]] = {"train": [], VALIDATION: [], "test": []}
    if folders is not None:
        splits["train"], splits["test"] = read_folders(folders)
        if benchmark.own_folders:  # which `read_folder` reads upright
            splits = {split: [replace(s, upright=True) for s in samples] for split, samples in splits.items()}
        findings += check_layout(class_name, folders)
    for split in [*(["train", "test"] if folders is None else []), *([VALIDATION] if benchmark.validation else [])]:
        try:
            splits[split] = benchmark.read(source, class_name, split)
        except (ValueError, FileNotFoundError) as error:
            findings.append(Finding("error", class_name, None, str(error)))
            break
    train, test = splits["train"], splits["test"]
    published = published_counts(name).get(class_name)
    findings += check_counts(class_name, splits, published, benchmark.test_folder)
    jobs = [(sample, split) for split, samples in splits.items() for sample in samples]
    inspected = list(prefetch_map(inspect_image, jobs, workers))
    findings += [Finding("error", class_name, s.sample.image, s.problem) for s in inspected if s.problem]
    readable = [s for s in inspected if not s.problem]
    if not benchmark.listed:
        findings += [Finding("warning", class_name, None, text) for text in left_out(train, test)]
    findings += check_masks(class_name, readable, folders, benchmark.mask_threshold, workers)
    findings += check_brightness(class_name, readable)
    findings += check_uniformity(class_name, readable)
    findings += check_duplicates(class_name, readable)
    findings += check_near_duplicates(class_name, readable)
    if folders is not None and published is not None and "private" in published:
        findings += check_private(class_name, folders.train.parent, published["private"], workers)
        findings += check_lights(class_name, test)
    return inspected, findings


def find_folders(benchmark: Benchmark, source: Source, class_name: str) -> Folders | None:
    """The folders of a class; None where the split is a list in a file (raw VisA, ELPV, Real-IAD, a CSV file)."""
    if source.train_dir is not None:
        given = {"--test_dir": source.test_dir, "--mask_dir": source.mask_dir}
        test, masks = (folder and require_folder(folder, flag) for flag, folder in given.items())
        return Folders(source.train_dir, test, masks)
    assert source.root is not None
    folder = benchmark.class_folder(source.root, class_name) if benchmark.class_folder else None
    if folder is None or not (folder / "train").is_dir():
        return None
    test, masks = folder / benchmark.test_folder, folder / benchmark.mask_folder
    return Folders(folder / "train", test if test.is_dir() else None, masks if masks.is_dir() else None)


def read_folders(folders: Folders) -> tuple[list[Sample], list[Sample]]:
    """Training and test samples as the readers find them, except that a missing mask is None rather than an error."""
    loose = [Sample(image, anomalous=False, defect="good") for image in list_images(folders.train)]
    train = read_normals(folders.train) or loose
    if folders.test is None:
        return train, []
    test = [s for s in read_test_folders(folders.test, None) if s.image.parent in folders.tested]
    if folders.masks is None:
        return train, test
    paired = {
        sample.image: sample
        for folder in folders.tested
        if not is_normal_folder(folder.name)
        for sample in match_masks(list_images(folder), folders.masks / folder.name, folder.name)
    }
    return train, [paired.get(sample.image, sample) for sample in test]


def check_layout(class_name: str, folders: Folders) -> Iterator[Finding]:
    """Files and folders that are not read."""
    warning = partial(Finding, "warning", class_name)
    normal = [p for p in list_folders(folders.train) if is_normal_folder(p.name)]
    for folder in list_folders(folders.train):
        if folder not in normal:
            yield warning(folder, f"{count_images(folder)} images are ignored: only good/ is trained on")
    unread = list_images(folders.train) if normal else []
    read = normal or [folders.train]
    if folders.test is not None:
        unread += list_images(folders.test)
        read += folders.tested
    for folder in read:
        for entry in visible_entries(folder):
            path = Path(entry.path)
            if is_left_out(entry):
                continue  # `left_out` tells all of them in one line
            if entry.is_dir() and folder != folders.train:
                yield warning(path, f"{count_images(path)} images one folder too deep are not read: move them up")
            elif not entry.is_dir() and path.suffix.lower() not in IMAGE_SUFFIXES:
                yield warning(path, "has no image suffix and is not read: rename or remove it")
    for path in unread:
        yield Finding("error", class_name, path, "lies beside the folders and is not read: move it into one of them")


def count_images(folder: Path) -> int:
    """The number of images in the folder, at any depth."""
    return len(list_images(folder)) + sum(count_images(p) for p in list_folders(folder))


def check_counts(
    class_name: str, splits: Mapping[str, Sequence[Sample]], published: dict[str, Any] | None, test_folder: str
) -> Iterator[Finding]:
    """Counts that differ from the published ones, and splits without any metric."""
    train, test = splits["train"], splits["test"]
    anomalous = Counter(sample.defect for sample in test if sample.anomalous)
    good = sum(not sample.anomalous for sample in test)
    if not train:
        yield Finding("error", class_name, None, "no training images: put normal ones into train/good")
    if test and not (good and anomalous):
        yield Finding(
            "warning", class_name, None, f"{good} normal and {sum(anomalous.values())} anomalous test images: no AUROC"
        )
    if published is None:
        return
    pairs = [("train/good", len(train), published["train"]), (f"{test_folder}/good", good, published["good"])]
    if VALIDATION in published:
        pairs.append(("validation/good", len(splits[VALIDATION]), published[VALIDATION]))
    if isinstance(published["bad"], int):
        pairs.append(("anomalous test images", sum(anomalous.values()), published["bad"]))
    else:
        kinds = sorted(anomalous.keys() | published["bad"].keys())
        pairs += [(f"{test_folder}/{kind}", anomalous[kind], published["bad"].get(kind, 0)) for kind in kinds]
    for what, found, wanted in pairs:
        if found != wanted:
            yield Finding(
                "error", class_name, None, f"{what}: {found} images, published {wanted}: unpack the data set again"
            )


def check_private(class_name: str, folder: Path, count: int, workers: int) -> Iterator[Finding]:
    """Private test sets of MVTec AD 2 that are short of images, hold others, or cannot be decoded."""
    for split in PRIVATE:
        if not (folder / split).is_dir():
            yield Finding("warning", class_name, folder / split, "no such folder: a submission needs its images")
            continue
        images = list_images(folder / split)
        for problem in private_problems(images, folder / split, split, count):
            text = problem.removeprefix(f"{printable(folder / split)}: ")
            yield Finding("error", class_name, folder / split, text)
        jobs = [(Sample(image, anomalous=False, defect=split), split) for image in images]
        for inspected in prefetch_map(inspect_image, jobs, workers):
            if inspected.problem:
                yield Finding("error", class_name, inspected.sample.image, inspected.problem)


def check_lights(class_name: str, test: Sequence[Sample]) -> Iterator[Finding]:
    """One line on public images of MVTec AD 2 whose names tell no light."""
    unlit = [sample.image for sample in test if not light_of(sample.image)]
    if unlit:
        text = f"its name tells no light, as 000_regular does ({len(unlit)} images): metrics by light leave it out"
        yield Finding("warning", class_name, unlit[0], text)


def inspect_image(job: tuple[Sample, str]) -> InspectedImage:
    """Decode the image of (sample, split) and keep what the checks need."""
    sample, split = job
    try:
        bits = read_header(sample.image).bits
        image = open_image(sample.image, sample.upright)
        rgb = to_rgb(image, sample.image)
        pixels = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()
        thumbnail = rgb.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
        orientation = read_orientation(sample.image)
    except (ValueError, FileNotFoundError) as error:
        return InspectedImage(sample, split, problem=str(error).removeprefix(f"{printable(sample.image)}: "))
    gray, brightest = np.asarray(thumbnail, dtype=np.float32), max(brightness(rgb))
    return InspectedImage(sample, split, "", image.size, image.mode, orientation, brightest, bits, pixels, gray)


def check_masks(
    class_name: str, inspected: Sequence[InspectedImage], folders: Folders | None, threshold: int, workers: int
) -> Iterator[Finding]:
    """Masks that are missing, unreadable, empty, of another size, or without an image."""
    anomalous = [s for s in inspected if s.sample.anomalous]
    if any(s.sample.mask for s in anomalous) or (folders is not None and folders.masks is not None):
        for s in anomalous:
            if s.sample.mask is None:
                yield Finding("error", class_name, s.sample.image, f"has no mask {s.sample.image.stem}_mask.*: add it")
    drawn = [s for s in anomalous if s.sample.mask is not None]
    kinds: dict[str, list[Path]] = defaultdict(list)
    for s, (findings, problems) in zip(
        drawn, prefetch_map(partial(check_mask, class_name, threshold), drawn, workers), strict=True
    ):
        yield from findings
        for problem in problems:
            assert s.sample.mask is not None
            kinds[problem].append(s.sample.mask)
    for problem, paths in kinds.items():
        text = MASK_PROBLEMS[problem].format(threshold=threshold)
        yield Finding("warning", class_name, paths[0], text + count_masks(paths))
    if folders is not None and folders.masks is not None and folders.test is not None:
        yield from check_orphans(class_name, folders.test, folders.masks)


def check_mask(class_name: str, threshold: int, inspected: InspectedImage) -> tuple[list[Finding], list[str]]:
    """The findings on the size of an image's mask, and the names in MASK_PROBLEMS of what its values are like."""
    sample = inspected.sample
    assert sample.mask is not None
    try:
        problems = mask_problems(sample, threshold)
        size = read_size(sample.mask, sample.upright)
    except (ValueError, FileNotFoundError) as error:
        text = str(error).removeprefix(f"{printable(sample.mask)}: ")
        return [Finding("error", class_name, sample.mask, text)], []
    level, (width, height), (w, h) = "warning", inspected.size, size
    text = f"is {w}x{h}, its image {width}x{height}"
    if {"aspect", "transposed"} & set(problems):
        level, text = "error", f"{text}: another shape, so it cannot fit; draw it again"
    elif fits_only_rotated(size, inspected.size, inspected.orientation):
        text = f"{text}: fits only before or after its image's EXIF rotation, and is rotated to fit"
    else:
        text = f"{text}: both are resized, so it is used as it is"
    findings = [Finding(level, class_name, sample.mask, text)] if size != inspected.size else []
    return findings, [problem for problem in problems if problem not in ("aspect", "transposed")]


def check_orphans(class_name: str, test: Path, masks: Path) -> Iterator[Finding]:
    """Masks without an image, and second masks of an image."""
    for folder in list_folders(masks):
        if is_normal_folder(folder.name):
            continue
        index, images = index_masks(folder), list_images(test / folder.name)
        used = {match_mask(image, index) for image in images}
        for mask in list_images(folder):
            if mask in used:
                continue
            stem = mask.stem.lower().removesuffix("_mask")
            has_image = any(image.stem.lower() in (stem, mask.stem.lower()) for image in images)
            text = "a second mask of the same image, not used" if has_image else f"no image under {test / folder.name}"
            yield Finding("warning", class_name, mask, f"{text}: remove the mask, or restore its image")
    for mask in list_images(masks):
        yield Finding("warning", class_name, mask, "lies beside the defects' folders: move it into one of them")


def check_uniformity(class_name: str, inspected: Sequence[InspectedImage]) -> Iterator[Finding]:
    """One line for sizes, for modes and for EXIF orientations that differ within a class."""
    for what, values in (
        ("sizes", Counter(f"{s.size[0]}x{s.size[1]}" for s in inspected)),
        ("modes", Counter(s.mode for s in inspected)),
    ):
        if len(values) > 1:
            listed = ", ".join(f"{value} ({n})" for value, n in values.most_common(6))
            yield Finding(
                "warning", class_name, None, f"mixed {what}: {listed}; all are converted to one, but find out why"
            )
    rotated = [s for s in inspected if s.orientation != 1]
    if rotated:
        first = rotated[0]
        text = f"EXIF orientation {first.orientation}; {len(rotated)} images have one: images are read "
        text += "rotated by it" if first.sample.upright else "as stored; rotate the files if that is wrong"
        yield Finding("warning", class_name, first.sample.image, text)


def check_brightness(class_name: str, inspected: Sequence[InspectedImage]) -> Iterator[Finding]:
    """Training images that are all but black: the bit depth is not what it seems."""
    train = [s for s in inspected if s.split == "train"]
    brightest = max((s.brightest for s in train), default=DARK)
    if brightest < DARK:
        bits = max(s.bits for s in train)
        level = "error" if bits > 8 else "warning"
        yield Finding(level, class_name, train[0].sample.image.parent, dark_text(brightest, bits))


def check_duplicates(class_name: str, inspected: Iterable[InspectedImage]) -> Iterator[Finding]:
    """Images with equal pixels: an error between two splits or between normal and anomalous, else a warning."""
    first: dict[str, InspectedImage] = {}
    for s in inspected:
        other = first.setdefault(s.pixels, s)
        if other is s:
            continue
        leak, contradiction = other.split != s.split, other.sample.anomalous != s.sample.anomalous
        level = "error" if leak or contradiction else "warning"
        kinds = s.sample.defect != other.sample.defect
        splits = f" ({other.split} and {s.split})"
        why = " (once normal, once anomalous)" if contradiction else splits if leak else ""
        why = why or (" (two kinds of defect)" if kinds else "")
        text = f"the same image as {printable(other.sample.image)}{why}: keep one of them"
        yield Finding(level, class_name, s.sample.image, text)


def check_near_duplicates(class_name: str, inspected: Sequence[InspectedImage]) -> Iterator[Finding]:
    """One line for test images that nearly equal a training image, with the closest pairs.

    Brightness and contrast may differ, and one image may be rotated or mirrored.
    """
    train, test = ([s for s in inspected if s.split == split] for split in ("train", "test"))
    if not train or not test:
        return
    standardized = np.stack([standardize(s.thumbnail).ravel() for s in train])
    pairs: list[tuple[float, InspectedImage, InspectedImage]] = []
    for s in test:
        correlations = standardized @ eight_ways(standardize(s.thumbnail)).T / THUMBNAIL**2
        best, way = np.unravel_index(int(correlations.argmax()), correlations.shape)
        difference = float(np.sqrt(max(0.0, 2 - 2 * float(correlations[best, way]))))
        limit = min(NEAR_DUPLICATE_RATIO, NEAR_DUPLICATE / max(float(s.thumbnail.std()), 1e-6))
        if difference < limit and train[best].pixels != s.pixels:
            pairs.append((difference, s, train[best]))
    if pairs:
        (_, s, other), *others = sorted(pairs, key=lambda pair: pair[0])[:LISTED]
        listed = "; ".join(f"{printable(a.sample.image)} and {printable(b.sample.image)}" for _, a, b in others)
        count = f", as {len(pairs)} test images do: {listed}" if others else ""
        text = f"nearly equals {printable(other.sample.image)}{count}: near-duplicates, perhaps rotated or mirrored?"
        yield Finding("warning", class_name, s.sample.image, text)


def standardize(thumbnail: NDArray[np.float32]) -> NDArray[np.float32]:
    """The thumbnail with mean 0 and standard deviation 1; zeros where it is plain."""
    centered = thumbnail - thumbnail.mean()
    return centered / max(float(centered.std()), 1e-6)


def eight_ways(thumbnail: NDArray[np.float32]) -> NDArray[np.float32]:
    """(8, pixels): the square thumbnail, rotated and mirrored in all ways."""
    return np.stack([np.rot90(way, k).ravel() for way in (thumbnail, thumbnail[:, ::-1]) for k in range(4)])


if __name__ == "__main__":
    sys.exit(exit_code(main))
