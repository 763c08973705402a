"""Whether a run's checkpoint.pt is what this project wrote, before anything is made of it.

What is wrong is a ValueError of one line: file, field, what was wanted and found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config
from model.averaging import WeightAverage
from model.checkpoints import check_integrity, misfits_of
from model.distiller import Distiller
from run_files.checks import REMEDY, named
from run_files.kinds import COUNT, FRACTION, SECONDS, Kind, check, is_number, is_table, is_whole, short, table
from run_files.progress import Progress
from scoring.anomaly_map import MapStatistics

ADAM = ("exp_avg", "exp_avg_sq")


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
        for name in ("trained", "raw"):
            _check_trained(state.get(name, {}), name)
        _check_progress(state["progress"])
        _check_map_statistics(state.get("map_statistics"))
        _check_color_scale(state.get("color_scale"))
    return state


def _check_trained(trained: Any, name: str) -> None:
    for part, tensors in table(trained, name).items():
        if not is_table(tensors, lambda value: isinstance(value, Tensor)):
            raise ValueError(f"{name}.{part} must be a table of tensors by name, found {short(tensors)}")


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


def training_state(
    distiller: Distiller, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> dict[str, Any]:
    """What a training goes on from: `trained`, the result so far, and `optimizer`.

    With an average of the weights the result is that, and `raw` has the weights themselves.
    """
    raw = distiller.trained_state()
    trained = {"trained": raw} if average is None else {"trained": average.distiller.trained_state(), "raw": raw}
    return {**trained, "optimizer": optimizer.state_dict()}


def load_training_state(
    state: Mapping[str, Any],
    distiller: Distiller,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> None:
    """Load what `training_state` gave, or of a finished run at least `trained`. Raises ValueError for what misfits."""
    if average is not None:
        average.distiller.load_trained_state(state["trained"])
    if "optimizer" in state:
        load_optimizer(optimizer, state["optimizer"])
        if average is not None and "raw" not in state:
            raise ValueError("raw is missing: with --average the file must hold the weights before averaging, too")
    distiller.load_trained_state(state["trained" if average is None else "raw" if "raw" in state else "trained"])


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
