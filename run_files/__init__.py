"""The folder of a run: its files, and whether the run is finished, can be resumed, or is another run."""

from run_files.folder import CHECKPOINT, CONFIG, EVALUATIONS, METRICS, PREDICTIONS, TRAIN, Run, score_columns
from run_files.progress import Progress, oracle_rule

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "EVALUATIONS",
    "METRICS",
    "PREDICTIONS",
    "TRAIN",
    "Progress",
    "Run",
    "oracle_rule",
    "score_columns",
]
