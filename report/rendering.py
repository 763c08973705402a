"""Tables over finished runs as text, Markdown, CSV and JSON: percent with two decimals in tables, fractions in files.

An undefined metric is n/a and is never filled in. The text for a terminal has the metrics that its width has room for,
and none that is n/a everywhere; the files have all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict
from pathlib import Path

from dataset import BENCHMARKS
from report.escaping import shown, shown_cell
from report.published import NAMED_METHODS
from report.results import DECISION_TITLES, METRIC_TITLES, Result, collect, run_name, tabulated
from report.tables import ALL, NO_SPREAD, NONE, Row, Spread, Table, has_random_teacher, summarize
from run_files import CONFIG
from run_files.csv_files import to_csv as csv_text
from run_files.lock import FolderLock
from scoring.modes import RESIZED
from utils import format_table, printable, sweep_partials, terminal_width, write_atomically

EPOCH_LEGEND, SPREAD_LEGEND = "Metrics of the last epoch", ": mean ± sample standard deviation over n seeds"
MEAN_LEGEND = "The mean row is the mean over classes; its spread is that of the means of the seeds."
LEGEND = f"{EPOCH_LEGEND}{SPREAD_LEGEND}. {MEAN_LEGEND}"
AUPRO_LEGEND = (
    "AUPRO pools the regions of the whole test set, up to a false positive rate of 0.3. AUPRO per image is computed as "
    "in the published code, image by image; the AUPRO that RD4AD and SK-RD4AD print is of that kind."
)
FURTHER_LEGENDS = {
    "aupro_0.05": "AUPRO 0.05 goes up to a false positive rate of 0.05.",
    "aupimo": "AUPIMO is the mean over the anomalous images of the recall of their defect pixels, at false positive "
    "rates of the normal images from 0.00001 to 0.0001.",
}
DECISIONS_LEGEND = (
    "at each run's threshold, which comes from normal images that it was not trained on; F1-max above has a threshold "
    "that is chosen on the test set. SegF1: F1 of all pixels"
)
# The metrics that a narrow terminal does without, in this order.
LEFT_OUT_FIRST = (
    ("image_f1max", "pixel_f1max"),
    ("image_ap", "pixel_ap"),
    ("aupro_0.05", "aupimo"),
    ("aupro_per_image",),
    ("pixel_auroc",),
)
# What runs.csv says of a run beside its metrics.
RUN_FACTS = (
    "variant",
    "n_test",
    "n_anomalous",
    "n_train",
    "epochs",
    "net",
    "teacher_weights",
    "image_size",
    "revision",
)
NOTES = 118  # columns of the notes below a table, at most
PARTIAL = "(k of m): the mean over the k of m classes that have the metric"


def render(tables: Sequence[Table], markdown: bool = False, oracle: bool = False, width: int | None = None) -> str:
    """The tables as Markdown, or as text for a terminal of `width` columns, by default of any.

    `oracle` adds those of the epochs chosen on the test set.
    """
    parts, seen = [], set()
    for table in tables:
        texts, metrics = _results(table, markdown, width)
        parts += texts
        seen |= metrics
        if any(row.decisions for row in table.rows):
            parts += _decisions(table, markdown, width)
        if any(row.published for row in table.rows):
            parts += _beside_published(table, markdown, width)
        if oracle and any(row.oracle for row in table.rows):
            parts += _oracle(table, markdown, width)
    if legend := _legend(tables, markdown, seen):
        parts.append(" ".join(legend) if markdown else notes_below(legend, markdown, width))
    return "\n\n".join(parts)


def _legend(tables: Sequence[Table], markdown: bool, seen: Set[str]) -> list[str]:
    """What the tables' numbers are; a terminal shows only what concerns these tables, whose columns are `seen`."""
    rows = [row for table in tables for row in table.rows]
    found = {name for table in tables for name in defined_metrics(table.rows)}
    lines = [AUPRO_LEGEND] * bool(found & {"aupro", "aupro_per_image"})
    lines += [text for name, text in FURTHER_LEGENDS.items() if name in found & seen]
    if markdown:
        return [LEGEND, *lines] if found else []
    spread, mean = any(row.n > 1 for row in rows), any(row.classes > 1 for row in rows)
    parts = [EPOCH_LEGEND + SPREAD_LEGEND * spread + ".", *([MEAN_LEGEND] if mean else [])]
    return [" ".join(parts), *lines] if found else []


def defined_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that some row has, in order."""
    return [name for name in METRIC_TITLES if any(row.metric(name).mean is not None for row in rows)]


def _results(table: Table, markdown: bool, width: int | None) -> tuple[list[str], set[str]]:
    """Title, table and notes, and the metrics that have a column."""
    defined = defined_metrics(table.rows)
    rows = [row for row in table.rows if markdown or any(row.metrics[name].mean is not None for name in defined)]

    def draw(metrics: Sequence[str]) -> str:
        body = [
            [shown_cell(row.label, markdown), str(row.n), *(cell(row.metrics[metric], row) for metric in metrics)]
            for row in rows
        ]
        if markdown and len(body) > 1:  # the mean row
            body[-1] = [f"**{text}**" for text in body[-1]]
        return format_table(["class", "n", *(METRIC_TITLES[metric] for metric in metrics)], body, markdown)

    metrics = list(table.rows[0].metrics) if markdown else defined
    text, left_out = fit(metrics, draw, width)
    notes = [shown(note, markdown) for note in _notes(table)]
    if left_out:
        notes.insert(0, f"{say_left_out(left_out)}: summary.md has them")
    if any(partial(row) for row in rows):
        notes.insert(0, PARTIAL)
    title = _title(table, "percent" if rows else "not measured", markdown)
    return [title, *([text] if rows else []), notes_below(notes, markdown, width)], {*metrics} - {*left_out}


def _decisions(table: Table, markdown: bool, width: int | None) -> list[str]:
    """What the runs' thresholds do on the test images: F1 of images and pixels, and both kinds of mistakes.

    What is too wide for a terminal becomes several tables, one below the other.
    """
    rows = [row for row in table.rows if row.decisions]
    names = [name for name in DECISION_TITLES if any(name in row.decisions for row in rows)]

    def draw(some: Sequence[str]) -> str:
        body = [
            [
                shown_cell(row.label, markdown),
                str(row.n),
                *(cell(row.decisions.get(name, NO_SPREAD), row) for name in some),
            ]
            for row in rows
        ]
        return format_table(["class", "n", *(DECISION_TITLES[name] for name in some)], body, markdown)

    title = _title(table, "decisions at the threshold, percent", markdown)
    return [title, *split(names, draw, width), notes_below([DECISIONS_LEGEND], markdown, width)]


def _notes(table: Table) -> list[str]:
    """What stands below a table of results: warnings, reasons for n/a, settings, times."""
    facts = table.facts
    texts = {key: ", ".join(map(str, values)) or "unknown" for key, values in facts.items() if isinstance(values, list)}
    teacher = texts["net"] + (" with random weights" if has_random_teacher(facts) else "")
    shots = "" if facts["shots"] == [ALL] else f"{texts['shots']} training images a class, "
    tiles = "" if facts["tiles"] == [NONE] else f"windows at {texts['tiles']} of the images' own size, "
    sizes = "" if facts["map_size"] == [RESIZED] else f"pixel metrics at the size {texts['map_size']}, "
    return [
        *(f"warning: {warning}" for warning in table.warnings),
        *table.reasons,
        f"{count(facts['runs'], 'run')}{', each one model over all classes' if table.unified else ''}, "
        f"{count(len(facts['seeds']), 'seed')} ({texts['seeds']}), epochs {texts['epochs']}, teacher {teacher}, "
        f"{texts['image_size']} pixels, {tiles}{sizes}{shots}revision {texts['revision']}",
        f"training {duration(facts['train_seconds'])}, scoring {duration(facts['score_seconds'])} over all runs, on "
        f"{' | '.join(facts['hardware']) or 'unknown hardware'}; {' | '.join(facts['versions']) or 'versions unknown'}",
    ]


def _beside_published(table: Table, markdown: bool, width: int | None) -> list[str]:
    """Per metric: ours, the published one, and their difference in percentage points; below, the sources.

    What is too wide for a terminal becomes several tables, one below the other.
    """
    rows = [row for row in table.rows if row.published]
    sources = list(dict.fromkeys(known.source for row in rows for known in row.published.values()))
    metrics = [name for name in METRIC_TITLES if any(name in row.published for row in rows)]

    def draw(names: Sequence[str]) -> str:
        header, body = ["class"], [[shown_cell(row.label, markdown)] for row in rows]
        for metric in names:
            keys = sorted({sources.index(row.published[metric].source) + 1 for row in rows if metric in row.published})
            header += [METRIC_TITLES[metric], f"published [{', '.join(map(str, keys))}]", "difference"]
            for cells, row in zip(body, rows, strict=True):
                known = row.published.get(metric)
                beside = [percent(known.value), f"{100 * known.difference:+.2f}"] if known else ["–", "–"]
                cells += [cell(row.metrics[metric], row), *beside]
        return format_table(header, body, markdown)

    notes = [*(f"[{i}] {source}" for i, source in enumerate(sources, 1)), NAMED_METHODS[table.name].sentence]
    title = _title(table, "beside the published metrics, percent and percentage points", markdown)
    return [title, *split(metrics, draw, width), notes_below(notes, markdown, width)]


def _oracle(table: Table, markdown: bool, width: int | None) -> list[str]:
    """The metrics of each run's oracle epoch, and below the table the rules by which it was chosen."""
    rows = [row for row in table.rows if row.oracle]
    defined = [metric for metric in METRIC_TITLES if any(metric in row.oracle for row in rows)]

    def draw(metrics: Sequence[str]) -> str:
        body = []
        for row in rows:
            values = [cell(row.oracle[metric], row) if metric in row.oracle else "n/a" for metric in metrics]
            body.append([shown_cell(row.label, markdown), str(row.n), _epochs(row), *values])
        return format_table(["class", "n", "epoch", *(METRIC_TITLES[metric] for metric in metrics)], body, markdown)

    text, _ = fit(defined, draw, width)
    title = _title(table, "epoch chosen on the test set, not a result (oracle), percent", markdown)
    rules = shown(" | ".join(table.facts["oracle_rules"]), markdown)
    note = f"one epoch of each run, the one with the highest {rules}"
    return [title, text, notes_below([note], markdown, width)]


def fit(metrics: Sequence[str], draw: Callable[[Sequence[str]], str], width: int | None) -> tuple[str, list[str]]:
    """The table that `draw` makes of as many metrics as the width has room for, and the metrics that are left out."""
    kept = list(metrics)
    for names in LEFT_OUT_FIRST:
        if is_narrow(draw(kept), width):
            break
        kept = [metric for metric in kept if metric not in names] or kept
    return draw(kept), [metric for metric in metrics if metric not in kept]


def split(columns: Sequence[str], draw: Callable[[Sequence[str]], str], width: int | None) -> list[str]:
    """The tables that `draw` makes of all columns: one, or as many as the width needs."""
    parts: list[list[str]] = []
    for column in columns:
        if parts and is_narrow(draw([*parts[-1], column]), width):
            parts[-1].append(column)
        else:
            parts.append([column])
    return [draw(part) for part in parts]


def is_narrow(text: str, width: int | None) -> bool:
    """Whether all lines have room in so many columns; always with None."""
    return width is None or max(map(len, text.splitlines()), default=0) <= width


def say_left_out(metrics: Iterable[str]) -> str:
    """The beginning of a note on metrics for which a terminal is too narrow."""
    return f"left out, since the terminal is narrow: {', '.join(METRIC_TITLES[metric] for metric in metrics)}"


def _title(table: Table, text: str, markdown: bool) -> str:
    variant = "" if table.named_by_variant else f" ({table.variant})"
    names = (benchmark_title(table.benchmark), f"{table.name}{variant}")
    return heading((*(shown(name, markdown) for name in names), text), markdown)


def benchmark_title(name: str) -> str:
    """The title of the benchmark; its name where this version has no such benchmark."""
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def heading(parts: Iterable[str], markdown: bool) -> str:
    """The line above a table."""
    text = " · ".join(parts)
    return f"**{text}**" if markdown else text


def notes_below(notes: Iterable[str], markdown: bool, width: int | None = None) -> str:
    """The lines below a table: wrapped and indented for a terminal of so many columns, a list in Markdown."""
    if markdown:
        return "\n".join(f"- {note}" for note in notes)
    wrap = textwrap.TextWrapper(
        min(width or NOTES, NOTES),
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrap.fill(printable(note)) for note in notes)


def percent(fraction: float) -> str:
    """.9821 -> 98.21"""
    return f"{100 * fraction:.2f}"


def cell(metric: Spread, row: Row) -> str:
    """98.21 ± 0.30, and the number of classes or seeds where the row has more."""
    if metric.mean is None:
        return "n/a"
    text = percent(metric.mean) + ("" if metric.std is None else f" ± {percent(metric.std)}")
    if metric.classes < row.classes:
        return f"{text} ({metric.classes} of {row.classes})"
    return text if metric.n == row.n else f"{text} (n={metric.n})"


def partial(row: Row) -> bool:
    """Whether some classes of the row lack a metric that others have; then PARTIAL is noted below the table."""
    return any(0 < metric.classes < row.classes for metric in (row.metrics | row.decisions).values())


def _epochs(row: Row) -> str:
    """40–160: the first and the last oracle epoch of the row's runs, or 40 where all have the same."""
    return "–".join(map(str, dict.fromkeys((row.oracle_epochs[0], row.oracle_epochs[-1]))))


def count(number: int, noun: str) -> str:
    """2, class -> 2 classes."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """7325 -> 2 h 02 min; 90 -> 1 min 30 s; 2.46 -> 2.5 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def to_csv(tables: Sequence[Table]) -> str:
    """One line per table, class and metric: fractions in full precision, empty where undefined."""
    place = ["benchmark", "name", "variant", "class", "metric"]
    rows = []
    for table in tables:
        for row in table.rows:
            for metric, ours in (row.metrics | row.decisions).items():
                known = row.published.get(metric)
                beside = [known.value, known.difference, known.source] if known else [None, None, None]
                labels = [table.benchmark, table.name, table.variant, row.label, metric]
                rows.append([*labels, ours.n, ours.classes, ours.mean, ours.std, *beside])
    return csv_text([*place, "n", "classes", "mean", "std", "published", "difference", "source"], rows)


def runs_csv(results: Iterable[Result]) -> str:
    """One line per run and metric: a fraction in full precision, empty where undefined, and what the run was."""
    runs = sorted(results, key=lambda r: (r["benchmark"], run_name(r), r["class_name"], r["seed"]))
    names = tabulated(runs)
    rows = [
        [run["benchmark"], run_name(run), run["class_name"], run["seed"], metric, value]
        + [run.get(fact) for fact in RUN_FACTS]
        for run in runs
        for metric, value in _all_metrics(run, names).items()
    ]
    return csv_text(["benchmark", "name", "class", "seed", "metric", "value", *RUN_FACTS], rows)


def _all_metrics(run: Result, names: Iterable[str]) -> dict[str, float | None]:
    """The run's metrics of these names, and what its threshold does, if it has one."""
    decisions = run.get("decisions", {})
    found = {name: run["metrics"].get(name) for name in names}
    return found | {name: decisions[name] for name in DECISION_TITLES if name in decisions}


def to_json(tables: Sequence[Table]) -> str:
    """All contents of the tables: metrics as fractions, times in seconds."""
    record = {"unit": "fraction", "tables": [asdict(table) for table in tables]}
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def write_tables(folder: Path, results: Iterable[Result], oracle: bool = False) -> str:
    """Write runs.csv and summary.csv, .json and .md into the folder; returns the text for this terminal."""
    results = list(results)
    tables = summarize(results)
    write_atomically(folder / "runs.csv", runs_csv(results))
    write_atomically(folder / "summary.csv", to_csv(tables))
    write_atomically(folder / "summary.json", to_json(tables))
    from report.groups import group_tables, render_groups  # which draws with what is above

    by_group = render_groups(group_tables(results), markdown=True)
    texts = (render(tables, markdown=True, oracle=oracle), by_group)
    write_atomically(folder / "summary.md", "\n\n".join(filter(None, texts)) + "\n")
    return render(tables, oracle=oracle, width=terminal_width())


def update_tables(folder: Path, oracle: bool = False, roots: Sequence[Path] | None = None) -> str:
    """`write_tables` over the finished runs below `roots`, by default below the folder itself; returns the text.

    One process at a time collects and writes, so that of two sweeps side by side the last table has the runs of both.
    Where the folder cannot be written the text is returned all the same, and a line on stderr says so. Raises as
    `collect`.
    """
    roots = [folder] if roots is None else roots
    is_run = (folder / CONFIG).is_file()  # its lock is held while it is trained
    try:
        with contextlib.nullcontext() if is_run else FolderLock(folder, wait=True):
            sweep_partials(folder)
            return write_tables(folder, collect(roots), oracle)
    except OSError as problem:
        text = render(
            summarize(collect(roots)), oracle=oracle, width=terminal_width()
        )  # raises again what has another cause
        print(f"note: no tables written in {folder}: {problem.strerror or problem}", file=sys.stderr)
        return text


def add_page_flags(parser: argparse.ArgumentParser) -> None:
    """Add --into and --marker, which `check_page_flags` looks at and `into_page` takes."""
    parser.add_argument("--into", metavar="FILE", type=Path, help="write the Markdown table into this file")
    parser.add_argument("--marker", help="between its lines <!-- table:MARKER --> and <!-- /table:MARKER -->")


def check_page_flags(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Ends the command with a line where one of the two flags is given alone."""
    if (given.into is None) != (given.marker is None):
        parser.error("--into and --marker go together: a file, and the table in it to replace")


def insert(text: str, marker: str, table: str) -> str:
    """`text` with `table` in place of all lines between <!-- table:MARKER --> and <!-- /table:MARKER -->.

    Raises ValueError unless each of the two lines occurs once, in this order.
    """
    opening, closing = f"<!-- table:{marker} -->", f"<!-- /table:{marker} -->"
    places = [list(re.finditer(rf"^{re.escape(line)}[ \t]*$", text, re.MULTILINE)) for line in (opening, closing)]
    if [len(found) for found in places] != [1, 1] or places[0][0].end() > places[1][0].start():
        raise ValueError(f"must have the line {opening} and, below it, the line {closing}, once each")
    return f"{text[: places[0][0].end()]}\n\n{table}\n\n{text[places[1][0].start() :]}"


def into_page(path: Path, marker: str, table: str) -> str:
    """The file's text with the table between its markers. Raises FileNotFoundError, ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"--into {path}: no such file")
    try:
        return insert(path.read_text(encoding="utf-8"), marker, table)
    except ValueError as problem:
        raise ValueError(f"--into {path}: {problem}") from None
