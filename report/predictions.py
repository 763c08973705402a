"""What a finished run's files say of each test image: the lines of predictions.csv, and the maps that fit them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report.results import Result
from run_files import MAPS, PREDICTIONS, SavedMaps
from run_files.csv_files import read_csv
from run_files.maps import REMEDY
from utils import file_sha256, printable

NO_MAPS = "run with --save_maps, or python test.py RUN --save_maps for a finished run"


@dataclass(frozen=True)
class Prediction:
    """A line of predictions.csv: one test image and its score."""

    path: Path
    defect: str
    anomalous: bool
    score: float


def read_predictions(folder: Path, result: Result) -> tuple[list[Prediction], list[str]]:
    """The lines of predictions.csv, none without the file, and what is odd about them."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return [], []
    try:
        rows = [
            Prediction(Path(row["path"]), row["defect"], {"0": False, "1": True}[row["anomalous"]], float(row["score"]))
            for row in read_csv(path)
        ]
        if not all(math.isfinite(row.score) for row in rows):
            raise ValueError("a score that is not finite")
    except (KeyError, ValueError) as problem:
        wanted = "the columns path, defect, anomalous (0 or 1) and score (finite)"
        raise ValueError(f"{path}: wanted {wanted}; found {printable(str(problem))}") from None
    recorded = result.get("predictions_sha256")
    same = recorded in (None, file_sha256(path))
    return rows, [] if same else [f"{PREDICTIONS} is not the file that was scored: its SHA-256 differs"]


def read_maps(folder: Path, result: Result, predictions: Sequence[Prediction]) -> tuple[SavedMaps | None, str | None]:
    """The run's maps, or None and why there are none."""
    if not (folder / MAPS).is_file():
        return None, NO_MAPS
    try:
        maps = SavedMaps.read(folder, len(predictions))
    except ValueError as problem:
        return None, str(problem)
    labels = [prediction.anomalous for prediction in predictions]
    if maps.checkpoint_sha256 != result.get("checkpoint_sha256") or maps.labels.tolist() != labels:
        return None, f"{MAPS} belongs to another checkpoint; {REMEDY}"
    return maps, None
