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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from report.differences import compare_sides
from report.page.charts import Chart, Histogram, histogram, joined, loss_chart, unit_chart
from report.page.forest import Forest, forest
from report.page.gallery import Group, Thumbnail, gallery, legend
from report.page.runs import DEFECT_METRICS, RunView, read_run
from report.page.tables import BenchmarkTable, DefectRow, benchmark_tables, defect_rows, protocol_notes
from report.page.templates import make_environment, read_asset
from report.pairing import Side, sides_of
from report.rendering import benchmark_title, count, duration, percent
from report.results import METRIC_TITLES, Result
from report.tables import summarize
from report.verdicts import caveats, verdict
from run_files import CONFIG, Run
from run_files.csv_files import to_csv
from scoring.curves import thinned
from scoring.intervals import Bootstrap
from scoring.metrics import LIMIT
from utils import sweep_partials, write_atomically

PAGE, IMAGES, CURVES = "report.html", "report_images", "curves.csv"
STYLES = ("colors.css", "page.css", "forest.css")
INLINE = 200  # thumbnails inside the page; the others are files beside it
RATES = ("false positive rate", "true positive rate")
LOSSES = ("loss", "held_out")  # columns of train.csv
UNIT_CHARTS = {
    "roc": ("ROC of images", RATES),
    "pr": ("Precision and recall of images", ("recall", "precision")),
    "pixel_roc": ("ROC of pixels", RATES),
    "pixel_pr": ("Precision and recall of pixels", ("recall", "precision")),
    "pro": ("Per-region overlap (PRO)", ("false positive rate", "mean overlap")),
}


@dataclass(frozen=True)
class RunBlock:
    """A run's decisions and images, what is drawn on them, and the `facts` of its metrics.json and config.json."""

    view: RunView
    histogram: Histogram | None
    groups: Sequence[Group]
    legend: str
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


@dataclass(frozen=True)
class ForestBlock:
    """Plots of differences, and sentences: what may be said of them, or why there are none."""

    plots: Sequence[Forest]
    sentences: Sequence[str]


def write_page(runs: Sequence[tuple[Path, Result]], out: Path, unfinished: Sequence[Path] = ()) -> Path:
    """Write the page of (folder, metrics.json) pairs, its images and curves.csv into `out`; returns the page's path.

    Raises OSError naming what cannot be written, ValueError naming a damaged file of a run.
    """
    blocks = [_block(folder, result) for folder, result in runs]
    tables = benchmark_tables(summarize([result for _, result in runs]))
    sections = _sections(tables, blocks)
    images = _Images(out / IMAGES)
    first = [blocks[0] for section in sections for blocks in section.blocks.values()]
    images.add(group for block in [*first, *blocks] for group in block.groups)
    html = _environment(images).get_template("page.html.jinja").render(
        tables=tables, sections=sections, blocks=blocks, notes=protocol_notes(tables), unfinished=unfinished,
        forests=_forests(runs),
    )  # fmt: skip
    for folder in (out, out / IMAGES):
        sweep_partials(folder)
    images.write()
    write_atomically(out / CURVES, _curves_csv([block.view for block in blocks]))
    write_atomically(out / PAGE, html)
    return out / PAGE


def _forests(runs: Sequence[tuple[Path, Result]]) -> dict[str, ForestBlock]:
    """{benchmark: differences of its methods in image AUROC, by DeLong's test} where it has two or more methods."""
    found: dict[str, list[Side]] = {}
    for side in sides_of(runs):
        found.setdefault(side.benchmark, []).append(side)
    blocks = {}
    for benchmark, sides in found.items():
        if len(sides) < 2:
            continue
        try:
            comparison = compare_sides(sides, ["image_auroc"], Bootstrap())
        except (OSError, ValueError) as problem:
            blocks[benchmark] = ForestBlock([], [f"methods are not compared: {problem}"])
            continue
        plots = [forest(difference, comparison.level) for difference in comparison.differences]
        said = [" ".join(verdict(difference, comparison.level)) for difference in comparison.differences]
        blocks[benchmark] = ForestBlock(plots, [*said, *caveats(comparison)])
    return blocks


def _block(folder: Path, result: Result) -> RunBlock:
    view = read_run(folder, result)
    drawn = None
    if view.predictions:
        threshold = view.decisions.threshold if view.decisions else None
        value, rug = (threshold.value, threshold.scores) if threshold else (None, ())
        drawn = histogram(view.scores[~view.labels], view.scores[view.labels], value, rug)
    bare = replace(view, maps=None, outside=None)
    return RunBlock(bare, drawn, gallery(view), legend(view), _facts(folder, result))


def _facts(folder: Path, result: Result) -> dict[str, dict[str, Any]]:
    """Settings, identity, hashes and environment of a run, each by name."""

    def some(*names: str) -> dict[str, Any]:
        return {name: result[name] for name in names if result.get(name) is not None}

    counts = ("n_train", "n_held_out", "n_test", "n_anomalous")
    identity = Run(folder).read(CONFIG)["identity"] if (folder / CONFIG).is_file() else {}
    times = {name: duration(seconds) for name, seconds in some("train_seconds", "score_seconds").items()}
    versions = result.get("versions") or {}
    return {
        "settings": some("variant", "net", "image_size", "batch_size", "epochs", *counts),
        "identity": {name: json.dumps(value) for name, value in identity.items()},
        "hashes": some("identity_sha256", "checkpoint_sha256", "predictions_sha256"),
        "environment": some("revision", "hardware", "teacher_weights", "precision") | versions | times,
    }


def _sections(tables: Sequence[BenchmarkTable], blocks: Sequence[RunBlock]) -> list[Section]:
    """A section per benchmark and class, in the order of the tables."""
    sections: list[Section] = []
    for table in tables:
        for class_name in table.classes:
            own = [b for b in blocks if b.view.belongs_to(table.benchmark, class_name)]
            own.sort(key=lambda block: block.view.seed)
            named = {name: [b for b in own if b.view.name == name] for name in table.names}
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
        for column in LOSSES
        if column in view.history
    ]
    loss = loss_chart(losses)
    return charts if loss is None else [*charts, loss]


def _curves_csv(views: Sequence[RunView]) -> str:
    """benchmark and name where there are several, class, seed, curve, x, y: the points of all curves, `thinned`."""
    several = {
        "benchmark": len({view.benchmark for view in views}) > 1,
        "name": len({view.name for view in views}) > 1,
    }
    start = [name for name, wanted in several.items() if wanted]
    rows = []
    for view in views:
        losses = {name: joined([view.history["epoch"], view.history[name]]) for name in LOSSES if name in view.history}
        place = [getattr(view, name) for name in start] + [view.class_name, view.seed]
        for curve, points in {**view.curves, **losses}.items():
            rows += [[*place, curve, f"{x:.9g}", f"{y:.9g}"] for x, y in thinned(points).tolist()]
    header = [*start, "class", "seed", "curve", "x", "y"]
    return to_csv(header, rows)


class _Images:
    """Thumbnails as the page refers to them: the first ones as data, the others by the names of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self._sources: dict[bytes, str] = {}

    def add(self, groups: Iterable[Group]) -> None:
        """Decide where the thumbnails of the groups lie."""
        for thumbnail in (image.thumbnail for group in groups for image in group.images):
            if thumbnail is None or thumbnail.data in self._sources:
                continue
            if len(self._sources) < INLINE:
                source = f"data:image/webp;base64,{base64.b64encode(thumbnail.data).decode()}"
            else:
                name = f"{hashlib.sha256(thumbnail.data).hexdigest()[:20]}.webp"
                self.files[name], source = thumbnail.data, f"{self.folder.name}/{name}"
            self._sources[thumbnail.data] = source

    def source(self, thumbnail: Thumbnail) -> str:
        """What stands in src."""
        return self._sources[thumbnail.data]

    def write(self) -> None:
        """Write the files that are not there yet."""
        for name, data in self.files.items():
            if not (self.folder / name).is_file():
                write_atomically(self.folder / name, data)


def _environment(images: _Images) -> jinja2.Environment:
    """The templates, with the page's style, script and policy."""
    environment = make_environment()
    style, script = "".join(map(read_asset, STYLES)), read_asset("page.js")
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
