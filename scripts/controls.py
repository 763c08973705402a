"""What a benchmark gives without reverse distillation: two controls that train nothing, scored by the same code.

    python -m scripts.controls --dataset demo --net efficientnet_lite0

pixel z-score       how unusual each pixel's brightness is at its place among the training images. A benchmark on which
                    this does well is trivial.
nearest neighbor   distance of each patch's teacher features to the nearest of the training images' patches: what the
                    teacher alone can see.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from commandline import exit_code
from dataset import ImageSet, image_batches
from experiment import experiments
from flags import parse_some
from model import Teacher
from scoring.metrics import compute_metrics
from utils import format_table, prefetch_map

METRICS = ("image_auroc", "pixel_auroc", "aupro")
BANK = 20_000  # training patches that are kept, drawn at random
SIGMA = 4.0


def z_score_maps(train: ImageSet, test: ImageSet, workers: int) -> Iterator[np.ndarray]:
    """Maps (S, S) of |x - mean| / std over the training images, averaged over the colors and smoothed."""
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
    _, middle, coarse = (functional.avg_pool2d(level, 3, 1, 1) for level in teacher(torch.from_numpy(pixels)))
    coarse = functional.interpolate(coarse, size=middle.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([middle, coarse], dim=1).permute(0, 2, 3, 1)


def metrics(test: ImageSet, maps: Iterator[np.ndarray]) -> list[float]:
    """The metrics of `METRICS`; the image score is the map's maximum."""
    scored = np.stack(list(maps))
    masks = [test.mask(i) for i in range(len(test))] if test.has_masks else None
    report = compute_metrics(test.labels, scored.max(axis=(1, 2)), scored, masks, per_image=False)
    return [report.values[name] for name in METRICS]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row per class and control, and their means."""
    flags = ("dataset", "classes", "data_path", "net", "weights", "image_size", "workers")
    config = parse_some("python -m scripts.controls", __doc__, flags, argv)
    rows: dict[str, list[list[float]]] = {"pixel z-score": [], "nearest neighbor": []}
    names: list[str] = []
    for one in experiments(config, torch.device("cpu")):
        train, test = one.normal_images, one.test_images
        names += one.config.classes
        rows["pixel z-score"].append(metrics(test, z_score_maps(train, test, config.workers)))
        maps = nearest_neighbor_maps(one.teacher, train, test, config.training.batch_size, config.workers)
        rows["nearest neighbor"].append(metrics(test, maps))
    cells = [
        [control, name, *("n/a" if np.isnan(value) else f"{value:.3f}" for value in values)]
        for control, found in rows.items()
        for name, values in [*zip(names, found, strict=True), ("mean", np.mean(found, axis=0))]
    ]
    print(format_table(["control", "class", *METRICS], cells))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
