"""Whether the exported folder predicts what the run's detector predicts, from the image files on disk."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dataset import ImageSet
from detector import Detector
from experiment import Experiment

MAP_TOLERANCE = SCORE_TOLERANCE = 1e-4  # of the range of all maps; fp32 on another runtime differs by some 1e-6
TIE = 1e-5  # of the range of all maps: a score so near the threshold is equal to it up to rounding
MOST_IMAGES = 1000
TOGETHER = 8  # images that are also scored as one batch


@dataclass(frozen=True)
class Parity:
    """Differences between the export and the detector over `images` files.

    map, score    the largest differences, divided by the range of the detector's maps over all images
    batch         the largest difference of a score of one image alone and in a batch, divided so too
    decisions     images with equal decisions at the threshold, out of those not equal to it up to rounding (`ties`
                  counts these); None without a threshold
    """

    images: int
    split: str
    map: float
    score: float
    batch: float
    decisions: int | None
    ties: int

    @property
    def problem(self) -> str | None:
        """What is out of tolerance, in words; None where nothing is."""
        if not self.map <= MAP_TOLERANCE:
            return f"a map differs by {self.map:.2g} of the maps' range, more than {MAP_TOLERANCE:g}"
        if not max(self.score, self.batch) <= SCORE_TOLERANCE:
            differs = max(self.score, self.batch)
            return f"a score differs by {differs:.2g} of the maps' range, more than {SCORE_TOLERANCE:g}"
        if self.decisions is not None and self.decisions + self.ties < self.images:
            return f"{self.images - self.ties - self.decisions} of {self.images} decisions differ"
        return None

    def __str__(self) -> str:
        text = f"map {self.map:.1e} of its range, score {self.score:.1e}"
        if self.decisions is None:
            return f"{text}, no threshold"
        ties = f", {self.ties} equal to the threshold up to rounding" if self.ties else ""
        return f"{text}, {self.decisions} of {self.images - self.ties} decisions equal{ties}"

    def to_json(self) -> dict[str, Any]:
        """For model.json."""
        tolerances = {"map": MAP_TOLERANCE, "score": SCORE_TOLERANCE, "tie": TIE}
        return {**asdict(self), "tolerances": tolerances}


def parity_images(experiment: Experiment) -> tuple[str, ImageSet]:
    """The run's test images, or its training images where there are none, read as new images are: upright.

    Of more than a thousand, a thousand evenly spread. The first item is the split's name.
    """
    split, images = "test", experiment.test_images
    if not len(images):
        split, images = "training", experiment.normal_images
    step = -(-len(images) // MOST_IMAGES)
    samples = [replace(sample, upright=True, mask=None) for sample in images.samples[::step]]
    return split, ImageSet(samples, images.size)


def compare(detector: Detector, folder: Path, runtime: str, images: tuple[str, ImageSet]) -> Parity:
    """The folder's predict.py with one runtime against the detector, file by file."""
    split, image_set = images
    predict = import_predict(folder)
    model = predict.Model(folder, runtime)
    wanted_scores, found_scores, largest = [], [], 0.0
    low, high = np.inf, -np.inf
    files = iter(image_set.samples)
    for scores, maps in detector.score_batches(image_set):
        for score, anomaly_map in zip(scores, maps, strict=True):
            (found_score,), (found_map,) = model(model.read(next(files).image)[None])
            wanted_scores.append(float(score))
            found_scores.append(float(found_score))
            # a NaN must not vanish in a maximum
            largest = float(np.maximum(largest, np.abs(found_map - anomaly_map).max()))
            low, high = min(low, anomaly_map.min()), max(high, anomaly_map.max())
    span = max(float(high - low), np.finfo(np.float32).tiny)
    wanted, found = np.array(wanted_scores), np.array(found_scores)
    together = np.stack([model.read(sample.image) for sample in image_set.samples[:TOGETHER]])
    alone = found[: len(together)]
    ties, equal = 0, None
    if model.threshold is not None:
        value = model.threshold["value"]
        tied = np.abs(wanted - value) <= TIE * span
        ties, equal = int(tied.sum()), int((((wanted > value) == (found > value)) & ~tied).sum())
    return Parity(
        images=len(wanted),
        split=split,
        map=largest / span,
        score=float(np.abs(found - wanted).max()) / span,
        batch=float(np.abs(model(together)[0] - alone).max()) / span,
        decisions=equal,
        ties=ties,
    )


def import_predict(folder: Path) -> ModuleType:
    """The folder's predict.py as a module."""
    spec = importlib.util.spec_from_file_location("exported_predict", folder / "predict.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
