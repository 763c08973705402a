"""The folder of a run: its files, and whether the run is finished, can be resumed, or is another run."""

from run_files.data import DataRecord
from run_files.folder import (
    ATTEMPTS,
    CHECKPOINT,
    CONFIG,
    DATA,
    EVALUATIONS,
    LOG,
    METRICS,
    PREDICTIONS,
    THRESHOLD,
    TRAIN,
    Run,
    identity_sha256,
    score_columns,
)
from run_files.lock import Busy, FolderLock, Lost
from run_files.maps import MAPS, SavedMaps
from run_files.predictions import PredictionRow, read_predictions
from run_files.progress import Progress, oracle_rule

__all__ = [
    "ATTEMPTS",
    "CHECKPOINT",
    "CONFIG",
    "DATA",
    "EVALUATIONS",
    "LOG",
    "MAPS",
    "METRICS",
    "PREDICTIONS",
    "THRESHOLD",
    "TRAIN",
    "Busy",
    "DataRecord",
    "FolderLock",
    "Lost",
    "PredictionRow",
    "Progress",
    "Run",
    "SavedMaps",
    "identity_sha256",
    "oracle_rule",
    "read_predictions",
    "score_columns",
]
