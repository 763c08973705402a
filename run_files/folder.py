"""The files of a run, and whether it is finished, can be resumed, or is another run.

<save_path>/<benchmark>/<variant or --name>/<class, or unified>/seed<k>/
    data.csv          a line per image of the training and test split, with the SHA-256 of its files
    config.json       then: all settings, identity, code revision, versions
    train.csv         a line per epoch
    evaluations.csv   a line per evaluation
    checkpoint.pt     the trained parameters and what resuming needs
    predictions.csv   a line per test image
    threshold.json    where normal images were kept apart: the threshold, what it promises, what it finds
    maps.npz          with --save_maps: their anomaly maps and masks
    metrics.json      written last: a run with this file is finished, if it fits config.json
    attempts.csv      a line per process that worked on the run: when, where, after which epoch, how it ended
    log.txt           what was printed meanwhile, and the traceback of what failed

Every file is written atomically, and by one process at a time (`Run.lock`). Nothing is deleted without --fresh.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from commandline import one_line_of
from config import Config
from dataset import Sample
from methods import Training
from run_files import checks
from run_files.csv_files import read_csv, to_csv
from run_files.data import DataRecord
from run_files.lock import EXPIRES, LOCK, Busy, FolderLock
from run_files.maps import MAPS
from run_files.progress import Progress, oracle_rule
from scoring.modes import RESIZED
from scoring.normalization import Normalizer
from scoring.thresholds import Threshold
from utils import (
    PULSE,
    code_revision,
    environment_info,
    file_sha256,
    sweep_partials,
    write_atomically,
)

if TYPE_CHECKING:  # what needs torch is imported where it is used: tables and commands that only look do without
    import torch

    from model import Distiller
    from model.averaging import WeightAverage
    from scoring.metrics import Report

DATA, CONFIG, TRAIN, EVALUATIONS = "data.csv", "config.json", "train.csv", "evaluations.csv"
CHECKPOINT, PREDICTIONS, METRICS = "checkpoint.pt", "predictions.csv", "metrics.json"
THRESHOLD = "threshold.json"
ATTEMPTS, LOG = "attempts.csv", "log.txt"


class Run:
    """One run folder. Two runs are the same when their identities are equal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = time.monotonic()  # when the last resume point was written, or this object was made
        self._record: dict[str, Any] = {}  # the content of config.json, once the run is open
        self._data: DataRecord | None = None
        self._lock: FolderLock | None = None

    def __str__(self) -> str:
        return str(self.folder)

    @contextlib.contextmanager
    def lock(self, expires: float = EXPIRES) -> Iterator[None]:
        """A context in which no other process writes this folder. Entering raises Busy, naming the other one.

        `expires` as in `FolderLock`. Where another process has taken the folder over, writing raises Lost.
        """
        with FolderLock(self.folder, expires=expires, work=lambda: PULSE.count) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def check(self) -> None:
        """Raises Lost where this process held the lock and another one has taken the folder over."""
        if self._lock is not None:
            self._lock.check()

    def write(self, name: str, content: str | bytes | Callable[[BinaryIO], object]) -> None:
        """Write a file of the folder, whole or not at all. Raises Lost as `check`, and OSError."""
        self.check()  # a folder that was removed is made and locked again, before it is written to
        write_atomically(self.folder / name, content, self.check)

    @contextlib.contextmanager
    def attempt(self, device: str, epoch: int) -> Iterator[None]:
        """A context that has a line in attempts.csv: this process goes on after so many epochs, and how that ended.

        Enter it in the run's `lock`. A process that is killed, or loses the folder, leaves the line without an end.
        """
        own = {"started": _now(), "ended": "", "host": socket.gethostname(), "pid": os.getpid()}
        rows = [*self.attempts(), {**own, "device": device, "epoch": epoch, "outcome": ""}]

        def end(outcome: str) -> None:
            rows[-1] |= {"ended": _now(), "outcome": outcome}
            self.write_csv(ATTEMPTS, rows)

        try:
            self.write_csv(ATTEMPTS, rows)  # in here: a signal may come while it is written
            yield
        except Busy:
            raise
        except BaseException as problem:
            with contextlib.suppress(OSError):
                end(one_line_of(problem) or type(problem).__name__)
            raise
        end("finished")

    def attempts(self) -> list[dict[str, Any]]:
        """The lines of attempts.csv, the first attempt first."""
        path = self.folder / ATTEMPTS
        return [*read_csv(path)] if path.is_file() else []

    def holds(self, identity: Mapping[str, Any], data: DataRecord) -> bool:
        """Whether the folder holds this run, finished. Nothing is written.

        Raises ValueError where it holds another run, finished or not, by what differs. More epochs of the same run are
        none: it is not finished yet.
        """
        if not (self.folder / CONFIG).exists():
            kept = [name for name in (METRICS, CHECKPOINT) if (self.folder / name).exists()]
            if kept:
                raise ValueError(
                    f"{self.folder} holds {' and '.join(kept)} without {CONFIG}, so it cannot be told which run that "
                    f"is: put {CONFIG} back, or give another --save_path or --name, or --fresh to discard it"
                )
            return False
        found = self._identity()
        differences = self._differences(found, identity, data)
        if not differences:
            return self.finished
        if self._is_begun and not self._is_shorter(found, identity):
            raise ValueError(
                f"{self.folder} holds a run of another configuration: {'; '.join(differences)}. "
                "Give another --save_path or --name, or --fresh to discard it"
            )
        return False

    def open(
        self,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        data: DataRecord,
        fresh: bool = False,
        resume: bool = True,
    ) -> None:
        """Start the run, or continue the one in this folder; `fresh` discards it, `resume=False` an unfinished one.

        `identity` holds what affects results and differs from its default, `data` what images there are. The folder of
        a run without a resume point is taken over. Call it in the run's `lock`. Raises ValueError as `holds`.
        """
        sweep_partials(self.folder)
        if fresh or not (resume or self.finished):
            self.discard()
        finished = self.holds(identity, data)
        self._data = data
        environment = {"revision": code_revision(), **environment_info()}
        if not self._is_begun:
            self._record = {"config": dict(config), "identity": plain(identity), **environment}
            self._write_record()
            return
        recorded = self.read(CONFIG)
        self._record = dict(recorded)
        if finished:
            return
        before = {key: (self._record.get("resumed") or [self._record])[-1].get(key) for key in environment}
        changed = [f"{key}: {before[key]} before, {now} now" for key, now in environment.items() if before[key] != now]
        if changed:
            print(f"{self.folder}: goes on elsewhere, so metrics may differ by rounding; {'; '.join(changed)}")
            self._record["resumed"] = [*self._record.get("resumed", []), environment]
        self._record |= {"config": dict(config), "identity": plain(identity)}
        if self._record != recorded:
            self._write_record()

    def tidy(self) -> None:
        """Remove what a killed process left in the folder, unless another one writes there or nobody can."""
        if (self.folder / LOCK).exists() or any(self.folder.glob(".*.partial")):
            with contextlib.suppress(OSError), self.lock():
                sweep_partials(self.folder)

    def _write_record(self) -> None:
        assert self._data is not None, "open the run first"
        self.write(DATA, self._data.to_csv())
        self.write(CONFIG, json.dumps(self._record, indent=2) + "\n")

    def _identity(self) -> dict[str, Any]:
        return self.read(CONFIG)["identity"]

    @property
    def _is_begun(self) -> bool:
        """Whether the run has a resume point, or has been scored; otherwise there is nothing to lose."""
        return any((self.folder / name).exists() for name in (CHECKPOINT, METRICS))

    @staticmethod
    def _is_shorter(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Whether the two differ in epochs alone, or steps, and more are wanted: every epoch is as it would have been.

        With a schedule none is: its step sizes depend on the number of all steps.
        """
        if found.get("schedule", Training().schedule) != "constant":
            return False
        length = "steps" if "steps" in found else "epochs"
        before, now = (identity.get(length, getattr(Training(), length)) for identity in (found, plain(wanted)))
        return {**found, length: 0} == {**plain(wanted), length: 0} and before < now

    def _differences(self, found: Mapping[str, Any], identity: Mapping[str, Any], data: DataRecord) -> list[str]:
        """What differs between the run in this folder and another one, in words.

        A setting that one of them lacks has its default there.
        """
        wanted = plain(identity)
        keys = [key for key in sorted({*found, *wanted} - {"data"}) if found.get(key) != wanted.get(key)]
        there, here = ({key: _format_setting(side.get(key)) for key in keys} for side in (found, wanted))
        differences = [f"{key} is {there[key]} there, {here[key]} here" for key in keys]
        if found.get("data") != wanted.get("data"):
            differences.append(self.data_differences(data) or "its images are not known")
        return differences

    def data(self) -> DataRecord:
        """The images that the run has seen. Raises FileNotFoundError, which says what that means; ValueError."""
        path = self.folder / DATA
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, so it is not known which images the run has seen")
        return DataRecord.read(path)

    def data_differences(self, now: DataRecord) -> str:
        """What differs between the images that the run has seen and those of `now`, in words; empty for the same.

        Raises ValueError for a damaged config.json.
        """
        recorded = self._identity().get("data")
        if recorded is None:
            return "its images are not recorded, since an earlier version of this project made it"
        digests, nothing = now.digests(), {"images": 0}
        if recorded == digests:
            return ""
        try:
            record = DataRecord.read(self.folder / DATA)
            if record.digests() == recorded:
                return "; ".join(record.differences(now))
        except (OSError, ValueError):
            pass
        listed = "; ".join(
            f"{split}: {recorded.get(split, nothing)['images']} images, {digests.get(split, nothing)['images']} others "
            "are there now"
            for split in dict.fromkeys((*recorded, *digests))
            if recorded.get(split) != digests.get(split)
        )
        return f"{listed} ({DATA} is missing or changed, so it cannot be said which)"

    def discard(self) -> None:
        """Remove the files of the run. metrics.json is the first, so a half-removed run does not look finished."""
        self.check()
        (self.folder / METRICS).unlink(missing_ok=True)
        for name in (CHECKPOINT, PREDICTIONS, THRESHOLD, MAPS, TRAIN, EVALUATIONS, ATTEMPTS, LOG, DATA):
            self.check()
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "overlays", ignore_errors=True)
        (self.folder / CONFIG).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether metrics.json is there and fits config.json where both are: more epochs may have been asked for.

        Raises ValueError for a file that is not a run's.
        """
        if not (self.folder / METRICS).is_file():
            return False
        recorded = self.read(METRICS).get("identity_sha256")  # earlier versions have none
        return recorded is None or not (self.folder / CONFIG).is_file() or recorded == identity_sha256(self._identity())

    def read(self, name: str) -> dict[str, Any]:
        """The content of config.json or metrics.json, checked. Raises FileNotFoundError, ValueError."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in {self.folder}: give the folder of a run, .../<class>/seed<k>")
        return checks.read_config(path) if name == CONFIG else checks.read_metrics(path)

    def config(self) -> Config:
        """The settings that config.json records. Raises FileNotFoundError, ValueError."""
        return Config(**Config.from_json(self.read(CONFIG)["config"]))

    def overlay_folder(self, config: Config) -> Path:
        """Where the overlays of the run, with these settings, lie. A copy of a run keeps its overlays to itself."""
        in_place = self.folder.resolve() == config.run_folder.resolve()
        return config.overlay_folder if in_place else self.folder / "overlays"

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save a state of tensors and plain values only, which `torch.load(weights_only=True)` can read."""
        import torch

        self.write(CHECKPOINT, lambda file: torch.save(state, file))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last saved state, on the CPU, checked; None where there is none. Raises ValueError for a damaged file."""
        path = self.folder / CHECKPOINT
        from run_files.checkpoints import load_checkpoint

        return load_checkpoint(path) if path.is_file() else None

    def load_finished(self) -> dict[str, Any]:
        """The state of a finished run, on the CPU.

        Raises FileNotFoundError where it is missing, ValueError where it is damaged or not the one that was scored.
        """
        from run_files.checkpoints import load_checkpoint

        path, recorded = self.folder / CHECKPOINT, self.read(METRICS).get("checkpoint_sha256")
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder}: no {CHECKPOINT}; main.py with --fresh trains the run again")
        if recorded not in (None, file_sha256(path)):  # earlier versions recorded none
            raise ValueError(
                f"{path}: is not the file that was scored: its SHA-256 differs from the one in {METRICS}; put that "
                "file back, or --fresh trains the run again"
            )
        return load_checkpoint(path, scored=True)

    def write_threshold(self, threshold: Threshold, findings: Mapping[str, Any]) -> None:
        """Write threshold.json; `findings` are what the threshold does on the test set."""
        record = {**threshold.to_json(), "test": dict(findings)}
        self.write(THRESHOLD, json.dumps(record, indent=2, allow_nan=False) + "\n")

    def threshold(self) -> Threshold | None:
        """The run's threshold; None where there is none, or where it belongs to another checkpoint, which it says.

        Raises ValueError for a damaged file.
        """
        path = self.folder / THRESHOLD
        if not path.is_file():
            return None
        threshold = Threshold.from_json(checks.read_threshold(path))
        if self.read(METRICS).get("checkpoint_sha256") != threshold.checkpoint_sha256:
            print(
                f"{path}: belongs to another checkpoint and is not used: scores differ between trainings",
                file=sys.stderr,
            )
            return None
        return threshold

    def decisions(self) -> dict[str, Any]:
        """What the threshold does on the test set, as threshold.json holds it; empty without a threshold of this run.

        Raises ValueError for a damaged file.
        """
        path = self.folder / THRESHOLD
        record = checks.read_threshold(path) if path.is_file() else {}
        own = record.get("checkpoint_sha256") == self.read(METRICS).get("checkpoint_sha256")
        return dict(record.get("test") or {}) if own else {}

    def restore(
        self,
        distiller: Distiller,
        optimizer: torch.optim.Optimizer,
        training: Training,
        average: WeightAverage | None = None,
    ) -> Progress:
        """Load the last resume point into distiller, optimizer and average; a new Progress where there is none.

        Raises ValueError where training is to go on and the optimizer's state was not kept.
        """
        from run_files.checkpoints import load_training_state

        state = self.load_checkpoint()
        if state is None:
            return Progress()
        with checks.named(self.folder / CHECKPOINT):
            load_training_state(state, distiller, optimizer, average)
        progress = Progress(**state["progress"])
        if "optimizer" not in state and not progress.is_complete(training):
            raise ValueError(
                f"{self.folder}: finished after epoch {progress.epoch} without the optimizer's state (--keep_optimizer "
                "0), so more epochs cannot go on from there; --fresh trains it again"
            )
        return progress

    def record(
        self,
        progress: Progress,
        distiller: Distiller,
        optimizer: torch.optim.Optimizer,
        interval: float,
        average: WeightAverage | None = None,
    ) -> None:
        """Write the tables of progress, and a resume point unless the last one is less than `interval` seconds old."""
        if not (self.folder / CONFIG).exists():  # somebody removed the folder meanwhile: what is trained is not lost
            self._write_record()
        self.write_progress(progress)
        if time.monotonic() - self._saved >= interval:
            from run_files.checkpoints import training_state

            self.save_checkpoint({**training_state(distiller, optimizer, average), "progress": asdict(progress)})
            self._saved = time.monotonic()

    def write_progress(self, progress: Progress) -> None:
        """Write train.csv and evaluations.csv."""
        self.write_csv(TRAIN, progress.history)
        self.write_csv(EVALUATIONS, progress.evaluations)

    def write_predictions(
        self,
        samples: Sequence[Sample],
        scores: np.ndarray,
        normalizer: Normalizer | None = None,
        aupimo: np.ndarray | None = None,
    ) -> None:
        """Write predictions.csv: path, defect, anomalous (0, 1) and `score_columns` of every test image.

        Of several classes also class_name. `aupimo` (n,) becomes a column that is empty where it is NaN.
        """
        each = [None] * len(samples) if aupimo is None else aupimo.tolist()
        rows = [
            {
                "path": s.image,
                **({"class_name": s.class_name} if s.class_name else {}),
                "defect": s.defect,
                "anomalous": int(s.anomalous),
                **score_columns(score, normalizer),
                **({} if area is None else {"aupimo": "" if math.isnan(area) else f"{area:.9g}"}),
            }
            for s, score, area in zip(samples, scores, each, strict=True)
        ]
        self.write_csv(PREDICTIONS, rows)

    def write_csv(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows as a CSV file with a header; nothing without rows.

        A row may lack keys of others, as the evaluations do that an earlier version made: its cells are empty.
        """
        if not rows:
            return
        header = list(dict.fromkeys(name for row in reversed(rows) for name in row))
        text = to_csv(header, ([row.get(name) for name in header] for row in rows))
        self.write(name, text)

    def finish(self, config: Config, report: Report, progress: Progress, facts: Mapping[str, Any]) -> None:
        """Write metrics.json, the last file: settings, metrics (null where undefined), oracle, `facts`, environment.

        It also holds the SHA-256 of the identity, of checkpoint.pt and of predictions.csv.
        """
        if not (self.folder / CONFIG).exists():
            self._write_record()
        predictions = self.folder / PREDICTIONS
        record = {
            **self.described(config, progress),
            "metrics": report.defined(),
            "reasons": report.reasons,
            "oracle": progress.oracle(oracle_rule(config.variant, config.dataset)),
            "train_seconds": round(progress.seconds, 2),
            **facts,
            "identity_sha256": identity_sha256(self._record["identity"]),
            "checkpoint_sha256": file_sha256(self.folder / CHECKPOINT),
            "predictions_sha256": file_sha256(predictions) if predictions.is_file() else None,
            "revision": code_revision(),
            **environment_info(),
        }
        self.write(METRICS, json.dumps(record, indent=2, allow_nan=False) + "\n")

    @staticmethod
    def described(config: Config, progress: Progress) -> dict[str, Any]:
        """The settings that metrics.json names, so that a table needs no other file."""
        return {
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
            **({} if config.tiles is None else {"tiles": config.tiles, "tile_overlap": config.tile_overlap}),
            **({} if config.map_size == RESIZED else {"map_size": config.map_size}),
        }


def score_columns(score: float, normalizer: Normalizer | None) -> dict[str, str]:
    """An image score as columns of a CSV file; with a normalizer also the normalized score and the decision (0, 1)."""
    columns = {"score": f"{score:.9g}"}
    if normalizer is not None:
        columns["normalized"] = f"{float(normalizer.normalized(score)):.9g}"
        columns["predicted"] = str(int(normalizer.decide(score)))
    return columns


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(identity))


def identity_sha256(identity: Mapping[str, Any]) -> str:
    """The SHA-256 of an identity, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _format_setting(value: Any) -> str:
    return "the default" if value is None else repr(value)
