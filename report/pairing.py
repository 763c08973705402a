"""Which finished runs are compared with which: sides, and the classes and seeds that two of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset import BENCHMARKS
from report.rendering import count
from report.results import Result, collect_runs
from report.tables import collect_facts, differing_settings, group_runs
from run_files import CONFIG, Run
from run_files.kinds import is_table
from utils import printable

Place = tuple[str, int]  # class and seed
FinishedRun = tuple[Path, Result]  # folder and metrics.json


@dataclass(frozen=True)
class Side:
    """The runs of one method on one benchmark; `label` is their name, or their folder where two have one name."""

    label: str
    benchmark: str
    runs: Mapping[Place, FinishedRun]


@dataclass(frozen=True)
class Pairing:
    """Two sides on the same test images: {class: the seeds that both have}, and notes on what that leaves out."""

    first: Side
    second: Side
    seeds: Mapping[str, Sequence[int]]
    notes: Sequence[str]

    def runs(self, class_name: str) -> tuple[list[FinishedRun], list[FinishedRun]]:
        """The runs of both sides on a class, seed by seed."""
        first, second = (
            [s.runs[class_name, seed] for seed in self.seeds[class_name]] for s in (self.first, self.second)
        )
        return first, second


def sides_of(runs: Sequence[FinishedRun]) -> list[Side]:
    """A side for each benchmark and name of runs, in order of first occurrence."""
    folders = {id(result): folder for folder, result in runs}
    return [
        Side(name, benchmark, {(r["class_name"], r["seed"]): (folders[id(r)], r) for r in results})
        for (benchmark, name), results in group_runs(result for _, result in runs).items()
    ]


def sides_below(roots: Sequence[Path]) -> list[Side]:
    """The sides below some folders, in order: the runs of each benchmark and name below each of them.

    Raises as `collect_runs`, and ValueError for a folder without finished runs or given twice.
    """
    resolved = [root.resolve() for root in roots]
    found = []
    for root, place in zip(roots, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ValueError(f"{printable(root)}: given twice; every folder is one side of the comparison")
        runs = collect_runs([root])
        if not runs:
            raise ValueError(f"no finished run under {printable(root)}: a finished run has a metrics.json")
        found += [(root, side) for side in sides_of(runs)]
    keys = [(side.benchmark, side.label) for _, side in found]
    return [
        side if keys.count((side.benchmark, side.label)) == 1 else replace(side, label=str(root))
        for root, side in found
    ]


def by_benchmark(sides: Sequence[Side]) -> dict[str, list[Side]]:
    """{benchmark: its sides}. Raises ValueError where none has two."""
    found: dict[str, list[Side]] = {}
    for side in sides:
        found.setdefault(side.benchmark, []).append(side)
    if all(len(own) < 2 for own in found.values()):
        listed = ", ".join(f"{side.label} on {side.benchmark}" for side in sides)
        raise ValueError(f"comparing needs two methods on one benchmark: found only {printable(listed)}")
    return found


def pair(first: Side, second: Side) -> Pairing:
    """Pair the runs of two sides by class and seed.

    Raises ValueError where they share none, and where two runs of a class have other test images.
    """
    shared = first.runs.keys() & second.runs.keys()
    names = f"{printable(first.label)} and {printable(second.label)}"
    if not shared:
        have = " and ".join(_listed(side.runs) for side in (first, second))
        raise ValueError(f"{names} have no class and seed in common, so nothing can be paired: found {have}")
    seeds: dict[str, list[int]] = {}
    for class_name, seed in sorted(shared):
        seeds.setdefault(class_name, []).append(seed)
    seeds = {class_name: seeds[class_name] for class_name in in_order(first.benchmark, seeds)}
    notes = []
    for side, other in ((first, second), (second, first)):
        if alone := side.runs.keys() - shared:
            runs = {place: side.runs[place] for place in alone}
            notes.append(f"left out, since only {side.label} has them and {other.label} has not: {_listed(runs)}")
    pairing = Pairing(first, second, seeds, notes)
    for class_name in seeds:
        (folder, _), *others = [run for side in pairing.runs(class_name) for run in side]
        for other_folder, _ in others:
            check_same_images(folder, other_folder, class_name)
    every = [run[1] for class_name in seeds for side in pairing.runs(class_name) for run in side]
    return Pairing(first, second, seeds, [*notes, *differing_settings(collect_facts(every), "the runs", {"variant"})])


def in_order(benchmark: str, classes: Mapping[str, Any]) -> list[str]:
    """The classes in the benchmark's order, others behind them by name."""
    known = BENCHMARKS[benchmark].classes if benchmark in BENCHMARKS else ()
    return [name for name in known if name in classes] + sorted(set(classes) - set(known))


def check_same_images(first: Path, second: Path, class_name: str) -> None:
    """Raises ValueError, by what differs, unless two runs were scored on the same test images, labels and masks.

    Of a run over several classes those of this class count.
    """
    digests = [_test_digest(folder) for folder in (first, second)]
    if digests[0] == digests[1]:
        return
    contents = [
        _test_contents(folder, class_name, digest) for folder, digest in zip((first, second), digests, strict=True)
    ]
    if contents[0] == contents[1] != []:
        return
    where = f"{printable(class_name)}: {printable(first)} and {printable(second)} have other test images"
    try:
        records = [Run(folder).data() for folder in (first, second)]
        lines = [line for line in records[0].differences(records[1], "in the second") if line.startswith("test:")]
    except (OSError, ValueError):
        lines = []
    counts = " and ".join(str(digest["images"]) for digest in digests)
    raise ValueError(f"{where}, so nothing can be paired: {lines[0] if lines else f'{counts} images'}")


def _test_contents(folder: Path, class_name: str, digest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Label and hashes of a class's test images in order; empty where data.csv is missing or not the run's own."""
    try:
        record = Run(folder).data()
    except (OSError, ValueError):
        return []
    rows = [row for row in record.rows if row.split == "test" and row.class_name in ("", class_name)]
    same = record.digests().get("test") == digest
    return [(row.defect, row.anomalous, row.sha256, row.mask_sha256) for row in rows] if same else []


def _test_digest(folder: Path) -> dict[str, Any]:
    """Count and hash of the test images, as config.json records them. Raises FileNotFoundError, ValueError."""
    data = Run(folder).read(CONFIG)["identity"].get("data")
    if not is_table(data) or not is_table(data.get("test")) or "images" not in data["test"]:
        raise ValueError(
            f"{printable(folder)}: its test images are not recorded, so it is not known whether others have the same; "
            "--fresh runs it again"
        )
    return data["test"]


def _listed(runs: Mapping[Place, object]) -> str:
    """bottle (seeds 0, 1); the first four classes, and how many more."""
    seeds: dict[str, list[int]] = {}
    for class_name, seed in sorted(runs):
        seeds.setdefault(class_name, []).append(seed)
    parts = [
        f"{printable(name)} (seed{'s' * (len(own) > 1)} {', '.join(map(str, own))})" for name, own in seeds.items()
    ]
    more = len(parts) - 4
    return ", ".join(parts[:4]) + (f" and {count(more, 'class')} more" if more > 0 else "")
