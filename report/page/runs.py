"""What the page says of one run, read from its folder: predictions, decisions, curves, metrics of each defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from config import Config
from readers.image_io import MAX_PIXELS
from report.predictions import predictions_of, read_maps
from report.results import Result, run_name
from run_files import CONFIG, TRAIN, PredictionRow, Run, SavedMaps
from run_files.csv_files import read_csv
from scoring.curves import Points, image_curves, pixel_curves, thinned
from scoring.metrics import image_metrics, pixel_metrics
from scoring.peaks import peak_outside
from scoring.pixels import count_pixels
from scoring.thresholds import Threshold
from utils import printable

HARDLY = 0.6  # image AUROC
DEFECT_METRICS = ("image_auroc", "pixel_auroc", "aupro")


@dataclass(frozen=True)
class Decisions:
    """The threshold, and how many test images of each kind lie above it (NG) and not above it (OK)."""

    threshold: Threshold
    normal_ok: int
    normal_ng: int
    anomalous_ok: int
    anomalous_ng: int


@dataclass(frozen=True)
class Defect:
    """One kind of defect against the normal images: the metrics that are defined, the share that is found (NG)."""

    name: str
    images: int
    metrics: Mapping[str, float]
    found: float | None


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it; `maps` are held only until its thumbnails are drawn.

    config   its settings; None without config.json
    curves   `thinned` points by name
    history  the columns of train.csv by name: losses by epoch
    outside  (N,) whether the map's highest pixel lies outside the mask (`peak_outside`); None without maps and masks
    notes    what is missing or does not fit, a line each
    """

    folder: Path
    result: Result
    predictions: Sequence[PredictionRow]
    decisions: Decisions | None = None
    curves: Mapping[str, Points] = field(default_factory=dict)
    defects: Sequence[Defect] = ()
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: SavedMaps | None = None
    outside: np.ndarray | None = None
    notes: Sequence[str] = ()
    config: Config | None = None

    @property
    def name(self) -> str:
        """--name, or else the variant."""
        return run_name(self.result)

    @property
    def benchmark(self) -> str:
        return self.result["benchmark"]

    @property
    def class_name(self) -> str:
        return self.result["class_name"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def overlays(self) -> Path:
        """The folder of the run's overlays, which may not exist."""
        return self.folder / "overlays" if self.config is None else Run(self.folder).overlay_folder(self.config)

    @property
    def max_pixels(self) -> int:
        """--max_pixels of the run: larger images are not decoded."""
        return MAX_PIXELS if self.config is None else self.config.max_pixels

    def belongs_to(self, benchmark: str, class_name: str) -> bool:
        return (self.benchmark, self.class_name) == (benchmark, class_name)

    @property
    def labels(self) -> np.ndarray:
        """(N,) bool, True for anomalous images."""
        return np.array([prediction.anomalous for prediction in self.predictions], bool)

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32: predictions.csv holds nine digits, which is every bit."""
        return np.array([prediction.score for prediction in self.predictions], np.float32)


def read_run(folder: Path, result: Result) -> RunView:
    """What the page says of a finished run, or of one of its classes. Raises ValueError naming a damaged file of it."""
    run = Run(folder)
    config = run.config() if (folder / CONFIG).is_file() else None
    predictions, notes = predictions_of(folder, result)
    history = _read_history(folder / TRAIN)
    if not predictions:
        notes.append("no test images: no curves, no decisions")
        return RunView(folder, result, (), history=history, notes=notes, config=config)
    maps, problem = read_maps(folder, result)
    notes += [f"pixel curves: {problem}"] if problem else []
    labels = np.array([prediction.anomalous for prediction in predictions], bool)
    scores = np.array([prediction.score for prediction in predictions], np.float32)
    curves, outside = image_curves(labels, scores), None
    if maps is not None and maps.masks is not None:
        counts = count_pixels(maps.maps, maps.masks)
        curves |= {} if isinstance(counts, str) else pixel_curves(counts)
        outside = np.array([peak_outside(*pair) for pair in zip(maps.maps, maps.masks, strict=True)], bool)
    elif maps is not None:
        notes.append("no pixel curves: the run has no masks")
    auroc = image_metrics(labels, scores).values["image_auroc"]
    if auroc < HARDLY:  # not where it is undefined
        notes.append(
            f"scores of normal and anomalous images hardly differ (image AUROC {100 * auroc:.2f}): decisions by any "
            "threshold are little better than chance"
        )
    threshold = run.threshold()
    decisions = _decide(threshold, labels, scores) if threshold is not None else None
    defects = _defects(predictions, labels, scores, maps, threshold)
    curves = {name: thinned(points) for name, points in curves.items()}
    return RunView(folder, result, predictions, decisions, curves, defects, history, maps, outside, notes, config)


def _read_history(path: Path) -> dict[str, np.ndarray]:
    """The columns of train.csv by name; empty without the file."""
    if not path.is_file():
        return {}
    lines = read_csv(path)
    try:
        rows = [{name: float(cell) for name, cell in row.items()} for row in lines]
        columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        if rows and "epoch" not in columns:
            raise ValueError(f"the columns {', '.join(columns)}")
    except (KeyError, ValueError) as problem:
        raise ValueError(f"{path}: wanted epoch and losses, all numbers; found {printable(str(problem))}") from None
    return columns


def _decide(threshold: Threshold, labels: np.ndarray, scores: np.ndarray) -> Decisions:
    flagged = np.array([threshold.decide(float(score)) for score in scores], bool)
    kinds = [(~labels & ~flagged), (~labels & flagged), (labels & ~flagged), (labels & flagged)]
    return Decisions(threshold, *(int(kind.sum()) for kind in kinds))


def _defects(
    predictions: Sequence[PredictionRow],
    labels: np.ndarray,
    scores: np.ndarray,
    maps: SavedMaps | None,
    threshold: Threshold | None,
) -> list[Defect]:
    """Each kind of defect, sorted: metrics of its images and the normal ones; those of pixels where there are maps."""
    names = np.array([prediction.defect for prediction in predictions], object)
    rows = []
    for name in sorted(set(names[labels].tolist())):
        own = labels & (names == name)
        some = own | ~labels
        values = image_metrics(labels[some], scores[some]).defined()
        if maps is not None and maps.masks is not None:
            values |= pixel_metrics(maps.maps[some], maps.masks[some]).defined()
        metrics = {key: value for key in DEFECT_METRICS if (value := values.get(key)) is not None}
        found = None if threshold is None else float(np.mean([threshold.decide(float(s)) for s in scores[own]]))
        rows.append(Defect(name, int(own.sum()), metrics, found))
    return rows
