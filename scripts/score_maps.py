"""Metrics of anomaly maps saved by any method: python -m scripts.score_maps FILE.npz [--fpr_limit 0.3 0.05 1] [--json]

FILE.npz holds `maps` and `masks`, (N, H, W) each, or map_0, mask_0, map_1, ... of any sizes. It may hold `labels` (N,)
of 0 and 1; without them an image is anomalous if its mask has a defect pixel. The image score is the map's maximum.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile

import numpy as np

from commandline import Parser, exit_code
from scoring.metrics import LIMIT, compute_metrics, mean_over_classes


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    parser = Parser(
        prog="scripts.score_maps",
        description="AUROC, AP and F1-max of images and pixels, and AUPRO, of anomaly maps in a NumPy .npz file. "
        "The image score is the maximum of the map.",
        epilog="FILE holds `maps` and `masks` (N, H, W), or map_0, mask_0, map_1, ... (H, W) of any sizes. Masks are "
        "0 and 1, 0 and 255, or bool. `labels` (N,) of 0 (normal) and 1 (anomalous) may be given; else an image is "
        "anomalous if its mask has a defect pixel. With `classes` (N,), their names, the metrics are means over the "
        "classes, each scored by itself. Undefined metrics are n/a with a reason, or null with --json.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the .npz file")
    parser.add_argument(
        "--fpr_limit",
        metavar="LIMIT",
        nargs="+",
        type=float,
        default=[LIMIT],
        help=f"upper limits of the false positive rate of AUPRO, above 0 and up to 1; {LIMIT:g} is always reported, as "
        f"aupro, and others as aupro_LIMIT (default: {LIMIT:g} only)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, metrics unrounded")
    given = parser.parse_args(argv)
    for limit in given.fpr_limit:
        if not 0 < limit <= 1:
            raise ValueError(f"--fpr_limit {limit:g}: must be above 0 and at most 1")

    maps, masks, labels = read_maps(given.file)
    scores = [anomaly_map.max() if anomaly_map.size else math.nan for anomaly_map in maps]
    reports = [
        compute_metrics(
            labels[own],
            [scores[i] for i in own],
            [maps[i] for i in own],
            None if masks is None else [masks[i] for i in own],
            given.fpr_limit,
            per_image=False,
        )
        for own in read_classes(given.file, len(maps))
    ]
    report = reports[0] if len(reports) == 1 else mean_over_classes(reports)
    if given.json:
        print(json.dumps(report.defined()))
        return 0
    width = max(map(len, report.values))
    for name, value in report.values.items():
        print(f"{name:<{width}}  " + (f"n/a ({report.reasons[name]})" if math.isnan(value) else f"{value:.6f}"))
    return 0


def read_maps(path: Path) -> tuple[list[np.ndarray], list[np.ndarray] | None, np.ndarray]:
    """An .npz file -> maps, masks (None without any), labels. Raises ValueError, FileNotFoundError naming the file."""
    arrays = read_arrays(path)
    maps, masks = collect_arrays(path, arrays, "map"), collect_arrays(path, arrays, "mask")
    if not maps:
        raise ValueError(
            f"{path}: no maps: it must hold `maps` (N, H, W), or map_0, map_1, ...; found {', '.join(arrays)}"
        )
    if masks and masks.keys() != maps.keys():
        unpaired = min(masks.keys() ^ maps.keys())
        kind, other = ("map", "mask") if unpaired in maps else ("mask", "map")
        raise ValueError(f"{path}: {len(maps)} maps but {len(masks)} masks: {kind} {unpaired} has no {other}")
    if "labels" in arrays:
        labels = arrays["labels"]
        if labels.shape != (len(maps),):
            raise ValueError(f"{path}: labels must be ({len(maps)},), one per map: found {labels.shape}")
    elif masks:
        labels = np.array([np.any(masks[i]) for i in maps])
    else:
        raise ValueError(f"{path}: neither masks nor labels: one of them must say which images are anomalous")
    return list(maps.values()), [masks[i] for i in maps] if masks else None, labels


def read_classes(path: Path, count: int) -> list[np.ndarray]:
    """The numbers of the images of each class; all in one without `classes`. Raises ValueError naming the file."""
    classes = read_arrays(path).get("classes")
    if classes is None:
        return [np.arange(count)]
    if classes.shape != (count,):
        raise ValueError(f"{path}: classes must be ({count},), one per map: found {classes.shape}")
    return [np.flatnonzero(classes == name) for name in dict.fromkeys(classes.tolist())]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name. Raises ValueError, FileNotFoundError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file: numpy.savez writes one")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as problem:  # a damaged file can raise any error in NumPy
        why = (
            "arrays of Python objects are not read: save numbers" if "pickle" in str(problem) else "a damaged .npz file"
        )
        raise ValueError(f"{path}: {why}") from None


def collect_arrays(path: Path, arrays: dict[str, np.ndarray], kind: str) -> dict[int, np.ndarray]:
    """{number: array} from `maps` or map_0, map_1, ..., with `kind` map or mask; empty if there are none."""
    names = [name for name in arrays if re.fullmatch(rf"{kind}_\d+", name)]
    single = {int(name.removeprefix(f"{kind}_")): name for name in names}
    if f"{kind}s" in arrays:
        stack = arrays[f"{kind}s"]
        if single:
            raise ValueError(f"{path}: both {kind}s and {kind}_{min(single)}: give one or the other")
        if stack.ndim != 3:
            raise ValueError(f"{path}: {kind}s must be (N, H, W): found {stack.shape}; others go as {kind}_0, {kind}_1")
        return dict(enumerate(stack))
    for i in range(len(names)):
        if i not in single:
            raise ValueError(f"{path}: {kind}_{i} is missing: numbers start at 0, without gaps or repeats")
    return {i: arrays[single[i]] for i in sorted(single)}


if __name__ == "__main__":
    sys.exit(exit_code(main))
