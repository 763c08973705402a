"""The results of finished runs: the metrics.json files under some folders, validated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run_files import CONFIG, METRICS
from run_files.checks import read_metrics

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
    """The content of every metrics.json under the folders, at any depth, sorted by path within each folder.

    Raises FileNotFoundError for a missing folder, and ValueError, naming the file, for an invalid metrics.json and for
    two that hold the same run.
    """
    places: dict[tuple[Any, ...], Path] = {}
    results = []
    for path in _find(roots, METRICS):
        result = read_metrics(path)
        key = (result["benchmark"], run_name(result), result["class_name"], result["seed"])
        if key in places:
            run = " ".join(map(str, key))
            raise ValueError(f"{places[key]} and {path} hold the same run, {run}: leave one of them out")
        places[key] = path
        results.append(result)
    return results


def unfinished(roots: Sequence[Path]) -> list[Path]:
    """The run folders that have a config.json but no metrics.json. Raises FileNotFoundError as `collect`."""
    return [path.parent for path in _find(roots, CONFIG) if not path.with_name(METRICS).is_file()]


def run_name(result: Result) -> str:
    """The name of a run: --name, or else its variant."""
    return result.get("name") or result["variant"]


def _find(roots: Sequence[Path], name: str) -> list[Path]:
    found: dict[Path, Path] = {}  # by resolved path, so each file counts once
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give run folders, or folders that contain some")
        for path in sorted(path for path in root.rglob(name) if path.is_file()):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def one_line(metrics: Mapping[str, float]) -> str:
    """The defined metrics in one line, with their titles."""
    return ", ".join(f"{METRIC_TITLES[name]} {value:.4f}" for name, value in metrics.items() if not math.isnan(value))
