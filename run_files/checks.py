"""Whether a run's JSON file is what this project wrote, before anything is made of it; checkpoints.py has its tensors.

One function for each kind of file. What is wrong is a ValueError of one line: file, field, what was wanted and found.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config import Config
from run_files.kinds import (
    COUNT,
    FRACTION,
    METRIC,
    METRIC_TABLE,
    NUMBER,
    POSITIVE,
    SECONDS,
    TABLE,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    check,
    is_number,
    short,
    table,
)
from scoring.normalization import Normalizer
from scoring.thresholds import Threshold
from utils import read_json

REMEDY = "put back the file as it was written, or run main.py with --fresh to train this run again"


CLASS_FIELDS = {"metrics": METRIC_TABLE, "reasons": TEXTS, "n_train": COUNT, "n_test": COUNT, "n_anomalous": COUNT}
ENVIRONMENT = {"revision": TEXT, "versions": TEXTS, "hardware": TEXT}
CONFIG_FIELDS = {"config": TABLE, "identity": TABLE}
GROUP_FIELDS = {"metrics": METRIC_TABLE, "reasons": TEXTS, "n_test": COUNT, "n_anomalous": COUNT}
METRICS_FIELDS = {"benchmark": TEXT, "variant": TEXT, "class_name": TEXT, "seed": WHOLE, "metrics": METRIC_TABLE}
METRICS_FIELDS |= {"oracle": TABLE}
FURTHER_FIELDS = {
    "name": TEXT.or_null(),
    "net": TEXT,
    "image_size": POSITIVE,
    "batch_size": POSITIVE,
    "epochs": COUNT,
    "epochs_trained": COUNT,
    "steps": POSITIVE,
    "reasons": TEXTS,
    "train_seconds": SECONDS,
    "score_seconds": SECONDS,
    "teacher_weights": TEXT,
    "precision": TEXT,
    "n_train": COUNT,
    "n_held_out": COUNT,
    "n_calibration": COUNT,
    "n_test": COUNT,
    "n_anomalous": COUNT,
    "shots": POSITIVE,
    "tiles": FRACTION,
    "tile_overlap": FRACTION,
    "n_windows": COUNT,
    "map_size": TEXT,
    "classes": TABLE,
    "normalized": TABLE.or_null(),
    "scored_from": TEXT,
    "intervals": TABLE,
    "identity_sha256": TEXT,
    "checkpoint_sha256": TEXT,
    "predictions_sha256": TEXT.or_null(),
    **ENVIRONMENT,
}
THRESHOLD_FIELDS = {
    "value": NUMBER,
    "pixel": NUMBER,
    "pixel_rule": TEXT,
    "scores": Kind("a list of finite numbers", lambda value: isinstance(value, list) and all(map(is_number, value))),
    "k": POSITIVE,
    "source": TEXT,
    "checkpoint_sha256": TEXT,
}
DECISION_FIELDS = dict.fromkeys(("image_f1", "seg_f1", "false_alarm_rate", "miss_rate"), METRIC)
ORACLE_FIELDS = {"epoch": COUNT, "rule": TEXT, "metrics": METRIC_TABLE}


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """A ValueError raised inside becomes one line that begins with `path` and ends with what to do."""
    try:
        yield
    except ValueError as problem:
        text = "; ".join(str(problem).splitlines()).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {text}; {REMEDY}") from None


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.json, all its settings valid. Raises OSError, and ValueError naming file and field."""
    with named(path):
        record = table(read_json(path), "the content")
        check(record, CONFIG_FIELDS, ENVIRONMENT)
        weights = record["identity"].get("teacher_weights")
        if weights is not None and not TEXT.fits(weights):
            raise ValueError(f"identity.teacher_weights must be {TEXT.words}, found {short(weights)}")
        Config(**Config.from_json(record["config"]))
    return record


def read_metrics(path: Path) -> dict[str, Any]:
    """A run's metrics.json. Raises OSError, and ValueError naming file and field."""
    with named(path):
        record = table(read_json(path), "the content")
        check(record, METRICS_FIELDS, FURTHER_FIELDS)
        if record["oracle"]:
            check(record["oracle"], ORACLE_FIELDS, place="oracle.")
        _check_reasons(record)
        _check_groups(record)
        for name, own in record.get("classes", {}).items():
            check(table(own, f"classes.{name}"), CLASS_FIELDS, place=f"classes.{name}.")
            _check_reasons(own, f"classes.{name}.")
            _check_groups(own, f"classes.{name}.")
        for small, large in (("epochs_trained", "epochs"), ("n_anomalous", "n_test")):
            if small in record and large in record and record[small] > record[large]:
                raise ValueError(f"{small} is {record[small]}, more than {large}, {record[large]}")
        if record.get("normalized") is not None:
            _check_normalized(record["normalized"])
    return record


def _check_reasons(record: Mapping[str, Any], place: str = "") -> None:
    """A metric is null where `reasons` says why, and nowhere else."""
    if "reasons" not in record:
        return
    metrics, reasons = record["metrics"], record["reasons"]
    for name in metrics:
        if (metrics[name] is None) != (name in reasons):
            found = "null without a reason" if metrics[name] is None else f"{metrics[name]} with a reason to be null"
            raise ValueError(f"{place}metrics.{name} must be null where reasons.{name} says why, found {found}")


def _check_groups(record: Mapping[str, Any], place: str = "") -> None:
    """Of each kind of defect and each group metrics, reasons and counts; earlier versions recorded none."""
    for title, named in table(record.get("groups", {}), f"{place}groups").items():
        for name, own in table(named, f"{place}groups.{title}").items():
            where = f"{place}groups.{title}.{name}"
            check(table(own, where), GROUP_FIELDS, place=f"{where}.")
            _check_reasons(own, f"{where}.")


def _check_normalized(normalized: Mapping[str, Any]) -> None:
    """The normalizer of image scores is there; each has its numbers and no others. F1 is a metric."""
    names = [f.name for f in dataclasses.fields(Normalizer)]
    check(normalized, {"image": TABLE}, place="normalized.")
    for name, value in normalized.items():
        if isinstance(value, Mapping):
            check(value, dict.fromkeys(names, NUMBER), place=f"normalized.{name}.")
            if set(value) != set(names) or value["low"] > value["high"]:
                raise ValueError(f"normalized.{name} must be {', '.join(names)}, low <= high; found {short(value)}")
        elif not TEXT.fits(value) and not METRIC.fits(value):
            raise ValueError(f"normalized.{name} must be {METRIC.words}, found {short(value)}")


def read_threshold(path: Path) -> dict[str, Any]:
    """A run's threshold.json. Raises OSError, and ValueError naming file and field."""
    with named(path):
        record = table(read_json(path), "the content")
        check(record, THRESHOLD_FIELDS, {"false_alarm": FRACTION.or_null(), "data": TABLE, "test": TABLE})
        found = record.get("test", {})
        check(found, {}, DECISION_FIELDS | {"classes": TABLE}, place="test.")
        for name, own in found.get("classes", {}).items():
            check(table(own, f"test.classes.{name}"), {}, DECISION_FIELDS, place=f"test.classes.{name}.")
        Threshold.from_json(record)
    return record
