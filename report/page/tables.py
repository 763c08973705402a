"""The tables of the page: results beside published metrics, metrics of each defect, notes on the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from report.page.runs import DEFECT_METRICS, Defect, RunView
from report.published import NAMED_METHODS
from report.rendering import (
    AUPRO_LEGEND,
    FURTHER_LEGENDS,
    LEGEND,
    PARTIAL,
    benchmark_title,
    cell,
    defined_metrics,
    partial,
    percent,
)
from report.results import METRIC_TITLES
from report.tables import Row, Table
from scoring.curves import MOST_POINTS, TOLERANCE


@dataclass(frozen=True)
class Cell:
    """A metric as text, its `value` for sorting (None: n/a), and below it the published one with our difference."""

    text: str
    value: float | None
    published: str = ""


@dataclass(frozen=True)
class ResultRow:
    """A class, or the mean over classes, of runs of one name."""

    name: str
    label: str
    n: int
    cells: Sequence[Cell]


@dataclass(frozen=True)
class BenchmarkTable:
    """All results of one benchmark. `means` are the rows over classes; `metrics` the titles of the columns."""

    benchmark: str
    title: str
    names: Sequence[str]
    classes: Sequence[str]
    metrics: Sequence[str]
    rows: Sequence[ResultRow]
    means: Sequence[ResultRow]
    has_published: bool
    notes: Sequence[str]


@dataclass(frozen=True)
class DefectRow:
    """A kind of defect in the runs of one name: mean and spread over seeds as text, of each metric and of NG."""

    name: str
    defect: str
    images: int
    cells: Sequence[str]


def benchmark_tables(tables: Sequence[Table]) -> list[BenchmarkTable]:
    """One table per benchmark, with the rows of all its names of runs."""
    benchmarks = dict.fromkeys(table.benchmark for table in tables)
    return [_benchmark_table(name, [table for table in tables if table.benchmark == name]) for name in benchmarks]


def _benchmark_table(benchmark: str, tables: Sequence[Table]) -> BenchmarkTable:
    rows = [(table, row, row is table.rows[-1] and len(table.rows) > 1) for table in tables for row in table.rows]
    metrics = defined_metrics([row for _, row, _ in rows])
    made = [(ResultRow(table.name, row.label, row.n, _cells(row, metrics)), is_mean) for table, row, is_mean in rows]
    classes = list(dict.fromkeys(row.label for row, is_mean in made if not is_mean))
    notes = [note for table in tables for note in _notes(table, prefix=len(tables) > 1)]
    notes = ([PARTIAL] if any(partial(row) for _, row, _ in rows) else []) + notes
    return BenchmarkTable(
        benchmark,
        benchmark_title(benchmark),
        [table.name for table in tables],
        classes,
        [METRIC_TITLES[metric] for metric in metrics],
        [row for row, is_mean in made if not is_mean],
        [row for row, is_mean in made if is_mean],
        any(row.published for _, row, _ in rows),
        notes,
    )


def _cells(row: Row, metrics: Sequence[str]) -> list[Cell]:
    cells = []
    for metric in metrics:
        known = row.published.get(metric)
        beside = f"{percent(known.value)} ({100 * known.difference:+.2f})" if known else ""
        published_text = beside.replace("-", "\N{MINUS SIGN}")
        cells.append(Cell(cell(row.metric(metric), row), row.metric(metric).mean, published_text))
    return cells


def _notes(table: Table, prefix: bool) -> list[str]:
    lines = [*(f"warning: {warning}" for warning in table.warnings), *table.reasons]
    if any(row.published for row in table.rows):
        lines.append(NAMED_METHODS[table.name].sentence)
        sources = dict.fromkeys(known.source for row in table.rows for known in row.published.values())
        lines += [f"source of the published metrics: {source}" for source in sources]
    return [f"{table.name}: {line}" if prefix else line for line in lines]


def protocol_notes(tables: Sequence[BenchmarkTable]) -> list[str]:
    """What holds for all metrics and curves of the page."""
    columns = {title for table in tables for title in table.metrics}
    notes = [LEGEND, AUPRO_LEGEND, *(t for name, t in FURTHER_LEGENDS.items() if METRIC_TITLES[name] in columns)]
    if any(table.has_published for table in tables):
        notes.append(
            "Published metrics are those of the variant's own paper, and of ADer for one model over all classes; the "
            "difference is ours minus published."
        )
    return [
        *notes,
        "PRO: the mean over the regions of all masks of the share that is found, against the false positive rate of "
        "the pixels outside the masks. AUPRO is the area left of the limit, divided by the limit.",
        "A kind of defect is scored by its own images and all normal images; its pixel metrics likewise.",
        f"In curves.csv a point is left out where it lies less than {TOLERANCE:g} of an axis from the line through its "
        f"neighbors; a curve has at most {MOST_POINTS} points.",
    ]  # fmt: skip


def defect_rows(named: Mapping[str, Sequence[RunView]]) -> list[DefectRow]:
    """{name: its runs of one class} -> a row per name and kind of defect."""
    rows = []
    for name, views in named.items():
        by_defect: dict[str, list[Defect]] = {}
        for view in views:
            for defect in view.defects:
                by_defect.setdefault(defect.name, []).append(defect)
        for defect_name, found in by_defect.items():
            metrics = [_spread([d.metrics[m] for d in found if m in d.metrics]) for m in DEFECT_METRICS]
            shares = _spread([d.found for d in found if d.found is not None])
            rows.append(DefectRow(name, defect_name, found[0].images, [*metrics, shares]))
    return rows


def _spread(values: Sequence[float]) -> str:
    """98.21 ± 0.30 over seeds; n/a without values."""
    if not values:
        return "n/a"
    return percent(fmean(values)) + (f" ± {percent(stdev(values))}" if len(values) > 1 else "")
