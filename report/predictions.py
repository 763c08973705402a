"""What a finished run's files say of each test image: the lines of predictions.csv, and the maps that fit them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from report.results import Result
from run_files import MAPS, PREDICTIONS, PredictionRow, SavedMaps, read_predictions
from run_files.maps import REMEDY
from utils import file_sha256

NO_MAPS = "run with --save_maps, or python test.py RUN --save_maps for a finished run"


def predictions_of(folder: Path, result: Result) -> tuple[list[PredictionRow], list[str]]:
    """The lines of predictions.csv that are of the result's class, none without the file, and what is odd about them.

    Raises ValueError for a damaged file.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return [], []
    rows = read_predictions(path)
    recorded = result.get("predictions_sha256")
    same = recorded in (None, file_sha256(path))
    notes = [] if same else [f"{PREDICTIONS} is not the file that was scored: its SHA-256 differs"]
    return [row for row in rows if _is_of(row, result)], notes


def _is_of(row: PredictionRow, result: Result) -> bool:
    return row.class_name in ("", result["class_name"])


def read_maps(folder: Path, result: Result) -> tuple[SavedMaps | None, str | None]:
    """The maps of the test images that are of the result's class, or None and why there are none."""
    if not (folder / MAPS).is_file():
        return None, NO_MAPS
    rows = read_predictions(folder / PREDICTIONS)
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
