"""Whether a run's file is what this project wrote, before anything is made of it.

One function for each kind of file. What is wrong is a ValueError of one line: file, field, what was wanted and found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config
from model.checkpoints import check_integrity, misfits_of
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
    is_table,
    is_whole,
    short,
    table,
)
from run_files.progress import Progress
from scoring.anomaly_map import MapStatistics
from scoring.normalization import Normalizer
from scoring.thresholds import Threshold
from utils import read_json

REMEDY = "put back the file as it was written, or run main.py with --fresh to train this run again"
ADAM = ("exp_avg", "exp_avg_sq")


ENVIRONMENT = {"revision": TEXT, "versions": TEXTS, "hardware": TEXT}
CONFIG_FIELDS = {"config": TABLE, "identity": TABLE}
METRICS_FIELDS = {"benchmark": TEXT, "variant": TEXT, "class_name": TEXT, "seed": WHOLE, "metrics": METRIC_TABLE}
METRICS_FIELDS |= {"oracle": TABLE}
FURTHER_FIELDS = {
    "name": TEXT.or_null(),
    "net": TEXT,
    "image_size": POSITIVE,
    "batch_size": POSITIVE,
    "epochs": COUNT,
    "epochs_trained": COUNT,
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
        for small, large in (("epochs_trained", "epochs"), ("n_anomalous", "n_test")):
            if small in record and large in record and record[small] > record[large]:
                raise ValueError(f"{small} is {record[small]}, more than {large}, {record[large]}")
        if record.get("normalized") is not None:
            _check_normalized(record["normalized"])
    return record


def _check_reasons(record: Mapping[str, Any]) -> None:
    """A metric is null where `reasons` says why, and nowhere else."""
    if "reasons" not in record:
        return
    metrics, reasons = record["metrics"], record["reasons"]
    for name in metrics:
        if (metrics[name] is None) != (name in reasons):
            found = "null without a reason" if metrics[name] is None else f"{metrics[name]} with a reason to be null"
            raise ValueError(f"metrics.{name} must be null where reasons.{name} says why, found {found}")


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
        Threshold.from_json(record)
    return record


# --- checkpoint.pt ---


def load_checkpoint(path: Path, scored: bool = False) -> dict[str, Any]:
    """A run's checkpoint.pt on the CPU, whole and well formed: its checksums hold, its tensors are finite.

    `scored`: it is that of a finished run, which holds `map_statistics` and `color_scale`. Names and shapes are checked
    where the state is loaded. Raises OSError, and ValueError naming file and field.
    """
    try:
        check_integrity(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as problem:  # the unpickler raises many kinds
        reason = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise ValueError(f"{path} is damaged ({reason}): {REMEDY}") from None
    with named(path):
        state = table(state, "the content")
        wanted = ("trained", "progress", *(("map_statistics", "color_scale") if scored else ()))
        for name in wanted:
            if name not in state:
                raise ValueError(f"{name} is missing; the file must hold {', '.join(wanted)}")
        _check_trained(state["trained"])
        _check_progress(state["progress"])
        _check_map_statistics(state.get("map_statistics"))
        _check_color_scale(state.get("color_scale"))
    return state


def _check_trained(trained: Any) -> None:
    for part, tensors in table(trained, "trained").items():
        if not is_table(tensors, lambda value: isinstance(value, Tensor)):
            raise ValueError(f"trained.{part} must be a table of tensors by name, found {short(tensors)}")


def _check_progress(progress: Any) -> None:
    """Progress as Progress(**progress) takes it: epochs 1, 2, ... each with its row of finite numbers."""
    known = {f.name for f in dataclasses.fields(Progress)}
    if unknown := sorted(set(table(progress, "progress")) - known):
        raise ValueError(f"progress.{unknown[0]} is unknown to this version")
    rows = Kind("a list of tables of numbers", lambda value: isinstance(value, list) and all(map(_is_row, value)))
    check(progress, {"epoch": COUNT, "history": rows, "evaluations": rows, "seconds": SECONDS}, place="progress.")
    epochs = [row["epoch"] for row in progress["history"]]
    if epochs != list(range(1, progress["epoch"] + 1)) or not all(map(_is_finite_row, progress["history"])):
        raise ValueError(f"progress.history must have a finite row for each of the {progress['epoch']} epochs")
    for row in progress["evaluations"]:
        metrics = [value for name, value in row.items() if name != "epoch" and not math.isnan(value)]
        if row["epoch"] > progress["epoch"] or not all(map(FRACTION.fits, metrics)):
            raise ValueError(f"progress.evaluations must hold metrics in 0..1 of epochs trained, found {short(row)}")


def _is_row(row: Any) -> bool:
    return is_table(row, lambda value: isinstance(value, float) or is_whole(value)) and COUNT.fits(row.get("epoch"))


def _is_finite_row(row: Mapping[str, Any]) -> bool:
    return all(map(is_number, row.values()))


def _check_map_statistics(statistics: Any) -> None:
    if statistics is None:
        return
    names = [f.name for f in dataclasses.fields(MapStatistics)]
    if not is_table(statistics, lambda value: isinstance(value, Tensor)) or set(statistics) != set(names):
        raise ValueError(f"map_statistics must be None or the tensors {', '.join(names)}, found {short(statistics)}")
    shape = statistics["mean"].shape
    for name, tensor in statistics.items():
        if misfits := misfits_of(tensor, torch.empty(shape if len(shape) == 3 else (1, 1, 1)), negative=name == "mean"):
            raise ValueError(f"map_statistics.{name} must be finite, float32, (levels, S, S): {misfits}")


def _check_color_scale(scale: Any) -> None:
    if scale is not None and not (
        isinstance(scale, (tuple, list)) and len(scale) == 2 and all(map(is_number, scale)) and scale[0] < scale[1]
    ):
        raise ValueError(f"color_scale must be None or two finite numbers, the lower one first, found {short(scale)}")


def check_for_config(state: Mapping[str, Any], config: Config) -> None:
    """Raises ValueError where a finished run's map statistics are not those that its settings need."""
    found, mode = state["map_statistics"], config.scoring.anomaly_map
    if (found is not None) != (mode == "standardized"):
        raise ValueError(f"map_statistics must be there with the anomaly map standardized only; found the map {mode}")
    shape = (len(config.scoring.levels), config.image_size, config.image_size)
    if found is not None and tuple(found["mean"].shape) != shape:
        raise ValueError(f"map_statistics must be {shape}, found {tuple(found['mean'].shape)}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load a resume point's optimizer state. Raises ValueError where it is not a state of this very optimizer.

    How it computes (fused, ...) stays its own: that depends on the device.
    """
    wanted = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    check(table(state, "optimizer"), {"state": Kind("a table", lambda v: isinstance(v, Mapping))}, place="optimizer.")
    groups = state.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(wanted) or not all(map(is_table, groups)):
        raise ValueError(f"optimizer.param_groups must be a list of {len(wanted)} tables, found {short(groups)}")
    for number, (found, own) in enumerate(zip(groups, wanted, strict=True)):
        for name in ("params", "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
            if name not in found or not _is_same(found[name], own[name]):
                place = f"optimizer.param_groups[{number}].{name}"
                raise ValueError(f"{place} must be {short(own[name])}, found {short(found.get(name))}")
    for index, moments in state["state"].items():
        place = f"optimizer.state[{index!r}]"
        if not is_whole(index, 0) or index >= len(parameters):
            raise ValueError(f"{place} must be one of {len(parameters)} parameters")
        if not is_table(moments, lambda value: isinstance(value, Tensor)) or set(moments) != {"step", *ADAM}:
            raise ValueError(f"{place} must be the tensors step, {', '.join(ADAM)}, found {short(moments)}")
        for name, tensor in moments.items():
            like = torch.empty((), device="meta") if name == "step" else parameters[index]
            if misfits := misfits_of(tensor, like, negative=name == "exp_avg"):
                raise ValueError(f"{place}.{name}: {misfits}")
    optimizer.load_state_dict({"state": state["state"], "param_groups": wanted})


def _is_same(found: Any, own: Any) -> bool:
    """Equal, and no flag for a number; a tuple may have become a list."""
    if isinstance(own, (tuple, list)):
        return isinstance(found, (tuple, list)) and len(found) == len(own) and all(map(_is_same, found, own))
    return isinstance(found, bool) == isinstance(own, bool) and isinstance(found, (int, float)) and found == own
