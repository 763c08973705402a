"""The folder of a run: its files, and whether the run is finished, can be resumed, or is another run."""

from run_files.data import DataRecord
from run_files.folder import (
    CHECKPOINT,
    CONFIG,
    DATA,
    EVALUATIONS,
    METRICS,
    PREDICTIONS,
    THRESHOLD,
    TRAIN,
    Run,
    identity_sha256,
    score_columns,
)
from run_files.lock import Busy, FolderLock
from run_files.maps import MAPS, SavedMaps
from run_files.progress import Progress, oracle_rule

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "DATA",
    "EVALUATIONS",
    "MAPS",
    "METRICS",
    "PREDICTIONS",
    "THRESHOLD",
    "TRAIN",
    "Busy",
    "DataRecord",
    "FolderLock",
    "Progress",
    "Run",
    "SavedMaps",
    "identity_sha256",
    "oracle_rule",
    "score_columns",
]
