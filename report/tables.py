"""Tables over finished runs: a row per class and their mean, over seeds, and the published metrics beside them.

Everything is computed from what stands in the metrics.json files. Metrics are fractions in 0..1; one that does not
exist is None and is never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from dataset import BENCHMARKS
from methods import VARIANTS
from report.published import NET, published
from report.results import METRIC_TITLES, Result, name_of

Values = dict[str, dict[int, float]]  # class -> seed -> metric

SETTINGS = ("variant", "epochs", "net", "teacher_weights", "image_size", "revision")  # one value each in a sound table


@dataclass(frozen=True)
class Spread:
    """Mean over `classes` classes of their means over seeds; `std` over the `n` seeds that all these classes have.

    `mean` is None where no run has the metric, `std` (of the sample: divided by n - 1) where n < 2.
    """

    mean: float | None
    std: float | None
    n: int
    classes: int


@dataclass(frozen=True)
class Published:
    """A published metric and ours minus it, both as fractions, and where it is printed."""

    value: float
    difference: float
    source: str


@dataclass(frozen=True)
class Row:
    """A class, or the mean over `classes` classes, with `n` seeds; every dict goes by the metric's name."""

    label: str
    n: int
    classes: int
    metrics: dict[str, Spread]
    published: dict[str, Published]
    oracle: dict[str, Spread]  # at one epoch of each run, chosen on the test set
    oracle_epochs: list[int]  # those epochs, each once, in order


@dataclass(frozen=True)
class Table:
    """All runs of one benchmark and name: a row per class and, for several classes, the mean row."""

    benchmark: str
    name: str
    rows: list[Row]
    reasons: list[str]  # why metrics are n/a
    warnings: list[str]
    facts: dict[str, Any]  # see `facts_of`

    @property
    def variant(self) -> str:
        return "/".join(self.facts["variant"])


def spread(values: Mapping[str, Mapping[int, float]]) -> Spread:
    """{class: {seed: metric}} -> mean over the classes that have the metric of their means over seeds, and its spread.

    The spread is that of the seeds' own means over these classes, so only seeds that all of them have take part.
    """
    having = [by_seed for by_seed in values.values() if by_seed]
    if not having:
        return Spread(None, None, 0, 0)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in having)))
    means = [fmean(by_seed[seed] for by_seed in having) for seed in seeds]
    mean = fmean(fmean(by_seed.values()) for by_seed in having)
    return Spread(mean, stdev(means) if len(means) > 1 else None, len(means), len(having))


def grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """The runs by benchmark and name, in the order in which these come first."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["benchmark"], name_of(result)), []).append(result)
    return groups


def summarize(results: Iterable[Result]) -> list[Table]:
    """One table per benchmark and name (the variant's, unless the runs have another), sorted."""
    return [_table(*key, runs) for key, runs in sorted(grouped(results).items(), key=lambda item: item[0])]


def _table(benchmark: str, name: str, runs: list[Result]) -> Table:
    facts = facts_of(runs)
    known = BENCHMARKS[benchmark].classes if benchmark in BENCHMARKS else ()
    found = {run["class_name"] for run in runs}
    classes = [c for c in known if c in found] + sorted(found - set(known))
    # under another name a run is an ablation, whose metrics nobody published as the variant's
    comparable = facts["net"] == [NET] and facts["variant"] == [name] and not random_teacher(facts)
    rows = [row_of(c, [run for run in runs if run["class_name"] == c]) for c in classes]
    if len(classes) > 1:
        rows.append(row_of("mean" if set(known) <= found else f"mean ({len(found)} of {len(known)})", runs))
    if comparable:
        for row in rows:
            _set_beside(row, benchmark, name)
    return Table(benchmark, name, rows, _reasons(runs, classes), differing(facts, "these runs"), facts)


def facts_of(runs: Sequence[Result]) -> dict[str, Any]:
    """The SETTINGS, hardware, versions, oracle_rules and seeds that occur, each as a sorted list.

    Also the number of `runs`, the total seconds, and whether all have the epochs of their class (`own_epochs`).
    """
    facts: dict[str, Any] = {key: _distinct(run.get(key) for run in runs) for key in (*SETTINGS, "hardware")}
    # random teachers are named random:SEED and differ by run, which is what was asked for
    facts["teacher_weights"] = _distinct(re.sub(r"^random\b.*", "random", name) for name in facts["teacher_weights"])
    versions = [run.get("versions") or {} for run in runs]
    facts["versions"] = _distinct(", ".join(f"{name} {version}" for name, version in v.items()) for v in versions)
    facts["oracle_rules"] = _distinct(run["oracle"].get("rule") for run in runs)
    facts |= {"seeds": _distinct(run["seed"] for run in runs), "runs": len(runs)}
    facts["own_epochs"] = all(run.get("epochs") == _own_epochs(run) for run in runs)
    return facts | {key: sum(run.get(key) or 0 for run in runs) for key in ("train_seconds", "score_seconds")}


def differing(facts: Mapping[str, Any], what: str, aside: Iterable[str] = ()) -> list[str]:
    """A warning per setting, those `aside` excepted, that has more than one value among the runs.

    Epochs may: where the variant gives each class its own number and every run has done just that.
    """
    left_out = {*aside, *(["epochs"] if facts["own_epochs"] else [])}
    keys = [key for key in SETTINGS if key not in left_out and len(facts[key]) > 1]
    return [f"{what} differ in {key.replace('_', ' ')}: {', '.join(map(str, facts[key]))}" for key in keys]


def row_of(label: str, runs: Sequence[Result]) -> Row:
    """One row over runs of one class, or of several: then of the mean over these."""
    seeds: dict[str, set[int]] = {}
    for run in runs:
        seeds.setdefault(run["class_name"], set()).add(run["seed"])
    chosen = [run for run in runs if run["oracle"]]
    epochs = _distinct(run["oracle"]["epoch"] for run in chosen)
    row = Row(label, len(set.intersection(*seeds.values())), len(seeds), {}, {}, {}, epochs)
    for metric in METRIC_TITLES:
        row.metrics[metric] = spread(_values((run, run["metrics"].get(metric)) for run in runs))
        best = spread(_values((run, run["oracle"]["metrics"].get(metric)) for run in chosen))
        if best.mean is not None:
            row.oracle[metric] = best
    return row


def _values(pairs: Iterable[tuple[Result, float | None]]) -> Values:
    """Pairs of a run and its metric, or None -> {class: {seed: metric}} of the runs that have the metric."""
    values: Values = {}
    for run, value in pairs:
        if value is not None:
            values.setdefault(run["class_name"], {})[run["seed"]] = value
    return values


def _own_epochs(run: Result) -> int | None:
    """The epochs that the run's variant gives its class, where it has them by class."""
    by_class = VARIANTS[run["variant"]].training.epochs_of if run["variant"] in VARIANTS else {}
    return by_class.get(run["class_name"])


def _set_beside(row: Row, benchmark: str, variant: str) -> None:
    """Note the published metrics of this row's label where ours are means over all of its classes."""
    for metric, ours in row.metrics.items():
        known = published(benchmark, variant, row.label, metric)
        if known and ours.mean is not None and ours.classes == row.classes:
            row.published[metric] = Published(known[0], ours.mean - known[0], known[1])


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({value for value in values if value not in (None, "")})


def random_teacher(facts: Mapping[str, Any]) -> bool:
    """Whether some run's teacher had random weights."""
    return "random" in facts["teacher_weights"]


def _reasons(runs: list[Result], classes: list[str]) -> list[str]:
    """One line per reason for n/a: which metrics and, where it is not all of them, which classes."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for run in runs:
        for metric in METRIC_TITLES:
            if run["metrics"].get(metric) is None:
                reason = (run.get("reasons") or {}).get(metric) or "no reason recorded"
                metrics, where = found.setdefault(reason, (set(), set()))
                metrics.add(metric)
                where.add(run["class_name"])
    lines = []
    for reason, (metrics, where) in found.items():
        titles = ", ".join(title for metric, title in METRIC_TITLES.items() if metric in metrics)
        names = "" if len(where) == len(classes) else f" ({', '.join(c for c in classes if c in where)})"
        lines.append(f"n/a: {titles}{names}: {reason}")
    return lines
