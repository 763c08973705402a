"""predictions.csv: the test images of a finished run with their labels and scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from run_files.csv_files import read_csv
from utils import printable


@dataclass(frozen=True)
class PredictionRow:
    """A line of predictions.csv: one test image and its score; its class in a run over several; its AUPIMO if any."""

    path: Path
    defect: str
    anomalous: bool
    score: float
    class_name: str = ""
    aupimo: float | None = None


def read_predictions(path: Path) -> list[PredictionRow]:
    """Every line of a run's predictions.csv. Raises ValueError naming the file for another table."""
    lines = read_csv(path)
    try:
        rows = [
            PredictionRow(
                Path(row["path"]),
                row["defect"],
                {"0": False, "1": True}[row["anomalous"]],
                float(row["score"]),
                row.get("class_name", ""),
                float(text) if (text := row.get("aupimo")) else None,
            )
            for row in lines
        ]
        if not all(math.isfinite(row.score) for row in rows):
            raise ValueError("a score that is not finite")
        if not all(row.aupimo is None or 0 <= row.aupimo <= 1 for row in rows):
            raise ValueError("an aupimo that is not in 0..1")
    except (KeyError, ValueError) as problem:
        wanted = "the columns path, defect, anomalous (0 or 1) and score (finite)"
        raise ValueError(f"{path}: wanted {wanted}; found {printable(str(problem))}") from None
    return rows
