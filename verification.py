"""Whether a finished run still says what it said: what can be recomputed is recomputed and compared with its files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration import calibrate
from dataset import Sample
from detector import Detector, Evaluation
from experiment import Experiment, normalized_record
from report.intervals import record_intervals
from report.results import as_recorded, flat_metrics, recorded_metrics, split_classes
from run_files import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    PREDICTIONS,
    THRESHOLD,
    PredictionRow,
    Progress,
    Run,
    identity_sha256,
    oracle_rule,
    read_predictions,
)
from scoring.groups import record_groups
from scoring.metrics import Report, image_metrics, mean_over_classes
from scoring.thresholds import CalibrationSettings
from utils import code_revision, environment_info, file_sha256, set_determinism

SCORE_TOLERANCE = 1e-4  # of the range of the recorded scores, in another environment
METRIC_TOLERANCE = 1e-3  # of a metric, in another environment


@dataclass(frozen=True)
class Check:
    """One thing that was compared: whether it is as recorded (None: not compared), and what was found."""

    name: str
    ok: bool | None
    found: str

    def __str__(self) -> str:
        state = {True: "ok", False: "DIFFERENT", None: "not compared"}[self.ok]
        return f"{state:<12}  {self.name}: {self.found}"


def verify(folder: Path | str, **changes: Any) -> list[Check]:
    """Recompute the metrics, predictions, counts and hashes of a finished run from its data; a Check for each.

    `changes` are those of `Detector.load`, where data or weights have moved. In the environment that scored the run
    (revision, versions, hardware, threads) all must be equal; elsewhere scores may differ by 1e-4 of their range and
    metrics by 1e-3, which is rounding. Raises FileNotFoundError where there is no finished run.
    """
    run = Run(Path(folder))
    try:
        finished = run.finished
    except ValueError as problem:  # a value that no run writes
        return [Check(METRICS, False, str(problem))]
    if not finished:
        raise FileNotFoundError(f"{run}: no finished run (no {METRICS} that fits its {CONFIG})")
    return [*_files(run), *_recomputed(run, changes)]


def environment_differences(recorded: Mapping[str, Any]) -> list[str]:
    """How the code's revision, the versions and the hardware of now differ from the recorded ones, in words."""
    now = {"revision": code_revision(), **environment_info()}
    return [f"{key}: {recorded.get(key)} then, {value} now" for key, value in now.items() if recorded.get(key) != value]


def _files(run: Run) -> Iterator[Check]:
    """The run's files against one another; nothing is computed."""
    record = run.read(METRICS)
    yield _hashed(CONFIG, record.get("identity_sha256"), lambda: identity_sha256(run.read(CONFIG)["identity"]))
    yield _hashed(CHECKPOINT, record.get("checkpoint_sha256"), lambda: file_sha256(run.folder / CHECKPOINT))
    yield _hashed(PREDICTIONS, record.get("predictions_sha256"), lambda: file_sha256(run.folder / PREDICTIONS))


def _hashed(name: str, recorded: str | None, found: Callable[[], str]) -> Check:
    if recorded is None:
        return Check(name, None, f"{METRICS} holds no hash of it")
    try:
        same = found() == recorded
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return Check(name, False, str(problem))
    return Check(name, same, "the one that was scored" if same else "is not the one that was scored")


def _recomputed(run: Run, changes: Mapping[str, Any]) -> Iterator[Check]:
    """The run's numbers against those that its model and its data give now."""
    record = run.read(METRICS)
    elsewhere = environment_differences(record)
    yield Check("environment", None if elsewhere else True, "; ".join(elsewhere) or "as when it was scored")
    try:
        detector = Detector.load(run.folder, **changes)
        experiment = Experiment(detector.config, detector.device)
        images, progress = experiment.test_images, Progress(**run.load_finished()["progress"])
        differences = run.data_differences(experiment.read_data(store=None))
    except (OSError, ValueError) as problem:
        yield Check("model and data", False, str(problem))
        return
    counts = experiment.counts
    seen = f"the {len(experiment.normal_images)} training and {counts['n_test']} test images of the run"
    yield Check("data", not differences, differences or seen)
    config = detector.config
    set_determinism(config.deterministic)
    wanted = {**run.described(config, progress), **counts}
    wrong = _wrong(record, wanted)
    if config.unified:
        classes = record.get("classes", {})
        own = {name: _wrong(classes.get(name, {}), experiment.counts_of(name)) for name in images.by_class}
        wrong += [f"{name}: {text}" for name, texts in own.items() for text in texts]
    yield Check("settings and counts", not wrong, "; ".join(wrong) or "as in config.json")
    oracle = progress.oracle(oracle_rule(config.variant, config.dataset))
    yield Check("oracle", oracle == record.get("oracle"), f"epoch {oracle.get('epoch', 'none')}, from {CHECKPOINT}")

    parts = {part["class_name"]: part for part in split_classes(record)}
    with_intervals = {name: part["intervals"] for name, part in parts.items() if "intervals" in part}
    evaluation = detector.evaluate(images, config.anomalib_scores or bool(with_intervals), by_group=True)
    metrics = recorded_metrics(record)
    yield from _scores(run, images.samples, evaluation, metrics, bool(elsewhere))
    now = as_recorded(evaluation.metrics(), metrics)
    same = _close(now, metrics, METRIC_TOLERANCE if elsewhere else 0)
    yield Check("metrics", same, _largest(now, metrics, "of maps and scores made now"))
    if any("groups" in part for part in parts.values()):
        of_now = {name: record_groups(own.groups) for name, own in evaluation.parts(config.classes[0]).items()}
        recorded = {name: {"groups": part["groups"]} if "groups" in part else {} for name, part in parts.items()}
        same = _close(_flat(of_now), _flat(recorded), METRIC_TOLERANCE if elsewhere else 0)
        yield Check("groups", same, "metrics of each kind of defect and group, of maps and scores made now")
    if with_intervals:
        found = evaluation.parts(config.classes[0])
        again = {name: record_intervals(found[name].intervals(f"{name} seed {config.seeds[0]}")) for name in found}
        for name, record_now in again.items():
            record_now["metrics"] = as_recorded(record_now["metrics"], with_intervals[name]["metrics"])
        same = _close(_flat(again), _flat(with_intervals), METRIC_TOLERANCE if elsewhere else 0)
        yield Check("intervals", same, "of scores and maps made now, by the same bootstrap")
    if (run.folder / THRESHOLD).is_file():
        yield _threshold(run, detector, experiment, bool(elsewhere))
    if config.anomalib_scores:
        fitted = evaluation.normalizers()
        again = normalized_record(fitted, evaluation) if fitted else {}
        same = _close(_flat(again), _flat(record.get("normalized") or {}), METRIC_TOLERANCE if elsewhere else 0)
        yield Check("normalized", same, "thresholds, ranges and F1 of scores made now")


def _wrong(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a record should hold and does not, in words."""
    return [f"{key} is {record.get(key)!r}, wanted {v!r}" for key, v in wanted.items() if record.get(key) != v]


def _scores(
    run: Run, samples: tuple[Sample, ...], evaluation: Evaluation, metrics: Mapping[str, Any], elsewhere: bool
) -> Iterator[Check]:
    """The lines of predictions.csv, against what they should be now and the metrics that were made of them."""
    try:
        rows = read_predictions(run.folder / PREDICTIONS) if samples else []
    except (OSError, ValueError) as problem:
        yield Check("scores", False, str(problem))
        return
    yield _predictions(rows, samples, evaluation.scores, elsewhere)
    derived = _image_metrics(rows, evaluation.classes)
    recorded = {name: metrics.get(name) for name in derived}
    yield Check("image metrics", derived == recorded, _largest(derived, recorded, f"of the scores in {PREDICTIONS}"))
    if any(row.aupimo is not None for row in rows):
        yield _aupimo(rows, evaluation.aupimo, METRIC_TOLERANCE if elsewhere else 0)


def _image_metrics(rows: Sequence[PredictionRow], classes: Iterable[str]) -> dict[str, float | None]:
    """The image metrics of the lines of a predictions.csv, class by class where there are several."""

    def of(some: Sequence[PredictionRow]) -> Report:
        scores = np.array([row.score for row in some], np.float32)
        return image_metrics(np.array([row.anomalous for row in some], bool), scores)

    reports = {name: of([row for row in rows if row.class_name == name]) for name in classes}
    whole = mean_over_classes(list(reports.values())) if reports else of(rows)
    return flat_metrics(whole.defined(), {name: report.defined() for name, report in reports.items()})


def _threshold(run: Run, detector: Detector, experiment: Experiment, elsewhere: bool) -> Check:
    """The scores of the normal images that the run's settings name; those of `test.py --calibrate` are elsewhere."""
    try:
        recorded, normals = run.threshold(), experiment.normals
        if recorded is None:
            return Check(THRESHOLD, False, "belongs to another checkpoint")
        if normals is None or normals.digest(experiment.config.workers) != recorded.data:
            return Check(THRESHOLD, None, "its normal images are not those that the run's settings name")
        settings = CalibrationSettings(recorded.false_alarm, recorded.pixel_rule)
        again = calibrate(detector, normals, settings, recorded.checkpoint_sha256)
    except (OSError, ValueError) as problem:
        return Check(THRESHOLD, False, str(problem))
    spread = max(recorded.scores) - min(recorded.scores)
    tolerance = SCORE_TOLERANCE * spread if elsewhere else 0
    pairs = zip((*again.scores, again.pixel), (*recorded.scores, recorded.pixel), strict=True)
    same = again.k == recorded.k and all(abs(now - then) <= tolerance for now, then in pairs)
    return Check(THRESHOLD, same, f"{recorded.described}, scored now")


def _predictions(
    rows: Sequence[PredictionRow], samples: tuple[Sample, ...], scores: np.ndarray, elsewhere: bool
) -> Check:
    """The lines of predictions.csv against the images and scores of now."""
    listed = [(row.path.name, row.anomalous, row.class_name) for row in rows]
    if listed != [(sample.image.name, sample.anomalous, sample.class_name) for sample in samples]:
        return Check("scores", False, f"{PREDICTIONS} does not list the {len(samples)} test images with their labels")
    recorded = np.array([row.score for row in rows], np.float32)
    if not len(recorded):
        return Check("scores", None, "no test images")
    largest = float(np.abs(recorded - scores).max())
    spread = float(recorded.max() - recorded.min()) or 1.0
    same = largest <= SCORE_TOLERANCE * spread if elsewhere else largest == 0
    return Check(
        "scores", same, f"{len(rows)} made now; the largest difference is {largest / spread:.1g} of their range"
    )


def _aupimo(rows: Sequence[PredictionRow], now: np.ndarray | None, tolerance: float) -> Check:
    """The column of predictions.csv against AUPIMO of each image as it is now."""
    absent = np.full(len(rows), np.nan) if now is None else now
    values = [None if math.isnan(value) else float(f"{value:.9g}") for value in absent.tolist()]
    pairs = [(row.aupimo, value) for row, value in zip(rows, values, strict=False)]
    close = (a == b or (a is not None and b is not None and abs(a - b) <= tolerance) for a, b in pairs)
    same = len(rows) == len(values) and all(close)
    return Check("AUPIMO of each image", same, f"{len(values) - values.count(None)} images, of maps made now")


def _close(now: Mapping[str, Any], recorded: Mapping[str, Any], tolerance: float) -> bool:
    """Whether two records have the same names and values; numbers may differ by `tolerance`, relative above 1."""
    if now.keys() != recorded.keys():
        return False
    for name, value in now.items():
        other = recorded[name]
        if isinstance(value, float) and isinstance(other, float | int) and not isinstance(other, bool):
            if not math.isclose(value, other, rel_tol=tolerance, abs_tol=tolerance):
                return False
        elif value != other:
            return False
    return True


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _largest(now: Mapping[str, float | None], recorded: Mapping[str, Any], what: str) -> str:
    """The metric that differs most, in words."""
    gaps = {
        name: abs(value - recorded[name]) if None not in (value, recorded.get(name)) else math.inf
        for name, value in now.items()
        if value != recorded.get(name)
    }
    if not gaps:
        return f"equal to those {what}"
    name = max(gaps, key=lambda name: gaps[name])
    return f"{name} is {recorded.get(name)} in {METRICS}, {now[name]} {what}"
