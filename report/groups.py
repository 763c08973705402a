"""The metrics of kinds of defects and of groups (lights, views) as tables: a row for each, over a class's seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from report.escaping import shown, shown_cell
from report.rendering import (
    benchmark_title,
    cell,
    defined_metrics,
    fit,
    heading,
    notes_below,
    say_left_out,
)
from report.results import METRIC_TITLES, Result
from report.tables import Row, class_order, group_runs, make_row
from scoring.groups import DEFECT
from utils import format_table

KINDS = "each kind of defect against all normal test images"
GROUPS = "each group by itself, its normal and its anomalous test images"


@dataclass(frozen=True)
class GroupRow:
    """A kind of defect or a group of one class: how many test images it has, and its metrics over seeds."""

    class_name: str
    name: str
    images: int
    anomalous: int
    row: Row


@dataclass(frozen=True)
class GroupTable:
    """The kinds of defects, or the groups, of one benchmark and name of runs."""

    benchmark: str
    name: str
    title: str
    rows: Sequence[GroupRow]


def titles_in(results: Sequence[Result]) -> list[str]:
    """What the runs' metrics are split by: defect, and the benchmark's own word."""
    return list(dict.fromkeys(title for result in results for title in result.get("groups", {})))


def group_tables(results: Sequence[Result], titles: Sequence[str] | None = None) -> list[GroupTable]:
    """A table per benchmark, name of runs and title that has rows; `titles` are those wanted, by default all."""
    tables = []
    for (benchmark, name), runs in sorted(group_runs(results).items(), key=lambda item: item[0]):
        for title in titles_in(runs) if titles is None else titles:
            rows = [row for c in class_order(benchmark, runs) for row in _rows(c, title, runs)]
            if rows:
                tables.append(GroupTable(benchmark, name, title, rows))
    return tables


def _rows(class_name: str, title: str, runs: Sequence[Result]) -> list[GroupRow]:
    """The rows of a class, sorted by name."""
    found: dict[str, list[Result]] = {}
    for run in runs:
        if run["class_name"] == class_name:
            for name, own in run.get("groups", {}).get(title, {}).items():
                found.setdefault(name, []).append({**run, **own, "oracle": {}, "decisions": {}})
    return [
        GroupRow(class_name, name, own[0]["n_test"], own[0]["n_anomalous"], make_row(name, own))
        for name, own in sorted(found.items())
    ]


def render_groups(tables: Sequence[GroupTable], markdown: bool = False, width: int | None = None) -> str:
    """The tables as Markdown, or as text for a terminal of `width` columns."""
    parts = []
    for table in tables:
        text, left_out = fit(
            defined_metrics([own.row for own in table.rows]), functools.partial(_draw, table, markdown), width
        )
        notes = [f"{say_left_out(left_out)}; COLUMNS=200 before the command shows them"] if left_out else []
        notes.append(KINDS if table.title == DEFECT else GROUPS)
        names = (shown(name, markdown) for name in (benchmark_title(table.benchmark), table.name))
        title = heading((*names, f"by {shown(table.title, markdown)}", "percent"), markdown)
        parts += [title, text, notes_below(notes, markdown, width)]
    return "\n\n".join(parts)


def _draw(table: GroupTable, markdown: bool, metrics: Sequence[str]) -> str:
    header = ["class", shown_cell(table.title, markdown), "images", "n", *(METRIC_TITLES[name] for name in metrics)]
    body = [
        [
            shown_cell(own.class_name, markdown),
            shown_cell(own.name, markdown),
            f"{own.images - own.anomalous}+{own.anomalous}",
            str(own.row.n),
            *(cell(own.row.metric(name), own.row) for name in metrics),
        ]
        for own in table.rows
    ]
    return format_table(header, body, markdown)
