"""Tables over finished runs: a row per class and one for their mean, over seeds, with the published metrics.

All numbers are computed from metrics.json files. Metrics are fractions in 0..1. An undefined metric is None and is
never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from dataset import BENCHMARKS
from methods import VARIANTS
from report.published import NET, published
from report.results import DECISION_TITLES, METRIC_TITLES, NOT_IN_ALL_RUNS, Result, run_name, tabulated, unified_name
from scoring.modes import RESIZED

Values = dict[str, dict[int, float]]  # class -> seed -> metric

ALL = "all"  # shots of a run that is trained on every image
NONE = "none"  # tiles of a run whose images are one square each

EARLIER = "not recorded by some runs"

# These should be equal in all runs of a table; else the table has a warning.
SETTINGS = ("variant", "epochs", "net", "teacher_weights", "image_size", "tiles", "shots", "map_size", "revision")


@dataclass(frozen=True)
class Spread:
    """The mean over `classes` classes of their means over seeds, and the spread over seeds.

    `std` is the sample standard deviation (divided by n - 1) over the `n` seeds that all these classes have; None where
    n < 2. `mean` is None where no run has the metric.
    """

    mean: float | None
    std: float | None
    n: int
    classes: int


NO_SPREAD = Spread(None, None, 0, 0)


@dataclass(frozen=True)
class Published:
    """A published metric, the difference of ours to it, both as fractions, and its source."""

    value: float
    difference: float
    source: str


@dataclass(frozen=True)
class Row:
    """One class, or the mean over `classes` classes, with `n` seeds. The keys of the dicts are names of metrics.

    `metrics` has those that some run of the table records, `decisions` those of a threshold that some run has.
    """

    label: str
    n: int
    classes: int
    metrics: dict[str, Spread]
    published: dict[str, Published]
    oracle: dict[str, Spread]  # at one epoch of each run, chosen on the test set
    oracle_epochs: list[int]  # those epochs, each once, in order
    decisions: dict[str, Spread] = field(default_factory=dict)  # at the threshold from normal images

    def metric(self, name: str) -> Spread:
        """The metric; one without a mean where no run of the table records it."""
        return self.metrics.get(name, NO_SPREAD)


@dataclass(frozen=True)
class Table:
    """All runs of one benchmark and name: a row per class, and a mean row where there are several classes.

    Runs of one model over all classes have a table of their own.
    """

    benchmark: str
    name: str
    rows: list[Row]
    reasons: list[str]  # for metrics that are n/a
    warnings: list[str]
    facts: dict[str, Any]  # see `collect_facts`

    @property
    def variant(self) -> str:
        return "/".join(self.facts["variant"])

    @property
    def unified(self) -> bool:
        """Whether its runs are each one model over all classes."""
        return self.facts["unified"]

    @property
    def named_by_variant(self) -> bool:
        """Whether the runs have no --name, so that the variant's published metrics are theirs too."""
        return self.name == (unified_name(self.variant) if self.unified else self.variant)


def spread(values: Mapping[str, Mapping[int, float]]) -> Spread:
    """{class: {seed: metric}} -> the mean over classes of their means over seeds, and its spread over seeds.

    Classes without the metric are left out. The spread is that of the mean over classes of each seed, so it includes
    only the seeds that all classes have.
    """
    present = [by_seed for by_seed in values.values() if by_seed]
    if not present:
        return NO_SPREAD
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in present)))
    means = [fmean(by_seed[seed] for by_seed in present) for seed in seeds]
    mean = fmean(fmean(by_seed.values()) for by_seed in present)
    return Spread(mean, stdev(means) if len(means) > 1 else None, len(means), len(present))


def group_runs(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """{(benchmark, name): runs}, in order of first occurrence."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["benchmark"], run_name(result)), []).append(result)
    return groups


def class_order(benchmark: str, runs: Iterable[Result]) -> list[str]:
    """The classes of the runs in the benchmark's order, others behind them by name."""
    known = BENCHMARKS[benchmark].classes if benchmark in BENCHMARKS else ()
    found = {run["class_name"] for run in runs}
    return [name for name in known if name in found] + sorted(found - set(known))


def summarize(results: Iterable[Result]) -> list[Table]:
    """One table per benchmark and name of runs (--name, or else the variant), sorted."""
    return [_table(*key, runs) for key, runs in sorted(group_runs(results).items(), key=lambda item: item[0])]


def _table(benchmark: str, name: str, runs: list[Result]) -> Table:
    facts = collect_facts(runs)
    known = BENCHMARKS[benchmark].classes if benchmark in BENCHMARKS else ()
    found, classes = {run["class_name"] for run in runs}, class_order(benchmark, runs)
    metrics = tabulated(runs)
    rows = [make_row(c, [run for run in runs if run["class_name"] == c], metrics) for c in classes]
    if len(classes) > 1:
        rows.append(make_row("mean" if set(known) <= found else f"mean ({len(found)} of {len(known)})", runs, metrics))
    table = Table(
        benchmark, name, rows, _reasons(runs, classes, metrics), differing_settings(facts, "these runs"), facts
    )
    # a run with another name is an ablation: published metrics of the variant do not apply
    wanted = {"net": NET, "shots": ALL, "map_size": RESIZED, "tiles": NONE}
    as_published = all(facts[key] == [value] for key, value in wanted.items())
    if table.named_by_variant and as_published and not has_random_teacher(facts):
        for row in rows:
            _add_published(row, benchmark, name)
    return table


def collect_facts(runs: Sequence[Result]) -> dict[str, Any]:
    """The SETTINGS, hardware, versions, oracle_rules and seeds that occur, each as a sorted list.

    Also the number of `runs`, of which one model over all classes is one, whether some are such (`unified`), the total
    seconds, and whether all have the epochs of their class, or of the same steps (`own_epochs`).
    """
    facts: dict[str, Any] = {key: _distinct(run.get(key) for run in runs) for key in (*SETTINGS, "hardware")}
    facts["shots"] = _distinct(str(run.get("shots", ALL)) for run in runs)
    facts["map_size"] = _distinct(run.get("map_size", RESIZED) for run in runs)
    facts["tiles"] = _distinct(str(run.get("tiles", NONE)) for run in runs)
    # random teachers are named random:SEED, so they differ between seeds on purpose
    facts["teacher_weights"] = _distinct(re.sub(r"^random\b.*", "random", name) for name in facts["teacher_weights"])
    versions = [run.get("versions") or {} for run in runs]
    facts["versions"] = _distinct(", ".join(f"{name} {version}" for name, version in v.items()) for v in versions)
    facts["oracle_rules"] = _distinct(run["oracle"].get("rule") for run in runs)
    models = {(run_name(run), run.get("unified") or run["class_name"], run["seed"]) for run in runs}
    facts |= {"seeds": _distinct(run["seed"] for run in runs), "runs": len(models)}
    facts["unified"] = any(run.get("unified") for run in runs)
    by_steps = len({run.get("steps") for run in runs}) == 1 and "steps" in runs[0]
    facts["own_epochs"] = by_steps or all(run.get("epochs") == _epochs_of_class(run) for run in runs)
    return facts | {key: sum(run.get(key) or 0 for run in runs) for key in ("train_seconds", "score_seconds")}


def differing_settings(facts: Mapping[str, Any], what: str, aside: Iterable[str] = ()) -> list[str]:
    """A warning for each of SETTINGS, except those in `aside`, that has more than one value among the runs.

    Epochs may differ where the variant, or --steps, defines them by class and every run has those of its class.
    """
    left_out = {*aside, *(["epochs"] if facts["own_epochs"] else [])}
    keys = [key for key in SETTINGS if key not in left_out and len(facts[key]) > 1]
    return [f"{what} differ in {key.replace('_', ' ')}: {', '.join(map(str, facts[key]))}" for key in keys]


def make_row(label: str, runs: Sequence[Result], metrics: Sequence[str] | None = None) -> Row:
    """One row over the runs of a class, or of several classes: then it is their mean.

    `metrics` are those that the table has; by default those of these runs.
    """
    seeds: dict[str, set[int]] = {}
    for run in runs:
        seeds.setdefault(run["class_name"], set()).add(run["seed"])
    chosen = [run for run in runs if run["oracle"]]
    epochs = _distinct(run["oracle"]["epoch"] for run in chosen)
    row = Row(label, len(set.intersection(*seeds.values())), len(seeds), {}, {}, {}, epochs)
    for metric in tabulated(runs) if metrics is None else metrics:
        row.metrics[metric] = spread(_values((run, run["metrics"].get(metric)) for run in runs))
        best = spread(_values((run, run["oracle"]["metrics"].get(metric)) for run in chosen))
        if best.mean is not None:
            row.oracle[metric] = best
    for name in DECISION_TITLES:
        found = spread(_values((run, run.get("decisions", {}).get(name)) for run in runs))
        if found.mean is not None:
            row.decisions[name] = found
    return row


def _values(pairs: Iterable[tuple[Result, float | None]]) -> Values:
    """Pairs of a run and its metric, or None -> {class: {seed: metric}} of the runs that have the metric."""
    values: Values = {}
    for run, value in pairs:
        if value is not None:
            values.setdefault(run["class_name"], {})[run["seed"]] = value
    return values


def _epochs_of_class(run: Result) -> int | None:
    """The epochs of the run's class where its variant defines them by class, else None."""
    by_class = VARIANTS[run["variant"]].training.epochs_of if run["variant"] in VARIANTS else {}
    return by_class.get(run["class_name"])


def _add_published(row: Row, benchmark: str, variant: str) -> None:
    """Add the published metrics of this row's label, for metrics that all of its classes have."""
    for metric, ours in row.metrics.items():
        known = published(benchmark, variant, row.label, metric)
        if known and ours.mean is not None and ours.classes == row.classes:
            row.published[metric] = Published(known[0], ours.mean - known[0], known[1])


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({value for value in values if value not in (None, "")})


def has_random_teacher(facts: Mapping[str, Any]) -> bool:
    """Whether the teacher of some run had random weights."""
    return "random" in facts["teacher_weights"]


def _reasons(runs: list[Result], classes: list[str], metrics: Sequence[str]) -> list[str]:
    """One line per reason for n/a among the table's metrics: which, and the classes unless all are affected."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for run in runs:
        for metric in metrics:
            if run["metrics"].get(metric) is None:
                later = metric in NOT_IN_ALL_RUNS and metric not in run["metrics"]
                unknown = EARLIER if later else "no reason recorded"
                undefined, where = found.setdefault((run.get("reasons") or {}).get(metric) or unknown, (set(), set()))
                undefined.add(metric)
                where.add(run["class_name"])
    if all(run["metrics"].get(metric) is None for run in runs for metric in metrics):
        return [f"no metrics: {'; '.join(found)}"]
    lines = []
    for reason, (undefined, where) in found.items():
        listed = ", ".join(METRIC_TITLES[metric] for metric in metrics if metric in undefined)
        titles = "all metrics" if len(undefined) == len(metrics) else listed
        names = "" if len(where) == len(classes) else f" ({', '.join(c for c in classes if c in where)})"
        lines.append(f"n/a: {titles}{names}: {reason}")
    return lines
