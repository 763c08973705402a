"""The results of finished runs: the metrics.json files under some folders, validated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run_files import CONFIG, METRICS, Run
from utils import printable, walk_folders

Result = dict[str, Any]  # the content of one metrics.json

METRIC_TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "aupro": "AUPRO",
    "aupro_per_image": "AUPRO per image",
}


def collect(roots: Sequence[Path]) -> list[Result]:
    """The metrics.json of every finished run under the folders. Order and errors as in `collect_runs`."""
    return [result for _, result in collect_runs(roots)]


def collect_runs(roots: Sequence[Path]) -> list[tuple[Path, Result]]:
    """(folder, metrics.json) of every finished run under the folders, at any depth, sorted by path within each folder.

    Links are followed (`walk_folders`). Raises FileNotFoundError for a missing folder, OSError for one that cannot be
    read, and ValueError, naming the file, for an invalid metrics.json and for two that hold the same run.
    """
    places: dict[tuple[Any, ...], Path] = {}
    results = []
    for path in find_files(roots, METRICS):
        folder = Run(path.parent)
        if not folder.finished:
            continue
        result = folder.read(METRICS)
        key = (result["benchmark"], run_name(result), result["class_name"], result["seed"])
        if key in places:
            run = printable(" ".join(map(str, key)))
            raise ValueError(f"{places[key]} and {path} hold the same run, {run}: leave one of them out")
        places[key] = path
        results.append((path.parent, result))
    return results


def unfinished(roots: Sequence[Path]) -> list[Path]:
    """The folders of runs that have begun and are not finished. Raises as `collect` where folders cannot be read."""
    return [path.parent for path in find_files(roots, CONFIG) if not Run(path.parent).finished]


def finished_runs(roots: Sequence[Path]) -> list[Path]:
    """The run folders that have a metrics.json, as `collect` finds them."""
    return [path.parent for path in find_files(roots, METRICS)]


def run_name(result: Result) -> str:
    """The name of a run: --name, or else its variant."""
    return result.get("name") or result["variant"]


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
