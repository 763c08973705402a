"""A submission from finished runs of MVTec AD 2: predictions on the private images, streamed into one archive.

Maps are upsampled bilinearly to the size of their image, and thresholded at that size by the run's own pixel threshold,
which comes from normal images alone.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from dataset import BENCHMARKS, ImageSet, Sample, Source, locate
from detector import Detector
from readers.image_io import limit_pixels, read_size
from readers.mvtec_ad_2 import PRIVATE, list_private
from report.rendering import count, duration
from report.results import collect_runs
from run_files import Run
from scoring.anomaly_map import at_size
from submission.checker import check_submission
from submission.layout import (
    BENCHMARK,
    MAPS,
    THRESHOLDED,
    encode_map,
    encode_mask,
    float16_factor,
    member_name,
    private_counts,
    to_float16,
)
from utils import partial_path, printable, set_up_libraries, write_atomically

LEVEL = 6  # of gzip: a sixth of the maps' size; more brings nothing


def choose_runs(roots: Sequence[Path], seed: int | None = None) -> dict[str, Path]:
    """{class: the folder of its one finished run} of all classes; one model over all classes is the run of each.

    Raises ValueError, a line for each problem: a class without a run or with several, a run without a threshold.
    """
    found: dict[str, list[Path]] = {name: [] for name in private_counts()}
    for folder, result in collect_runs(roots):
        if result["benchmark"] == BENCHMARK and result["class_name"] in found and seed in (None, result["seed"]):
            found[result["class_name"]].append(folder)
    places, of_seed = ", ".join(map(str, roots)), "" if seed is None else f" of seed {seed}"
    problems = []
    if missing := [name for name, folders in found.items() if not folders]:
        problems.append(
            f"no finished run{of_seed} of {BENCHMARK} under {places} for {', '.join(missing)}: a submission needs all "
            "classes"
        )
    for name, folders in found.items():
        if len(folders) > 1:
            listed = ", ".join(printable(folder) for folder in folders[:4]) + (", ..." if len(folders) > 4 else "")
            problems.append(
                f"{name}: {len(folders)} finished runs ({listed}): give the folder of one method, or --seed"
            )
    runs = {name: folders[0] for name, folders in found.items() if folders}
    for folder in dict.fromkeys(runs.values()):
        if Run(folder).threshold() is None:
            problems.append(
                f"{printable(folder)}: has no threshold: python test.py RUN --calibrate FOLDER sets one from the "
                "normal images of validation/good"
            )
    if problems:
        raise ValueError("\n".join(problems))
    return runs


def write_submission(runs: Mapping[str, Path], out: Path, changes: Mapping[str, Any]) -> str:
    """Predict on all private images and write the archive, whole or not at all; returns a line on it.

    `changes` replace fields of the runs' Config, such as `data_path`. Raises ValueError or FileNotFoundError where
    private images are missing or cannot be read, OSError.
    """
    if not out.name.endswith(".tar.gz"):
        raise ValueError(f"--out {out}: the name must end in .tar.gz")
    roots = {name: _root(Run(run), changes) for name, run in runs.items()}
    counts, started = private_counts(), time.perf_counter()
    for name, root in roots.items():  # shows now what is missing
        for split in PRIVATE:
            list_private(root, name, split, counts[name])

    def write(file: BinaryIO) -> None:
        with (
            gzip.GzipFile("", "wb", LEVEL, fileobj=file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
        ):
            detector, loaded = None, None
            for name, run in runs.items():
                if detector is None or loaded != run:
                    detector, loaded = _load(run, changes), run
                for split in PRIVATE:
                    images = list_private(roots[name], name, split, counts[name])
                    _add_images(archive, detector, images, name, split)

    def check() -> None:
        problems = check_submission(partial_path(out), roots)
        assert not problems, "; ".join(problems)

    write_atomically(out, write, check)
    images = 2 * sum(counts[name] for name in runs)
    return (
        f"{out}: {count(images, 'image')} of {count(len(runs), 'class')}, {out.stat().st_size / 1e6:.1f} MB, checked; "
        f"{duration(time.perf_counter() - started)}"
    )


def _root(run: Run, changes: Mapping[str, Any]) -> Path:
    """Where the data of a run lie."""
    root = locate(BENCHMARKS[BENCHMARK], Source(changes.get("data_path") or run.config().data_path)).root
    assert root is not None
    return root


def _load(run: Path, changes: Mapping[str, Any]) -> Detector:
    detector = Detector.load(run, **changes)
    set_up_libraries(detector.config.deterministic, detector.config.fast)
    limit_pixels(detector.config.max_pixels)
    return detector


def _add_images(archive: tarfile.TarFile, detector: Detector, images: Sequence[Path], name: str, split: str) -> None:
    """Add both files of each image of a class and split, and print what was done to the maps."""
    threshold = detector.threshold
    assert threshold is not None, "choose_runs refuses a run without one"
    factor, cut, marked = float16_factor(threshold.pixel), 0, 0
    maps = tqdm(
        _maps(detector, images),
        f"{name} {split}",
        len(images),
        leave=False,
        unit="image",
        disable=not sys.stderr.isatty(),
    )
    for image, anomaly_map in zip(images, maps, strict=True):
        width, height = read_size(image)
        full = at_size(anomaly_map, height, width)
        if not np.isfinite(full).all():
            raise ValueError(f"{printable(image)}: its anomaly map is not finite: train the run again")
        values, above = to_float16(full, factor)
        mask = full > threshold.pixel
        cut, marked = cut + above, marked + bool(mask.any())
        _add(archive, member_name(MAPS, name, split, image.stem), encode_map(values))
        _add(archive, member_name(THRESHOLDED, name, split, image.stem), encode_mask(mask))
    notes = [f"maps times {factor:g}, so that float16 holds them"] * (factor != 1)
    notes += [f"{cut} values were cut at the largest of float16"] * bool(cut)
    print(
        "; ".join([f"{name} {split}: {count(len(images), 'image')}, {marked} with pixels above the threshold", *notes])
    )


def _maps(detector: Detector, images: Sequence[Path]) -> Iterator[np.ndarray]:
    """The anomaly map of each image, batch by batch; images of the benchmark are read as stored."""
    samples, config = [Sample(image, anomalous=False, defect="") for image in images], detector.config
    for _, maps in detector.score_batches(ImageSet(samples, config.image_size, tiling=config.tiling)):
        yield from maps


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner and time: the same maps are the same archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
