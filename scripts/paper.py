"""Run the settings of a paper's table as published and print ours beside the published metrics.

    python -m scripts.paper PAPER [TABLE ...] [flags of main.py]

Papers and tables are the rows of papers.PAPERS; no table named means the paper's first. Flags override the published
settings; the table then says which. Finished runs stay as they are, so what was stopped goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from commandline import exit_code
from dataset import BENCHMARKS
from report.papers import PAPERS, PaperTable, Setting
from report.published import METHODS, published_of
from report.rendering import PARTIAL, benchmark_title, cell, heading, notes_below, partial, percent
from report.results import METRIC_TITLES, Result
from report.tables import Row, differing, facts_of, random_teacher, row_of
from scripts.sweep import Plan, parse_words, pick, plan, run
from utils import format_table, write_atomically

PRESET = "--save_path runs/papers --net wide_res50 --image_size 256"  # what all of them were published with
GAP = "–"
OURS = (
    "ours: mean ± sample standard deviation over n seeds, of the last epoch; no test image chooses anything. AUPRO "
    "pools the regions of the whole test set; AUPRO per image is computed as in the published code of the family"
)
ORACLE = "best on test: ours too, but at the epoch chosen on the test set (oracle), by the highest {}; not a result"
# What is said elsewhere, or follows from the rest, or changes no metric of the last epoch.
NO_DEPARTURE = {"classes", "seeds", "net", "seg", "normalize", "deterministic"}


@dataclass(frozen=True)
class Line:
    """Ours over some runs, and where the published metrics for it are to be found: setting and class (or mean)."""

    ours: Row
    setting: Setting
    class_name: str
    comparable: bool  # the same teacher, and all classes where it is a mean


def plans_of(table: PaperTable, more: Sequence[str]) -> list[Plan]:
    """The table's runs, not begun yet. Raises ValueError, FileNotFoundError on flags that cannot be."""
    flags = f"{PRESET} --dataset {table.benchmark} {table.flags}"
    plans = [plan(flags, setting, more) for setting in table.settings]
    if (found := plans[0].config.dataset) != table.benchmark:
        raise ValueError(f"--dataset {found}: this table is one of {table.benchmark}")
    return plans


def lines_of(table: PaperTable, plans: Sequence[Plan], results: Sequence[list[Result]]) -> list[Line]:
    """A line per class and one for their mean where the table has one setting, else one per setting."""
    lines = []
    classes = BENCHMARKS[table.benchmark].classes
    for one, runs in zip(plans, results, strict=True):
        facts = facts_of(runs)
        comparable = facts["net"] == [one.preset.net] and not random_teacher(facts)
        found = [c for c in classes if any(run["class_name"] == c for run in runs)]
        if len(table.settings) == 1:
            for c in found:
                row = row_of(c, [run for run in runs if run["class_name"] == c])
                lines.append(Line(row, one.setting, c, comparable))
        if len(classes) > 1:
            label = "mean" if len(table.settings) == 1 else one.setting.label
            row = row_of(label + (f" ({len(found)} of {len(classes)})" if len(found) < len(classes) else ""), runs)
            lines.append(Line(row, one.setting, "mean", comparable and len(found) == len(classes)))
    return lines


def departures(plans: Sequence[Plan]) -> list[str]:
    """What decides our runs' numbers and is not as published, the teacher aside: flags of the user's."""
    found: dict[str, None] = {}
    for one in plans:
        published = replace(one.preset, classes=one.config.classes).settings()
        for name, value in one.config.settings().items():
            if name not in NO_DEPARTURE and value != published[name]:
                found[f"{name} {_said(value)} instead of {_said(published[name])}"] = None
    return list(found)


def _said(value: object) -> str:
    if value is None:
        return "the variant's own"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def notes_of(table: PaperTable, plans: Sequence[Plan], results: Sequence[list[Result]], lines: list[Line]) -> list[str]:
    """Which protocol each side follows, where the published metrics stand, and why some cannot be compared."""
    rules = sorted({run["oracle"]["rule"] for runs in results for run in runs if run["oracle"]})
    notes = [OURS, *([ORACLE.format(" | ".join(rules))] if rules else [])]
    notes.append(f"published: {METHODS[table.follows].protocol}")
    known = [
        published_of(x.setting.method, table.benchmark, x.class_name, name) for x in lines for name in METRIC_TITLES
    ]
    notes += [f"source: {source}" for source in dict.fromkeys(entry[1] for entry in known if entry)]
    notes += table.notes
    unlike: dict[str, list[str]] = {}  # why -> for which settings
    for one, runs in zip(plans, results, strict=True):
        facts = facts_of(runs)
        reasons = differing(facts, "these runs", {"net"})
        if facts["net"] != [one.preset.net] or random_teacher(facts):
            ours = ", ".join(facts["net"]) + (" with random weights" if random_teacher(facts) else "")
            reasons.append(f"another teacher: not comparable (ours {ours}, published {one.preset.net})")
        for reason in reasons:
            unlike.setdefault(reason, []).append(one.setting.label)
    notes += [f"warning: {', '.join(labels)}: {reason}" for reason, labels in unlike.items()]
    if changed := departures(plans):
        notes.append(f"warning: ours departs from the published settings: {', '.join(changed)}")
    if any(
        line.class_name == "mean" and line.ours.classes < len(BENCHMARKS[table.benchmark].classes) for line in lines
    ):
        notes.append("warning: a mean over some of the classes is not compared with the published one over all")
    return notes + ([PARTIAL] if any(partial(line.ours) for line in lines) else [])


def cells(table: PaperTable, line: Line, metric: str, oracle: bool) -> list[str]:
    """label, metric, n, ours, (best on test,) published, difference"""
    ours = line.ours.metrics[metric]
    known = published_of(line.setting.method, table.benchmark, line.class_name, metric)
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
    """The table in percent, differences in percentage points, and its notes; as text for a terminal or as Markdown."""
    lines = lines_of(table, plans, results)
    oracle = any(line.ours.oracle for line in lines)
    header = ["row", "metric", "n", "ours", *(["best on test"] if oracle else []), "published", "difference"]
    body = [cells(table, line, metric, oracle) for line in lines for metric in table.metrics]
    title = heading((table.title, benchmark_title(table.benchmark), "percent and percentage points"), markdown)
    notes = notes_below(notes_of(table, plans, results, lines), markdown)
    return "\n\n".join([title, format_table(header, body, markdown), notes])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on what a user can mend."""
    known = {name: list(tables) for name, tables in PAPERS.items()}
    paper, chosen, more = parse_words("paper", "table", known, "scripts.paper", argv)
    names = list(dict.fromkeys(chosen)) or known[paper][:1]
    tables = pick(PAPERS[paper], names, "table")
    if len(benchmarks := {table.benchmark for table in tables}) > 1:
        raise ValueError(f"tables of {', '.join(sorted(benchmarks))} at once: run the command once per benchmark")
    work = [(name, table, plans_of(table, more)) for name, table in zip(names, tables, strict=True)]

    done = [(name, table, plans, run(plans)) for name, table, plans in work]
    for name, table, plans, results in done:
        page = plans[0].config.save_path / table.benchmark / f"paper_{paper}_{name}.md"
        write_atomically(page, render_paper(table, plans, results, markdown=True) + "\n")
        print(f"\n{render_paper(table, plans, results)}\n\nthis table: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
