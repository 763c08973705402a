"""What a finished run's files say of each test image: the lines of predictions.csv, and the maps that fit them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from report.results import Result
from run_files import MAPS, PREDICTIONS, SavedMaps
from run_files.csv_files import read_csv
from run_files.maps import REMEDY
from utils import file_sha256, printable

NO_MAPS = "run with --save_maps, or python test.py RUN --save_maps for a finished run"


@dataclass(frozen=True)
class Prediction:
    """A line of predictions.csv: one test image and its score; its class in a run over several; its AUPIMO if any."""

    path: Path
    defect: str
    anomalous: bool
    score: float
    class_name: str = ""
    aupimo: float | None = None


def read_predictions(folder: Path, result: Result) -> tuple[list[Prediction], list[str]]:
    """The lines of predictions.csv that are of the result's class, none without the file, and what is odd about them.

    Raises ValueError for a damaged file.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return [], []
    rows = _read_rows(path)
    recorded = result.get("predictions_sha256")
    same = recorded in (None, file_sha256(path))
    notes = [] if same else [f"{PREDICTIONS} is not the file that was scored: its SHA-256 differs"]
    return [row for row in rows if _is_of(row, result)], notes


def _is_of(row: Prediction, result: Result) -> bool:
    return row.class_name in ("", result["class_name"])


def _read_rows(path: Path) -> list[Prediction]:
    try:
        rows = [
            Prediction(
                Path(row["path"]),
                row["defect"],
                {"0": False, "1": True}[row["anomalous"]],
                float(row["score"]),
                row.get("class_name", ""),
                float(text) if (text := row.get("aupimo")) else None,
            )
            for row in read_csv(path)
        ]
        if not all(math.isfinite(row.score) for row in rows):
            raise ValueError("a score that is not finite")
        if not all(row.aupimo is None or 0 <= row.aupimo <= 1 for row in rows):
            raise ValueError("an aupimo that is not in 0..1")
    except (KeyError, ValueError) as problem:
        wanted = "the columns path, defect, anomalous (0 or 1) and score (finite)"
        raise ValueError(f"{path}: wanted {wanted}; found {printable(str(problem))}") from None
    return rows


def read_maps(folder: Path, result: Result) -> tuple[SavedMaps | None, str | None]:
    """The maps of the test images that are of the result's class, or None and why there are none."""
    if not (folder / MAPS).is_file():
        return None, NO_MAPS
    rows = _read_rows(folder / PREDICTIONS)
    try:
        maps = SavedMaps.read(folder, len(rows))
    except ValueError as problem:
        return None, str(problem)
    labels = [row.anomalous for row in rows]
    if maps.checkpoint_sha256 != result.get("checkpoint_sha256") or maps.labels.tolist() != labels:
        return None, f"{MAPS} belongs to another checkpoint; {REMEDY}"
    own = [number for number, row in enumerate(rows) if _is_of(row, result)]
    if len(own) == len(rows):
        return maps, None
    masks = None if maps.masks is None else maps.masks[own]
    return replace(maps, maps=maps.maps[own], masks=masks, labels=maps.labels[own], classes=()), None
