"""Run the settings of a paper's table as published, and compare our metrics with the published ones.

    python -m scripts.paper PAPER [TABLE ...] [flags of main.py]

papers.PAPERS lists the papers and their tables; the first table is the default. The user's flags override the published
settings, and the table then lists the differences. Finished runs are not run again, so the same command continues.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from commandline import exit_code
from dataset import BENCHMARKS
from report.papers import PAPERS, PaperTable, Setting
from report.published import NAMED_METHODS, published_metric
from report.rendering import PARTIAL, benchmark_title, cell, heading, notes_below, partial, percent
from report.results import METRIC_TITLES, Result
from report.tables import Row, collect_facts, differing_settings, has_random_teacher, make_row
from scripts.sweep import Plan, parse_words, pick, plan, run
from utils import format_table, terminal_width, write_atomically

PRESET = "--save_path runs/papers --net wide_res50 --image_size 256"  # of all published tables
GAP = "–"
OURS = (
    "ours: mean ± sample standard deviation over n seeds, of the last epoch; no test image chooses anything. AUPRO "
    "pools the regions of the whole test set; AUPRO per image is computed as in the published code of the family"
)
ORACLE = "best on test: ours too, but at the epoch chosen on the test set (oracle), by the highest {}; not a result"
# Settings that are noted elsewhere, follow from others, or change no metric of the last epoch.
NO_DEPARTURE = {"classes", "seeds", "net", "seg", "anomalib_scores", "deterministic"}


@dataclass(frozen=True)
class Line:
    """A row over our runs, and the setting and class (or mean) under which its published metrics are found."""

    ours: Row
    setting: Setting
    class_name: str
    comparable: bool  # same teacher, and all classes in a mean


def make_plans(table: PaperTable, more: Sequence[str]) -> list[Plan]:
    """The plans of the table's settings. Raises ValueError or FileNotFoundError for invalid flags."""
    flags = f"{PRESET} --dataset {table.benchmark} {table.flags}"
    plans = [plan(flags, setting, more) for setting in table.settings]
    if (found := plans[0].config.dataset) != table.benchmark:
        raise ValueError(f"--dataset {found}: this table is of {table.benchmark}")
    return plans


def make_lines(table: PaperTable, plans: Sequence[Plan], results: Sequence[list[Result]]) -> list[Line]:
    """With one setting a line per class and one for their mean, else a line per setting."""
    lines = []
    classes = BENCHMARKS[table.benchmark].classes
    for one, runs in zip(plans, results, strict=True):
        facts = collect_facts(runs)
        comparable = facts["net"] == [one.preset.net] and not has_random_teacher(facts)
        found = [c for c in classes if any(run["class_name"] == c for run in runs)]
        if len(table.settings) == 1:
            for c in found:
                row = make_row(c, [run for run in runs if run["class_name"] == c])
                lines.append(Line(row, one.setting, c, comparable))
        if len(classes) > 1:
            label = "mean" if len(table.settings) == 1 else one.setting.label
            row = make_row(label + (f" ({len(found)} of {len(classes)})" if len(found) < len(classes) else ""), runs)
            lines.append(Line(row, one.setting, "mean", comparable and len(found) == len(classes)))
    return lines


def departures(plans: Sequence[Plan]) -> list[str]:
    """The settings that affect results and are not as published, because of the user's flags; without the teacher."""
    found: dict[str, None] = {}
    for one in plans:
        published = replace(one.preset, classes=one.config.classes).settings()
        for name, value in one.config.settings().items():
            if name not in NO_DEPARTURE and value != published[name]:
                found[f"{name} {_format_setting(value)} instead of {_format_setting(published[name])}"] = None
    return list(found)


def _format_setting(value: object) -> str:
    if value is None:
        return "the variant's own"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def make_notes(
    table: PaperTable, plans: Sequence[Plan], results: Sequence[list[Result]], lines: list[Line]
) -> list[str]:
    """The notes: the protocols of both sides, the sources, and the reasons why some metrics are not compared."""
    rules = sorted({run["oracle"]["rule"] for runs in results for run in runs if run["oracle"]})
    notes = [OURS, *([ORACLE.format(" | ".join(rules))] if rules else [])]
    notes.append(f"published: {NAMED_METHODS[table.variant].protocol}")
    known = [
        published_metric(x.setting.method, table.benchmark, x.class_name, name) for x in lines for name in METRIC_TITLES
    ]
    notes += [f"source: {source}" for source in dict.fromkeys(entry[1] for entry in known if entry)]
    notes += table.notes
    reasons_of: dict[str, list[str]] = {}  # reason -> labels of settings
    for one, runs in zip(plans, results, strict=True):
        facts = collect_facts(runs)
        reasons = differing_settings(facts, "these runs", {"net"})
        if facts["net"] != [one.preset.net] or has_random_teacher(facts):
            ours = ", ".join(facts["net"]) + (" with random weights" if has_random_teacher(facts) else "")
            reasons.append(f"another teacher: not comparable (ours {ours}, published {one.preset.net})")
        for reason in reasons:
            reasons_of.setdefault(reason, []).append(one.setting.label)
    notes += [f"warning: {', '.join(labels)}: {reason}" for reason, labels in reasons_of.items()]
    if changed := departures(plans):
        notes.append(f"warning: ours departs from the published settings: {', '.join(changed)}")
    if any(
        line.class_name == "mean" and line.ours.classes < len(BENCHMARKS[table.benchmark].classes) for line in lines
    ):
        notes.append("warning: a mean over some of the classes is not compared with the published one over all")
    return notes + ([PARTIAL] if any(partial(line.ours) for line in lines) else [])


def cells(table: PaperTable, line: Line, metric: str, oracle: bool) -> list[str]:
    """The cells of a line: label, metric, n, ours, (best on test,) published, difference."""
    ours = line.ours.metric(metric)
    known = published_metric(line.setting.method, table.benchmark, line.class_name, metric)
    comparable = line.comparable and line.setting.certain and ours.classes == line.ours.classes
    difference = GAP
    if known and comparable and ours.mean is not None:
        difference = f"{100 * (ours.mean - known[0]):+.2f}"
    best = [cell(line.ours.oracle[metric], line.ours) if metric in line.ours.oracle else GAP] if oracle else []
    printed = percent(known[0]) + "?" * (not line.setting.certain) if known else "not published"
    return [line.ours.label, METRIC_TITLES[metric], str(ours.n), cell(ours, line.ours), *best, printed, difference]


def render_paper(
    table: PaperTable, plans: Sequence[Plan], results: Sequence[list[Result]], markdown: bool = False
) -> str:
    """The table in percent, with differences in percentage points, and its notes, as text or as Markdown."""
    lines = make_lines(table, plans, results)
    oracle = any(line.ours.oracle for line in lines)
    header = ["row", "metric", "n", "ours", *(["best on test"] if oracle else []), "published", "difference"]
    body = [cells(table, line, metric, oracle) for line in lines for metric in table.metrics]
    title = heading((table.title, benchmark_title(table.benchmark), "percent and percentage points"), markdown)
    notes = notes_below(make_notes(table, plans, results, lines), markdown, terminal_width())
    return "\n\n".join([title, format_table(header, body, markdown), notes])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    known = {name: list(tables) for name, tables in PAPERS.items()}
    paper, chosen, more = parse_words("paper", "table", known, "scripts.paper", argv)
    names = list(dict.fromkeys(chosen)) or known[paper][:1]
    tables = pick(PAPERS[paper], names, "table")
    if len(benchmarks := {table.benchmark for table in tables}) > 1:
        raise ValueError(f"tables of {', '.join(sorted(benchmarks))} at once: run the command once per benchmark")
    work = [(name, table, make_plans(table, more)) for name, table in zip(names, tables, strict=True)]

    found, code = run([one for _, _, plans in work for one in plans])
    rest = iter(found)
    for name, table, plans in work:
        results = [next(rest) for _ in plans]
        page = plans[0].config.save_path / table.benchmark / f"paper_{paper}_{name}.md"
        write_atomically(page, render_paper(table, plans, results, markdown=True) + "\n")
        print(f"\n{render_paper(table, plans, results)}\n\nthis table: {page}")
    return code


if __name__ == "__main__":
    sys.exit(exit_code(main, resumes=True))
