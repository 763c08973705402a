"""What a benchmark gives without reverse distillation: two controls that train nothing, scored by the same code.

    python -m scripts.controls --dataset demo --net efficientnet_lite0
    python -m scripts.controls --dataset demo --net efficientnet_lite0 --beside RUNS --into PAGE --marker NAME

pixel z-score     how unusual each pixel's brightness is at its place among the training images. A benchmark on which
                  this does well is trivial.
nearest neighbor  distance of each patch's teacher features to the nearest of the training images' patches: what the
                  teacher's features give without a student.

--beside RUNS ...            also the means of finished runs, such as those of a teacher with random weights
--into FILE --marker NAME    also write the table into FILE, between its lines <!-- table:NAME -->, <!-- /table:NAME -->

Metrics are fractions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from commandline import Parser, exit_code
from config import Config
from dataset import BENCHMARKS, UNIFIED, ImageSet, image_batches
from flags import parse_some
from report.escaping import shown, shown_cell
from report.rendering import add_page_flags, check_page_flags, count, into_page
from report.results import METRIC_TITLES, Result, collect
from report.tables import summarize
from utils import code_revision, environment_info, format_table, prefetch_map, write_atomically

if TYPE_CHECKING:  # imported where it is used: flags are answered before anything slow
    from torch import Tensor

    from model import Teacher

METRICS = ("image_auroc", "pixel_auroc", "aupro")
TITLES = [METRIC_TITLES[name] for name in METRICS]
BANK = 20_000  # training patches that are kept, drawn at random
SIGMA = 4.0


def z_score_maps(train: ImageSet, test: ImageSet, workers: int) -> Iterator[np.ndarray]:
    """Maps (S, S) of |x - mean| / std over the training images, averaged over the colors and smoothed."""
    from scipy.ndimage import gaussian_filter

    total, squares = (np.zeros((3, train.size, train.size)) for _ in range(2))
    for image in prefetch_map(train.image, range(len(train)), workers):
        total += image
        squares += image.astype(np.float64) ** 2
    mean = total / len(train)
    std = np.sqrt(np.maximum(squares / len(train) - mean**2, 0)) + 1.0  # one gray value: below it lies rounding
    for image in prefetch_map(test.image, range(len(test)), workers):
        yield gaussian_filter((np.abs(image - mean) / std).mean(axis=0), SIGMA)


def nearest_neighbor_maps(
    teacher: Teacher, train: ImageSet, test: ImageSet, batch_size: int, workers: int
) -> Iterator[np.ndarray]:
    """Maps (S, S) of the distance between a patch's features and the nearest of `BANK` training patches' features."""
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    share = min(1.0, BANK / (len(train) * (train.size // 8) ** 2))
    bank = []
    for _, pixels in image_batches(train, range(len(train)), batch_size, workers):
        patches = patch_features(teacher, pixels).flatten(0, 2)
        bank.append(patches[torch.rand(len(patches), generator=generator) < share])
    known = torch.cat(bank)
    for _, pixels in image_batches(test, range(len(test)), batch_size, workers):
        patches = patch_features(teacher, pixels)
        nearest = torch.stack([torch.cdist(image.flatten(0, 1), known).amin(dim=1) for image in patches])
        maps = nearest.view(len(patches), 1, *patches.shape[1:3])
        for anomaly_map in functional.interpolate(maps, size=test.size, mode="bilinear", align_corners=True)[
            :, 0
        ].numpy():
            yield gaussian_filter(anomaly_map, SIGMA)


def patch_features(teacher: Teacher, pixels: np.ndarray) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, S/8, S/8, C): levels 1 and 2, each averaged over 3x3, on the grid of level 1."""
    import torch
    from torch.nn import functional

    _, middle, coarse = (functional.avg_pool2d(level, 3, 1, 1) for level in teacher(torch.from_numpy(pixels)))
    coarse = functional.interpolate(coarse, size=middle.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([middle, coarse], dim=1).permute(0, 2, 3, 1)


def metrics(test: ImageSet, maps: Iterator[np.ndarray]) -> list[float]:
    """The metrics of `METRICS`; the image score is the map's maximum."""
    from scoring.metrics import compute_metrics

    scored = np.stack(list(maps))
    masks = [test.mask(i) for i in range(len(test))] if test.has_masks else None
    report = compute_metrics(test.labels, scored.max(axis=(1, 2)), scored, masks, per_image=False)
    return [report.values[name] for name in METRICS]


def rows_of_runs(results: Sequence[Result]) -> list[list[str]]:
    """The last row of the table of each name: its mean over the classes, with the spread of the seeds' own means."""
    rows = []
    for table in summarize(results):
        row = table.rows[-1]
        found = [row.metrics[metric] for metric in METRICS]
        cells = [cell(m.mean) + ("" if m.std is None else f" ± {m.std:.3f}") for m in found]
        rows.append([f"{table.name}, {count(row.n, 'seed')}", row.label, *cells])
    return rows


def cell(value: float | None) -> str:
    return "n/a" if value is None or np.isnan(value) else f"{value:.3f}"


def note(config: Config, classes: Sequence[str], results: Sequence[Result]) -> str:
    """What the metrics were measured with, for the page."""
    about = environment_info()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    named = shown(", ".join(classes), markdown=True)
    text = (
        f"- controls of {named}: teacher {config.net}, {config.image_size} pixels, revision "
        f"{code_revision()}, on {about['hardware']}; {versions}"
    )
    if not results:
        return text
    revisions, hardware = (", ".join(sorted({str(run.get(k)) for run in results})) for k in ("revision", "hardware"))
    runs = f"- {count(len(results), 'run')} beside them: revision {revisions}, on {hardware}; spread over seeds"
    return f"{text}\n{runs}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row per class and control, and their means; on request into a page."""
    parser = Parser(prog="python -m scripts.controls", add_help=False)
    parser.add_argument("--beside", metavar="RUNS", nargs="+", type=Path, default=[])
    add_page_flags(parser)
    given, others = parser.parse_known_args(argv)
    flags = ("dataset", "classes", "data_path", "net", "weights", "image_size", "workers")
    config = parse_some("python -m scripts.controls", __doc__, flags, others)
    if UNIFIED in config.classes:
        raise ValueError(f"--class {UNIFIED}: the controls train no model; give classes")
    page, marker = given.into, given.marker
    check_page_flags(parser, given)
    if page is not None:
        into_page(page, marker, "")  # the markers may be missing: better said now than after the work
    results = collect(given.beside)
    if foreign := sorted({run["benchmark"] for run in results} - {config.dataset}):
        raise ValueError(f"--beside: runs of {', '.join(foreign)} beside controls of {config.dataset}")

    import torch

    from experiment import experiments

    rows: dict[str, list[list[float]]] = {"pixel z-score": [], "nearest neighbor": []}
    names: list[str] = []
    for one in experiments(config, torch.device("cpu")):
        train, test = one.normal_images, one.test_images
        names += one.config.classes
        rows["pixel z-score"].append(metrics(test, z_score_maps(train, test, config.workers)))
        maps = nearest_neighbor_maps(one.teacher, train, test, config.training.batch_size, config.workers)
        rows["nearest neighbor"].append(metrics(test, maps))
    cells = [
        [control, name, *map(cell, values)]
        for control, found in rows.items()
        for name, values in [*zip(names, found, strict=True), ("mean", np.mean(found, axis=0))]
    ]
    cells += rows_of_runs(results)
    if page is not None:
        title = f"**{BENCHMARKS[config.dataset].title} · controls · fractions**"
        escaped = [[*(shown_cell(name, markdown=True) for name in row[:2]), *row[2:]] for row in cells]
        table = format_table(["control", "class", *TITLES], escaped, markdown=True)
        text = f"{title}\n\n{table}\n\n{note(config, names, results)}"
        write_atomically(page, into_page(page, marker, text))
    print(format_table(["control", "class", *METRICS], cells))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
