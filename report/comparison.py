"""The table of an ablation: several settings, a row each, of one benchmark or side by side of several."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from report.escaping import shown, shown_cell
from report.rendering import (
    PARTIAL,
    benchmark_title,
    cell,
    count,
    defined_metrics,
    duration,
    fit,
    heading,
    notes_below,
    partial,
    say_left_out,
    split,
)
from report.results import METRIC_TITLES, Result, run_name, tabulated
from report.tables import Row, collect_facts, differing_settings, group_runs, has_random_teacher, make_row
from utils import format_table

LEGEND = (
    "Mean over the classes ± sample standard deviation of the seeds' own means, over n seeds; the metrics are those of "
    "the last epoch. Training: the mean of a row's runs, one class and one seed each."
)


@dataclass(frozen=True)
class Comparison:
    """One benchmark: a row per setting, in the given order, and for each the mean training seconds of its runs."""

    benchmark: str
    rows: list[Row]
    seconds: list[float]
    warnings: list[str]
    notes: list[str]


def compare(results: Iterable[Result], swept: Iterable[str] = ()) -> list[Comparison]:
    """One comparison per benchmark, with a row per name of runs, in order of first occurrence.

    `swept` are the settings of `tables.SETTINGS` in which the rows may differ, beside the variant.
    """
    settings: dict[str, dict[str, list[Result]]] = {}
    for (benchmark, name), runs in group_runs(results).items():
        settings.setdefault(benchmark, {})[name] = runs
    return [compare_settings(benchmark, groups, swept) for benchmark, groups in settings.items()]


def compare_settings(benchmark: str, groups: Mapping[str, Sequence[Result]], swept: Iterable[str] = ()) -> Comparison:
    """{setting: its runs} -> a row each, and a warning for everything that the rows should share and do not."""
    all_runs = [run for runs in groups.values() for run in runs]
    facts = collect_facts(all_runs)
    warnings = differing_settings(facts, "these rows", {"variant", *swept}) + _unequal(groups)
    if len(facts["hardware"]) > 1:
        warnings.append(f"trained on different hardware, so times do not compare: {' | '.join(facts['hardware'])}")
    texts = {key: ", ".join(map(str, facts[key])) or "unknown" for key in ("epochs", "net", "image_size", "revision")}
    teacher = texts["net"] + (" with random weights" if has_random_teacher(facts) else "")
    classes = list(dict.fromkeys(run["class_name"] for run in all_runs))
    named = ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")
    notes = [
        f"{count(facts['runs'], 'run')} of {named}, epochs {texts['epochs']}, teacher {teacher}, {texts['image_size']} "
        f"pixels, revision {texts['revision']}, on {' | '.join(facts['hardware']) or 'unknown hardware'}"
    ]
    if facts["unified"]:
        notes.append("unified: one model over all classes; its training time is divided by their number")
    metrics = tabulated(all_runs)
    rows = [make_row(label, runs, metrics) for label, runs in groups.items()]
    seconds = [fmean(run.get("train_seconds") or 0 for run in runs) for runs in groups.values()]
    return Comparison(benchmark, rows, seconds, warnings, notes)


def compare_places(
    found: Iterable[tuple[Path, Result]], roots: Sequence[Path], swept: Iterable[str] = ()
) -> dict[str, Comparison]:
    """Runs as from `collect_runs(roots)` -> {title: comparison} of each place, a benchmark with a set of classes.

    The runs of one name below one of the roots make a row of the place of their classes: the mean over these. The title
    of a place is its class, or its benchmark where it has several classes; both where places share it.
    """
    below: dict[tuple[Path, str, str], list[Result]] = {}
    for folder, result in found:
        root = next(root for root in roots if folder.is_relative_to(root))
        below.setdefault((root, result["benchmark"], run_name(result)), []).append(result)
    places: dict[tuple[str, tuple[str, ...]], dict[str, list[Result]]] = {}
    for (_, benchmark, name), runs in below.items():
        place = places.setdefault((benchmark, tuple(sorted({run["class_name"] for run in runs}))), {})
        place.setdefault(name, []).extend(runs)
    short = [classes[0] if len(classes) == 1 else benchmark for benchmark, classes in places]
    titles = [
        title if short.count(title) == 1 else f"{benchmark} ({', '.join(classes)})"
        for title, (benchmark, classes) in zip(short, places, strict=True)
    ]
    comparisons = [compare_settings(benchmark, groups, swept) for (benchmark, _), groups in places.items()]
    return dict(zip(titles, comparisons, strict=True))


def _unequal(groups: Mapping[str, Sequence[Result]]) -> list[str]:
    """A warning per setting that lacks runs of other settings: then the means are over different classes or seeds."""
    runs_of = {label: {(run["class_name"], run["seed"]) for run in runs} for label, runs in groups.items()}
    every = set().union(*runs_of.values())
    warnings = []
    for label, own in runs_of.items():
        if missing := sorted(every - own):
            class_name, seed = missing[0]
            runs = count(len(missing), "run")
            warnings.append(f"{label} lacks {runs} that other rows have, e.g. {class_name} seed {seed}")
    return warnings


def render_comparison(comparisons: Sequence[Comparison], markdown: bool = False, width: int | None = None) -> str:
    """The comparisons as Markdown or as text for a terminal of `width` columns, without the metrics that no run has."""
    parts = []
    for comparison in comparisons:
        rows = comparison.rows
        metrics = defined_metrics(rows)
        text, left_out = fit(metrics, functools.partial(_draw, comparison, markdown), width)
        notes = [PARTIAL] if any(map(partial, rows)) else []
        if left_out:
            notes.append(f"{say_left_out(left_out)}; COLUMNS=200 before the command shows them")
        warnings = (f"warning: {warning}" for warning in comparison.warnings)
        notes += [shown(note, markdown) for note in (*warnings, *comparison.notes)]
        title = heading(
            (shown(benchmark_title(comparison.benchmark), markdown), "settings compared", "percent"), markdown
        )
        parts += [title, text, notes_below(notes, markdown, width)]
    return "\n\n".join([*parts, _legend(markdown, width)])


def render_one_table(
    places: Mapping[str, Comparison], metrics: Sequence[str], markdown: bool = False, width: int | None = None
) -> str:
    """The comparisons of `compare_places` side by side, a row per setting, with those of these metrics that they have.

    A terminal of too few columns has several tables, one below the other.
    """
    rows = [row for place in places.values() for row in place.rows]
    seeds: dict[str, int] = {}  # of each setting
    for row in rows:
        seeds[row.label] = max(row.n, seeds.get(row.label, 0))
    columns: dict[str, dict[str, str]] = {}  # {header: {setting: cell}}
    for title, place in places.items():
        name, defined = shown_cell(title, markdown), defined_metrics(place.rows)
        for metric in [one for one in metrics if one in defined]:
            columns[f"{name} {METRIC_TITLES[metric]}"] = {
                row.label: cell(row.metrics[metric], replace(row, n=seeds[row.label])) for row in place.rows
            }
        times = zip(place.rows, place.seconds, strict=True)
        columns[f"{name} training"] = {row.label: duration(seconds) for row, seconds in times}

    def draw(headers: Sequence[str]) -> str:
        body = [
            [shown_cell(label, markdown), str(n), *(columns[header].get(label, "–") for header in headers)]
            for label, n in seeds.items()
        ]
        return format_table(["setting", "n", *headers], body, markdown)

    notes = [PARTIAL] if any(map(partial, rows)) else []
    for title, place in places.items():
        warnings = (f"warning: {title}: {warning}" for warning in place.warnings)
        notes += [shown(note, markdown) for note in (*warnings, *place.notes)]
    top = heading(("settings compared", "percent"), markdown)
    tables = split(list(columns), draw, width)
    return "\n\n".join([top, *tables, notes_below(notes, markdown, width), _legend(markdown, width)])


def _legend(markdown: bool, width: int | None) -> str:
    return LEGEND if markdown else notes_below([LEGEND], markdown, width)


def _draw(comparison: Comparison, markdown: bool, metrics: Sequence[str]) -> str:
    header = ["setting", "n", "classes", *(METRIC_TITLES[name] for name in metrics), "training"]
    body = [
        [
            shown_cell(row.label, markdown),
            str(row.n),
            str(row.classes),
            *(cell(row.metrics[name], row) for name in metrics),
            duration(seconds),
        ]
        for row, seconds in zip(comparison.rows, comparison.seconds, strict=True)
    ]
    return format_table(header, body, markdown)
