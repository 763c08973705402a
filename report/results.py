"""The results of finished runs: the metrics.json files under some folders, validated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset import UNIFIED
from run_files import CONFIG, METRICS, Run
from utils import printable, walk_folders

Result = dict[str, Any]  # the content of one metrics.json; of a run over several classes its part of one class

METRIC_TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1max": "image F1-max",
    "sample_auroc": "sample AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "aupro": "AUPRO",
    "aupro_0.05": "AUPRO 0.05",
    "aupimo": "AUPIMO",
    "aupro_per_image": "AUPRO per image",
}
# What a threshold from normal images does on the test set; F1-max chooses its own on that very set.
DECISION_TITLES = {
    "image_f1": "image F1",
    "seg_f1": "SegF1",
    "false_alarm_rate": "false alarms",
    "miss_rate": "missed",
}
# Metrics that runs of earlier versions, or some runs, do not record: tables have them where one of their runs does.
NOT_IN_ALL_RUNS = frozenset({"aupro_0.05", "aupimo", "sample_auroc"})


def collect(roots: Sequence[Path]) -> list[Result]:
    """The results of every finished run under the folders. Order and errors as in `collect_runs`."""
    return [result for _, result in collect_runs(roots)]


def collect_runs(roots: Sequence[Path]) -> list[tuple[Path, Result]]:
    """(folder, result) of every finished run under the folders, at any depth, sorted by path within each folder.

    A run over several classes has a result for each, see `split_classes`. A result has as `decisions` what the run's
    threshold, if it has one, does on its test images (DECISION_TITLES). Links are followed (`walk_folders`). Raises
    FileNotFoundError for a missing folder, OSError for one that cannot be read, and ValueError, naming the file, for an
    invalid metrics.json and for two that hold the same run.
    """
    places: dict[tuple[Any, ...], Path] = {}
    results = []
    for path in find_files(roots, METRICS):
        folder = Run(path.parent)
        if not folder.finished:
            continue
        result = folder.read(METRICS)
        if decisions := folder.decisions():
            result["decisions"] = decisions
        key = (result["benchmark"], run_name(result), result["class_name"], result["seed"])
        if key in places:
            run = printable(" ".join(map(str, key)))
            raise ValueError(f"{places[key]} and {path} hold the same run, {run}: leave one of them out")
        places[key] = path
        results += [(path.parent, one) for one in split_classes(result)]
    return results


def split_classes(result: Result) -> list[Result]:
    """A metrics.json -> the result of each of its classes, marked as `unified`; the same where it is of one class.

    The time of the one model is divided evenly among its classes. An oracle epoch, which is chosen by their mean, is
    none of a class. Without test images there is a single result, without metrics.
    """
    classes = result.get("classes")
    if not classes:
        return [result | ({"unified": True} if result["class_name"] == UNIFIED else {})]
    shared = {name: value for name, value in result.items() if name not in ("classes", "oracle")}
    shared |= {name: result[name] / len(classes) for name in ("train_seconds", "score_seconds") if name in result}
    shared |= {"unified": True, "oracle": {}}
    by_class = shared.pop("decisions", {}).get("classes", {})
    decisions = {name: {"decisions": by_class[name]} for name in classes if name in by_class}
    return [{**shared, **own, **decisions.get(name, {}), "class_name": name} for name, own in classes.items()]


def flat_metrics(metrics: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics by name, then those of each class as `class metric`."""
    return dict(metrics) | {f"{name} {metric}": v for name, own in classes.items() for metric, v in own.items()}


def tabulated(results: Iterable[Result]) -> list[str]:
    """The metrics that a table over these runs has, in order: without those that none of them records."""
    found = {name for result in results for name in result["metrics"]}
    return [name for name in METRIC_TITLES if name not in NOT_IN_ALL_RUNS or name in found]


def as_recorded(metrics: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that were made now, as `flat_metrics`, without those that an earlier version did not record."""

    def is_later(name: str) -> bool:
        return name.rpartition(" ")[2] in NOT_IN_ALL_RUNS and name not in recorded

    return {name: value for name, value in metrics.items() if not is_later(name)}


def recorded_metrics(result: Result) -> dict[str, Any]:
    """All metrics of a metrics.json, as `flat_metrics`."""
    return flat_metrics(result["metrics"], {name: own["metrics"] for name, own in result.get("classes", {}).items()})


def unfinished(roots: Sequence[Path]) -> list[Path]:
    """The folders of runs that have begun and are not finished. Raises as `collect` where folders cannot be read."""
    return [path.parent for path in find_files(roots, CONFIG) if not Run(path.parent).finished]


def finished_runs(roots: Sequence[Path]) -> list[Path]:
    """The run folders that have a metrics.json, as `collect` finds them."""
    return [path.parent for path in find_files(roots, METRICS)]


def run_name(result: Result) -> str:
    """The name of a run: --name, or else its variant; a result of one model over all classes says so."""
    name = result.get("name") or result["variant"]
    return unified_name(name) if result.get("unified") else name


def unified_name(name: str) -> str:
    """The name in tables of one model over all classes."""
    return f"{name}, {UNIFIED}"


def find_files(roots: Sequence[Path], name: str) -> list[Path]:
    """The files of this name under the folders, each once, sorted by path within each folder. Raises as `collect`."""
    found: dict[Path, Path] = {}  # by resolved path, so each file counts once
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give run folders, or folders that contain some")
        try:
            paths = [folder / name for folder in walk_folders(root) if (folder / name).is_file()]
        except OSError as problem:
            raise type(problem)(
                f"{problem.filename}: cannot be read ({problem.strerror}), so runs in it would be missing: "
                "check its permissions"
            ) from None
        for path in sorted(paths):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def one_line(metrics: Mapping[str, float]) -> str:
    """The defined metrics in one line, with their titles."""
    return ", ".join(f"{METRIC_TITLES[name]} {value:.4f}" for name, value in metrics.items() if not math.isnan(value))
