"""Tables over finished runs: a row per class and their mean, over seeds, and the published figures beside them.

Everything is computed from what stands in the metrics.json files. Figures are fractions in 0..1 and stay so in CSV and
JSON; the text shows percent with two decimals. A figure that does not exist is n/a and is never filled in.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dataset import BENCHMARKS
from runs import CONFIG, METRICS
from utils import format_table, write_atomically

Result = dict[str, Any]  # the content of one metrics.json
Values = dict[str, dict[int, float]]  # class -> seed -> figure

FIGURES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "aupro": "AUPRO",
    "aupro_per_image": "AUPRO per image",
}
NEEDED = ("benchmark", "variant", "class_name", "seed", "figures")
SETTINGS = ("variant", "epochs", "net", "teacher_weights", "image_size", "revision")  # one value each in a sound table

PUBLISHED = Path(__file__).with_name("published_results.csv")
PUBLISHED_NET = "wide_res50"  # the teacher behind every published figure that is looked up
PUBLISHED_METHODS = {
    "rd4ad": ("RD4AD", "RD4AD's published figures: WideResNet-50-2, 256 pixels, epoch 200."),
    "sk_rd4ad": (
        "SK-RD4AD",
        "SK-RD4AD's published figures: WideResNet-50-2, 256 pixels, the best of 200 epochs on the test set.",
    ),
}
PUBLISHED_BENCHMARKS = {"mvtec": "MVTec-AD", "visa": "VisA", "vad": "VAD", "btad": "BTAD"}
PUBLISHED_CLASSES = {"vad": "one-class"}
# The AUPRO of these papers averages per-image figures, so it is no match for the pooled one.
PUBLISHED_FIGURES = {"image_auroc": "image_auroc", "pixel_auroc": "pixel_auroc", "aupro_per_image": "aupro"}

LEGEND = (
    "Figures of the last epoch: mean ± sample standard deviation over n seeds. The mean row is the mean over classes; "
    "its spread is that of the seeds' own means.",
    "AUPRO pools the regions of the whole test set, up to a false positive rate of 0.3. AUPRO per image is computed as "
    "in the published code, image by image; the AUPRO that RD4AD and SK-RD4AD print is of that kind.",
)


@dataclass(frozen=True)
class Spread:
    """Mean over `classes` classes of their means over seeds; `std` over the `n` seeds that all these classes have.

    `mean` is None where no run has the figure, `std` (of the sample: divided by n - 1) where n < 2.
    """

    mean: float | None
    std: float | None
    n: int
    classes: int


@dataclass(frozen=True)
class Published:
    """A published figure and ours minus it, both as fractions, and where it is printed."""

    value: float
    difference: float
    source: str


@dataclass(frozen=True)
class Row:
    """A class, or the mean over `classes` classes, with `n` seeds; every dict goes by the figure's name."""

    label: str
    n: int
    classes: int
    figures: dict[str, Spread]
    published: dict[str, Published]
    oracle: dict[str, Spread]  # of the epochs that did best on the test set
    oracle_epochs: dict[str, list[int]]


@dataclass(frozen=True)
class Table:
    """All runs of one benchmark and name: a row per class and, for several classes, the mean row."""

    benchmark: str
    name: str
    rows: list[Row]
    reasons: list[str]  # why figures are n/a
    warnings: list[str]
    facts: dict[str, Any]  # the SETTINGS, hardware and versions found, as lists; seeds, runs, total seconds

    @property
    def variant(self) -> str:
        return "/".join(self.facts["variant"])


def collect(roots: Sequence[Path]) -> list[Result]:
    """The content of every metrics.json under the folders, at any depth, in the order of their paths.

    Raises FileNotFoundError for a folder that is not there, and ValueError, naming the file, for a metrics.json that is
    none and for two that hold the same run.
    """
    places: dict[tuple[Any, ...], Path] = {}
    results = []
    for path in _find(roots, METRICS):
        result = _read(path)
        key = (result["benchmark"], _name(result), result["class_name"], result["seed"])
        if key in places:
            run = " ".join(map(str, key))
            raise ValueError(f"{places[key]} and {path} hold the same run, {run}: leave one of them out")
        places[key] = path
        results.append(result)
    return results


def unfinished(roots: Sequence[Path]) -> list[Path]:
    """The run folders with a config.json and no metrics.json yet. Raises FileNotFoundError as `collect`."""
    return [path.parent for path in _find(roots, CONFIG) if not path.with_name(METRICS).is_file()]


def _find(roots: Sequence[Path], name: str) -> list[Path]:
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give run folders, or folders that hold some")
    found = {path.resolve(): path for root in roots for path in root.rglob(name) if path.is_file()}
    return [found[place] for place in sorted(found)]


def _read(path: Path) -> Result:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        figures = {key: result[key] for key in NEEDED}["figures"]
        values = [*figures.values(), *(best["value"] for best in (result.get("oracle") or {}).values())]
        wrong = [value for value in values if value is not None and not 0 <= value <= 1]  # NaN is wrong, too
    except ValueError as problem:  # no JSON, or not even text
        raise ValueError(f"{path}: not valid JSON ({problem}); remove it and run again") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not the metrics of a run, which has {', '.join(NEEDED)}") from None
    if wrong:
        raise ValueError(f"{path}: figures are fractions in 0..1 or null, found {wrong[0]}")
    return result


def _name(result: Result) -> str:
    return result.get("name") or result["variant"]


@functools.cache
def _published_rows() -> dict[tuple[str, str, str, str], tuple[float, str]]:
    """(method, dataset, category, figure) -> (fraction, source)."""
    rows = {}
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figure, _, unit = row["metric"].rpartition("_")
            if unit in ("pct", "frac"):
                value = float(row["value"]) / (100 if unit == "pct" else 1)
                rows[row["method"], row["dataset"], row["category"], figure] = value, row["source"]
    return rows


def published(benchmark: str, variant: str, class_name: str, figure: str) -> tuple[float, str] | None:
    """The figure as published, a fraction in 0..1, and its source; None where published_results.csv has none.

    All names are ours; class "mean" is the mean over all classes of the benchmark. Only the method's own rows count,
    not reproductions or what others quote. A published AUPRO stands for `aupro_per_image`; `aupro` has none.
    """
    if variant not in PUBLISHED_METHODS or benchmark not in PUBLISHED_BENCHMARKS or figure not in PUBLISHED_FIGURES:
        return None
    category = PUBLISHED_CLASSES.get(class_name, class_name)
    key = (PUBLISHED_METHODS[variant][0], PUBLISHED_BENCHMARKS[benchmark], category, PUBLISHED_FIGURES[figure])
    return _published_rows().get(key)


def spread(values: Mapping[str, Mapping[int, float]]) -> Spread:
    """{class: {seed: figure}} -> mean over the classes that have the figure of their means over seeds, and its spread.

    The spread is that of the seeds' own means over these classes, so only seeds that all of them have take part.
    """
    having = [by_seed for by_seed in values.values() if by_seed]
    if not having:
        return Spread(None, None, 0, 0)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in having)))
    means = [fmean(by_seed[seed] for by_seed in having) for seed in seeds]
    mean = fmean(fmean(by_seed.values()) for by_seed in having)
    return Spread(mean, stdev(means) if len(means) > 1 else None, len(means), len(having))


def summarize(results: Iterable[Result]) -> list[Table]:
    """One table per benchmark and name (the variant's, unless the runs have another), sorted."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["benchmark"], _name(result)), []).append(result)
    return [_table(*key, groups[key]) for key in sorted(groups)]


def _table(benchmark: str, name: str, runs: list[Result]) -> Table:
    facts: dict[str, Any] = {key: _distinct(run.get(key) for run in runs) for key in (*SETTINGS, "hardware")}
    # random teachers are named random:SEED and differ by run, which is what was asked for
    facts["teacher_weights"] = _distinct(re.sub(r"^random\b.*", "random", name) for name in facts["teacher_weights"])
    versions = [run.get("versions") or {} for run in runs]
    facts["versions"] = _distinct(", ".join(f"{name} {version}" for name, version in v.items()) for v in versions)
    facts |= {"seeds": _distinct(run["seed"] for run in runs), "runs": len(runs)}
    facts |= {key: sum(run.get(key) or 0 for run in runs) for key in ("train_seconds", "score_seconds")}
    known = BENCHMARKS[benchmark].classes if benchmark in BENCHMARKS else ()
    found = {run["class_name"] for run in runs}
    classes = [c for c in known if c in found] + sorted(found - set(known))
    comparable = facts["net"] == [PUBLISHED_NET] and len(facts["variant"]) == 1 and not _random_teacher(facts)
    rows = [_row(c, [run for run in runs if run["class_name"] == c], comparable) for c in classes]
    if len(classes) > 1:
        whole = set(known) <= found
        label = "mean" if whole else f"mean ({len(found)} of {len(known)})"
        rows.append(_row(label, runs, comparable and whole))
    differing = [key for key in SETTINGS if len(facts[key]) > 1]
    warnings = [f"these runs differ in {key.replace('_', ' ')}: {', '.join(map(str, facts[key]))}" for key in differing]
    return Table(benchmark, name, rows, _reasons(runs, classes), warnings, facts)


def _row(label: str, runs: list[Result], comparable: bool) -> Row:
    """One row over runs of one class, or of all; `comparable`: a published figure of this label may stand beside it."""
    seeds: dict[str, set[int]] = {}
    for run in runs:
        seeds.setdefault(run["class_name"], set()).add(run["seed"])
    row = Row(label, len(set.intersection(*seeds.values())), len(seeds), {}, {}, {}, {})
    for figure in FIGURES:
        values: Values = {c: {} for c in seeds}
        best: Values = {c: {} for c in seeds}
        epochs = set()
        for run in runs:
            if (value := run["figures"].get(figure)) is not None:
                values[run["class_name"]][run["seed"]] = value
            oracle = (run.get("oracle") or {}).get(figure) or {}
            if oracle.get("value") is not None:
                best[run["class_name"]][run["seed"]] = oracle["value"]
                epochs.add(oracle["epoch"])
        ours = row.figures[figure] = spread(values)
        if epochs:
            row.oracle[figure] = spread(best)
            row.oracle_epochs[figure] = sorted(epochs)
        known = published(runs[0]["benchmark"], runs[0]["variant"], label, figure) if comparable else None
        if known and ours.mean is not None and ours.classes == row.classes:
            row.published[figure] = Published(known[0], ours.mean - known[0], known[1])
    return row


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({value for value in values if value not in (None, "")})


def _random_teacher(facts: dict[str, Any]) -> bool:
    return "random" in facts["teacher_weights"]


def _reasons(runs: list[Result], classes: list[str]) -> list[str]:
    """One line per reason for n/a: which figures and, where it is not all of them, which classes."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for run in runs:
        for figure in FIGURES:
            if run["figures"].get(figure) is None:
                reason = (run.get("reasons") or {}).get(figure) or "no reason recorded"
                figures, where = found.setdefault(reason, (set(), set()))
                figures.add(figure)
                where.add(run["class_name"])
    lines = []
    for reason, (figures, where) in found.items():
        titles = ", ".join(title for figure, title in FIGURES.items() if figure in figures)
        names = "" if len(where) == len(classes) else f" ({', '.join(c for c in classes if c in where)})"
        lines.append(f"n/a: {titles}{names}: {reason}")
    return lines


def render(tables: Sequence[Table], markdown: bool = False, oracle: bool = False) -> str:
    """The tables as text for a terminal, or as Markdown; `oracle` adds the figures chosen on the test set."""
    parts = []
    for table in tables:
        parts += _results(table, markdown)
        if any(row.published for row in table.rows):
            parts += _beside(table, markdown)
        if oracle and any(row.oracle for row in table.rows):
            parts += _oracle(table, markdown)
    return "\n\n".join([*parts, " ".join(LEGEND) if markdown else _notes(LEGEND, markdown)])


def _results(table: Table, markdown: bool) -> list[str]:
    body = [[row.label, str(row.n), *(_cell(row.figures[figure], row) for figure in FIGURES)] for row in table.rows]
    if markdown and len(body) > 1:  # the mean row
        body[-1] = [f"**{cell}**" for cell in body[-1]]
    facts = table.facts
    said = {key: ", ".join(map(str, values)) or "unknown" for key, values in facts.items() if isinstance(values, list)}
    teacher = said["net"] + (" with random weights" if _random_teacher(facts) else "")
    notes = [
        *(f"warning: {warning}" for warning in table.warnings),
        *table.reasons,
        f"{_count(facts['runs'], 'run')}, {_count(len(facts['seeds']), 'seed')} ({said['seeds']}), "
        f"epochs {said['epochs']}, teacher {teacher}, {said['image_size']} pixels, revision {said['revision']}",
        f"training {_duration(facts['train_seconds'])}, scoring {_duration(facts['score_seconds'])} over all runs, on "
        f"{' | '.join(facts['hardware']) or 'unknown hardware'}; {' | '.join(facts['versions']) or 'versions unknown'}",
    ]
    if any(0 < cell.classes < row.classes for row in table.rows for cell in row.figures.values()):
        notes.insert(0, "(k of m): the mean over the k of m classes that have the figure")
    header = ["class", "n", *FIGURES.values()]
    return [_title(table, "percent", markdown), format_table(header, body, markdown), _notes(notes, markdown)]


def _beside(table: Table, markdown: bool) -> list[str]:
    """Per figure: ours, the published one, and ours minus it in percentage points; then the sources."""
    rows = [row for row in table.rows if row.published]
    sources = list(dict.fromkeys(known.source for row in rows for known in row.published.values()))
    header, body = ["class"], [[row.label] for row in rows]
    for figure in FIGURES:
        keys = sorted({sources.index(row.published[figure].source) + 1 for row in rows if figure in row.published})
        if not keys:
            continue
        header += [FIGURES[figure], f"published [{', '.join(map(str, keys))}]", "difference"]
        for cells, row in zip(body, rows, strict=True):
            known = row.published.get(figure)
            beside = [_percent(known.value), f"{100 * known.difference:+.2f}"] if known else ["–", "–"]
            cells += [_cell(row.figures[figure], row), *beside]
    notes = [*(f"[{i}] {source}" for i, source in enumerate(sources, 1)), PUBLISHED_METHODS[table.variant][1]]
    title = _title(table, "beside the published figures, percent and percentage points", markdown)
    return [title, format_table(header, body, markdown), _notes(notes, markdown)]


def _oracle(table: Table, markdown: bool) -> list[str]:
    figures = [figure for figure in FIGURES if any(figure in row.oracle for row in table.rows)]
    body = [[row.label, str(row.n), *(_chosen(row, figure) for figure in figures)] for row in table.rows]
    title = _title(table, "best on the test set, not a result (oracle), percent @ epoch", markdown)
    return [title, format_table(["class", "n", *(FIGURES[figure] for figure in figures)], body, markdown)]


def _title(table: Table, text: str, markdown: bool) -> str:
    benchmark = BENCHMARKS[table.benchmark].title if table.benchmark in BENCHMARKS else table.benchmark
    variant = "" if table.variant == table.name else f" ({table.variant})"
    bold = "**" if markdown else ""
    return f"{bold}{benchmark} · {table.name}{variant} · {text}{bold}"


def _notes(notes: Iterable[str], markdown: bool) -> str:
    if markdown:
        return "\n".join(f"- {note}" for note in notes)
    wrap = textwrap.TextWrapper(
        118, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(wrap.fill, notes))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _cell(cell: Spread, row: Row) -> str:
    """98.21 ± 0.30, and where it has fewer classes or seeds than its row, how many."""
    if cell.mean is None:
        return "n/a"
    text = _percent(cell.mean) + ("" if cell.std is None else f" ± {_percent(cell.std)}")
    if cell.classes < row.classes:
        return f"{text} ({cell.classes} of {row.classes})"
    return text if cell.n == row.n else f"{text} (n={cell.n})"


def _chosen(row: Row, figure: str) -> str:
    """98.21 ± 0.30 @ 40–160: the epochs are the first and the last that some run chose."""
    if figure not in row.oracle:
        return "n/a"
    epochs = row.oracle_epochs[figure]
    return f"{_cell(row.oracle[figure], row)} @ {'–'.join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    """7325 -> 2 h 02 min; 90 -> 1 min 30 s; 2.46 -> 2.5 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def to_csv(tables: Sequence[Table]) -> str:
    """One line per table, class and figure: fractions in full precision, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    place = ["benchmark", "name", "variant", "class", "figure"]
    writer.writerow([*place, "n", "classes", "mean", "std", "published", "difference", "source"])
    for table in tables:
        for row in table.rows:
            for figure, ours in row.figures.items():
                known = row.published.get(figure)
                beside = [known.value, known.difference, known.source] if known else [None, None, None]
                labels = [table.benchmark, table.name, table.variant, row.label, figure]
                writer.writerow([*labels, ours.n, ours.classes, ours.mean, ours.std, *beside])
    return text.getvalue()


def to_json(tables: Sequence[Table]) -> str:
    """Everything the tables hold: figures as fractions, times in seconds."""
    record = {"unit": "fraction", "tables": [asdict(table) for table in tables]}
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def write_tables(folder: Path, results: Iterable[Result], oracle: bool = False) -> str:
    """Save summary.csv, summary.json and summary.md in the folder, each one whole; returns the text for a terminal."""
    tables = summarize(results)
    write_atomically(folder / "summary.csv", to_csv(tables))
    write_atomically(folder / "summary.json", to_json(tables))
    write_atomically(folder / "summary.md", render(tables, markdown=True, oracle=oracle) + "\n")
    return render(tables, oracle=oracle)


def insert(text: str, marker: str, table: str) -> str:
    """`text` with `table` in place of what stands between the lines <!-- table:MARKER --> and <!-- /table:MARKER -->.

    Raises ValueError where the two lines do not stand there once each, in this order.
    """
    opening, closing = f"<!-- table:{marker} -->", f"<!-- /table:{marker} -->"
    places = [list(re.finditer(rf"^{re.escape(line)}[ \t]*$", text, re.MULTILINE)) for line in (opening, closing)]
    if [len(found) for found in places] != [1, 1] or places[0][0].end() > places[1][0].start():
        raise ValueError(f"wants the line {opening} and, below it, the line {closing}, once each")
    return f"{text[: places[0][0].end()]}\n\n{table}\n\n{text[places[1][0].start() :]}"
