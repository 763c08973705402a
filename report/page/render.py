"""The page: what it says in order, its HTML, its files.

DIR/report.html             the page, with its style, its script, its charts and up to INLINE thumbnails inside
DIR/report_images/*.webp    further thumbnails, named by their content, which the browser loads when they come into view
DIR/curves.csv              the points of all curves

The page is written last, so whatever page is there has its images. Thumbnails of earlier pages stay.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from report.page.charts import Chart, Histogram, histogram, joined, loss_chart, unit_chart
from report.page.gallery import Group, Thumbnail, gallery
from report.page.runs import DEFECT_METRICS, RunView, read_run
from report.page.tables import BenchmarkTable, DefectRow, benchmark_tables, defect_rows, protocol_notes
from report.rendering import benchmark_title, count, duration, percent
from report.results import METRIC_TITLES, Result
from report.tables import summarize
from run_files import CONFIG, Run
from run_files.csv_files import to_csv
from scoring.curves import thinned
from scoring.metrics import LIMIT
from utils import printable, sweep_partials, write_atomically

PAGE, IMAGES, CURVES = "report.html", "report_images", "curves.csv"
INLINE = 200  # thumbnails inside the page; the others are files beside it
HERE = Path(__file__).parent
RATES = ("false positive rate", "true positive rate")
UNIT_CHARTS = {
    "roc": ("ROC of images", RATES),
    "pr": ("Precision and recall of images", ("recall", "precision")),
    "pixel_roc": ("ROC of pixels", RATES),
    "pixel_pr": ("Precision and recall of pixels", ("recall", "precision")),
    "pro": ("Per-region overlap (PRO)", ("false positive rate", "mean overlap")),
}


@dataclass(frozen=True)
class RunBlock:
    """A run's decisions and images. `path` is its folder, `facts` what metrics.json and config.json say of it."""

    view: RunView
    histogram: Histogram | None
    groups: Sequence[Group]
    facts: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Section:
    """One class: {name of runs: its blocks by seed}, {name: number of its kind of line}, charts, a row per defect."""

    number: int
    benchmark: str
    class_name: str
    blocks: Mapping[str, Sequence[RunBlock]]
    styles: Mapping[str, int]
    charts: Sequence[Chart]
    defects: Sequence[DefectRow]


def write_page(runs: Sequence[tuple[Path, Result]], out: Path, unfinished: Sequence[Path] = ()) -> Path:
    """Write the page of (folder, metrics.json) pairs, its images and curves.csv into `out`; returns the page's path.

    Raises OSError naming what cannot be written, ValueError naming a damaged file of a run.
    """
    blocks = [_block(folder, result) for folder, result in runs]
    tables = benchmark_tables(summarize([result for _, result in runs]))
    sections = _sections(tables, blocks)
    images = _Images(out / IMAGES)
    html = _environment(images).get_template("page.html.jinja").render(
        tables=tables, sections=sections, blocks=blocks, notes=protocol_notes(tables), unfinished=unfinished
    )  # fmt: skip
    for folder in (out, out / IMAGES):
        sweep_partials(folder)
    images.write()
    write_atomically(out / CURVES, _curves_csv([block.view for block in blocks]))
    write_atomically(out / PAGE, html)
    return out / PAGE


def _block(folder: Path, result: Result) -> RunBlock:
    view = read_run(folder, result)
    drawn = None
    if view.predictions:
        threshold = view.decisions.threshold if view.decisions else None
        value, rug = (threshold.value, threshold.scores) if threshold else (None, ())
        drawn = histogram(view.scores[~view.labels], view.scores[view.labels], value, rug)
    return RunBlock(replace(view, maps=None, outside=None), drawn, gallery(view), _facts(folder, result))


def _facts(folder: Path, result: Result) -> dict[str, dict[str, Any]]:
    """Hashes, environment and settings of a run, each by name."""
    known = {name: result[name] for name in ("revision", "hardware", "teacher_weights", "precision") if name in result}
    hashes = {name: value for name, value in result.items() if name.endswith("_sha256") and value}
    counts = {name: result[name] for name in ("n_train", "n_held_out", "n_test", "n_anomalous") if name in result}
    times = {
        name: duration(result[name]) for name in ("train_seconds", "score_seconds") if result.get(name) is not None
    }
    identity = Run(folder).read(CONFIG)["identity"] if (folder / CONFIG).is_file() else {}
    settings = {name: json.dumps(value) for name, value in identity.items()}
    versions = result.get("versions") or {}
    main = {name: result[name] for name in ("variant", "net", "image_size", "batch_size", "epochs") if name in result}
    environment = {**known, **versions, **times}
    return {"settings": main | counts, "identity": settings, "hashes": hashes, "environment": environment}


def _sections(tables: Sequence[BenchmarkTable], blocks: Sequence[RunBlock]) -> list[Section]:
    """A section per benchmark and class, in the order of the tables."""
    sections: list[Section] = []
    for table in tables:
        for class_name in table.classes:
            own = [
                b for b in blocks if (b.view.result["benchmark"], b.view.class_name) == (table.benchmark, class_name)
            ]
            named = {
                name: sorted((b for b in own if b.view.name == name), key=lambda b: b.view.seed) for name in table.names
            }
            named = {name: found for name, found in named.items() if found}
            views = [b.view for found in named.values() for b in found]
            charts = _charts(views, table.names)
            defects = defect_rows({name: [b.view for b in found] for name, found in named.items()})
            title, number = benchmark_title(table.benchmark), len(sections) + 1
            styles = {name: style for style, name in enumerate(table.names)}
            sections.append(Section(number, title, class_name, named, styles, charts, defects))
    return sections


def _charts(views: Sequence[RunView], names: Sequence[str]) -> list[Chart]:
    """The charts of a class that some run has points for; a run's style is the number of its name."""
    charts = []
    for curve, (title, labels) in UNIT_CHARTS.items():
        drawn = [(view.curves[curve], names.index(view.name)) for view in views if curve in view.curves]
        if drawn:
            charts.append(unit_chart(title, labels, drawn, LIMIT if curve == "pro" else None))
    losses = [
        (joined([view.history["epoch"], view.history[column]]), names.index(view.name), column == "held_out")
        for view in views
        for column in ("loss", "held_out")
        if column in view.history
    ]
    loss = loss_chart(losses)
    return charts if loss is None else [*charts, loss]


def _curves_csv(views: Sequence[RunView]) -> str:
    """benchmark and name where there are several, class, seed, curve, x, y: the points of all curves, `thinned`."""
    benchmarks, names = ({key(view) for view in views} for key in (lambda v: v.result["benchmark"], lambda v: v.name))
    header = ["benchmark"] * (len(benchmarks) > 1) + ["name"] * (len(names) > 1) + ["class", "seed", "curve", "x", "y"]
    rows = []
    for view in views:
        losses = {
            name: joined([view.history["epoch"], column])
            for name, column in view.history.items()
            if name in ("loss", "held_out")
        }
        start = [view.result["benchmark"]] * (len(benchmarks) > 1) + [view.name] * (len(names) > 1)
        for curve, points in {**view.curves, **losses}.items():
            place = [*start, view.class_name, view.seed, curve]
            rows += [[*place, f"{x:.9g}", f"{y:.9g}"] for x, y in thinned(points).tolist()]
    return to_csv(header, rows)


class _Images:
    """Thumbnails as the page refers to them: the first ones as data, the others by the names of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inlined = 0
        self.files: dict[str, bytes] = {}

    def source(self, thumbnail: Thumbnail) -> str:
        """What stands in src."""
        if self.inlined < INLINE:
            self.inlined += 1
            return f"data:image/webp;base64,{base64.b64encode(thumbnail.data).decode()}"
        name = f"{hashlib.sha256(thumbnail.data).hexdigest()[:20]}.webp"
        self.files[name] = thumbnail.data
        return f"{self.folder.name}/{name}"

    def write(self) -> None:
        """Write the files that are not there yet."""
        for name, data in self.files.items():
            if not (self.folder / name).is_file():
                write_atomically(self.folder / name, data)


def _environment(images: _Images) -> jinja2.Environment:
    """Templates in which every text is escaped, and shown in one line (`printable`) whatever bytes it has."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        # Chromium takes the files beside a page on disk for 'self', Firefox does not: hence file:
        "policy": f"default-src 'none'; img-src data: 'self' file:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        "source": images.source,
        "percent": percent,
        "count": count,
        "score": _score,
        "metric_titles": METRIC_TITLES,
        "defect_metrics": DEFECT_METRICS,
    }
    return environment


def _hash(text: str) -> str:
    """The text of a style or a script as a source of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _score(value: float) -> str:
    """An image score with three decimals, or digits where it is small."""
    return f"{value:.3f}" if abs(value) >= 0.1 or not np.isfinite(value) else f"{value:.3g}"
