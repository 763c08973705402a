"""The folder of a run: its files, and whether the run is finished, can be resumed, or is another run.

<save_path>/<benchmark>/<variant or --name>/<class>/seed<k>/
    config.json       written first: all settings, code revision, versions, hash of the teacher's weights
    train.csv         a line per epoch
    evaluations.csv   a line per evaluation
    checkpoint.pt     the trained parameters and what resuming needs
    predictions.csv   a line per test image
    metrics.json      written last: a run with this file is finished

Every file is written atomically.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config
from dataset import Sample
from model import Distiller
from run_files import checks
from run_files.progress import Progress, oracle_rule
from scoring.metrics import Report
from scoring.normalization import Normalizer
from utils import code_revision, environment_info, write_atomically

CONFIG, TRAIN, EVALUATIONS = "config.json", "train.csv", "evaluations.csv"
CHECKPOINT, PREDICTIONS, METRICS = "checkpoint.pt", "predictions.csv", "metrics.json"


class Run:
    """One run folder. Two runs are the same when their identities are equal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = time.monotonic()  # when the last resume point was written, or this object was made

    def __str__(self) -> str:
        return str(self.folder)

    def open(self, config: dict[str, Any], identity: dict[str, Any], fresh: bool = False, resume: bool = True) -> None:
        """Start the run, or continue the one in this folder; `fresh` discards it, `resume=False` an unfinished one.

        `identity` holds the settings that affect results and differ from their defaults. Raises ValueError with the
        settings in which the run in this folder differs.
        """
        for leftover in self.folder.glob(".*.partial"):  # left by a killed process
            leftover.unlink()
        if fresh or not (resume or self.finished):
            self.discard()
        if (self.folder / CONFIG).exists():
            self._check_identity(identity)
        else:
            self.discard()  # files without a configuration are no run
            record = {"config": config, "identity": identity, "revision": code_revision(), **environment_info()}
            write_atomically(self.folder / CONFIG, json.dumps(record, indent=2) + "\n")

    def _check_identity(self, identity: dict[str, Any]) -> None:
        """Raises ValueError where the identities differ. A setting that one of them lacks has its default there."""
        found = self.read(CONFIG).get("identity")
        if not isinstance(found, dict):
            raise ValueError(
                f"{self.folder / CONFIG}: written by another version of this project; --fresh starts again"
            )
        wanted = json.loads(json.dumps(identity))
        different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        if different:
            there, here = ({key: _format_setting(side.get(key)) for key in different} for side in (found, wanted))
            details = "; ".join(f"{key} is {there[key]} there, {here[key]} here" for key in different)
            raise ValueError(
                f"{self.folder} holds a run of another configuration: {details}. "
                "Give another --save_path or --name, or --fresh to discard it"
            )

    def discard(self) -> None:
        """Remove the files of the run. metrics.json is the first, so a half-removed run does not look finished."""
        (self.folder / METRICS).unlink(missing_ok=True)
        for name in (CHECKPOINT, PREDICTIONS, TRAIN, EVALUATIONS):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "overlays", ignore_errors=True)
        (self.folder / CONFIG).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether metrics.json is there, which is written last."""
        return (self.folder / METRICS).is_file()

    def read(self, name: str) -> dict[str, Any]:
        """The content of config.json or metrics.json, checked. Raises FileNotFoundError, ValueError."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in {self.folder}: give the folder of a run, .../<class>/seed<k>")
        return checks.read_config(path) if name == CONFIG else checks.read_metrics(path)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save a state of tensors and plain values only, which `torch.load(weights_only=True)` can read."""
        write_atomically(self.folder / CHECKPOINT, lambda file: torch.save(state, file))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last saved state, on the CPU, checked; None where there is none. Raises ValueError for a damaged file."""
        path = self.folder / CHECKPOINT
        return checks.load_checkpoint(path, scored=self.finished) if path.is_file() else None

    def restore(self, distiller: Distiller, optimizer: torch.optim.Optimizer) -> Progress:
        """Load the last resume point into distiller and optimizer; a new Progress where there is none."""
        state = self.load_checkpoint()
        if state is None:
            return Progress()
        with checks.named(self.folder / CHECKPOINT):
            distiller.load_trained_state(state["trained"])
            if "optimizer" in state:  # else training is finished and only scoring is left
                checks.load_optimizer(optimizer, state["optimizer"])
        return Progress(**state["progress"])

    def record(
        self, progress: Progress, distiller: Distiller, optimizer: torch.optim.Optimizer, interval: float
    ) -> None:
        """Write the tables of progress, and a resume point unless the last one is less than `interval` seconds old."""
        self.write_progress(progress)
        if time.monotonic() - self._saved >= interval:
            state = {"trained": distiller.trained_state(), "optimizer": optimizer.state_dict()}
            self.save_checkpoint({**state, "progress": asdict(progress)})
            self._saved = time.monotonic()

    def write_progress(self, progress: Progress) -> None:
        """Write train.csv and evaluations.csv."""
        self.write_csv(TRAIN, progress.history)
        self.write_csv(EVALUATIONS, progress.evaluations)

    def write_predictions(
        self, samples: Sequence[Sample], scores: np.ndarray, normalizer: Normalizer | None = None
    ) -> None:
        """Write predictions.csv: path, defect, anomalous (0, 1) and `score_columns` of every test image."""
        rows = [
            {
                "path": str(s.image),
                "defect": s.defect,
                "anomalous": int(s.anomalous),
                **score_columns(score, normalizer),
            }
            for s, score in zip(samples, scores, strict=True)
        ]
        self.write_csv(PREDICTIONS, rows)

    def write_csv(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows with the same keys as a CSV file with a header; nothing without rows."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / name, text.getvalue())

    def finish(self, config: Config, report: Report, progress: Progress, facts: Mapping[str, Any]) -> None:
        """Write metrics.json, the last file: settings, metrics (null where undefined), oracle, `facts`, environment."""
        record = {
            "class_name": config.classes[0],
            "seed": config.seeds[0],
            "benchmark": config.dataset,
            "variant": config.variant,
            "name": config.folder_name,
            "net": config.net,
            "image_size": config.image_size,
            "batch_size": config.training.batch_size,
            "epochs": config.training.epochs,
            "epochs_trained": progress.epoch,
            "metrics": report.defined(),
            "reasons": report.reasons,
            "oracle": progress.oracle(oracle_rule(config.variant, config.dataset)),
            "train_seconds": round(progress.seconds, 2),
            **facts,
            "revision": code_revision(),
            **environment_info(),
        }
        write_atomically(self.folder / METRICS, json.dumps(record, indent=2, allow_nan=False) + "\n")


def score_columns(score: float, normalizer: Normalizer | None) -> dict[str, str]:
    """An image score as columns of a CSV file; with a normalizer also the normalized score and the decision (0, 1)."""
    columns = {"score": f"{score:.9g}"}
    if normalizer is not None:
        columns["normalized"] = f"{float(normalizer.normalized(score)):.9g}"
        columns["predicted"] = str(int(normalizer.decide(score)))
    return columns


def _format_setting(value: Any) -> str:
    return "the default" if value is None else repr(value)
