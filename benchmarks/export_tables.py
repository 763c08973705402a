"""A Markdown table of exported folders: python -m benchmarks.export_tables docs/speed/export/*.json

The files are the model.json of `python -m scripts.export`. With --into docs/speed.md --marker export the table goes
between that page's lines <!-- table:export --> and <!-- /table:export -->.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import table_command
from commandline import Parser, exit_code
from utils import format_table, read_json

PYTORCH = ("PyTorch eager", "PyTorch compiled")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    parser = Parser(prog="benchmarks.export_tables", description="Markdown table of the model.json of exported folders")
    return table_command(
        parser, "model.json of an exported folder", "export", lambda paths: render([read(path) for path in paths]), argv
    )


def read(path: Path) -> dict[str, Any]:
    """A model.json with times. Raises FileNotFoundError or ValueError, naming the file."""
    from export.folder import MADE_BY  # with torch, whose import takes seconds

    facts = read_json(path)
    if not isinstance(facts, dict) or facts.get("made_by") != MADE_BY or "milliseconds" not in facts:
        raise ValueError(f"{path}: not the model.json of {MADE_BY} with --timing 1")
    return facts


def render(records: Sequence[dict[str, Any]]) -> str:
    """The table, and the machine and versions below it. Raises ValueError for records of several machines."""
    from export import FORMATS

    hardware = {record["hardware"] for record in records}
    if len(hardware) > 1:
        raise ValueError(f"times of several machines cannot be compared: {'; '.join(sorted(hardware))}")
    titles = [*PYTORCH, *(FORMATS[name].title for name in FORMATS)]
    header = ["ms an image", "batch", *titles, "map differs by", "equal decisions"]
    rows = [row for record in records for row in rows_of(record, titles)]
    packages = ("torch", "onnxruntime", "openvino")
    versions = {f"{name} {r['versions'][name]}" for r in records for name in packages if name in r["versions"]}
    where = [", ".join(sorted({r[key] for r in records})) for key in ("hardware", "revision")]
    sizes = ", ".join(sorted({f"{r['image_size']} pixels" for r in records}))
    return (
        f"{format_table(header, rows, markdown=True)}\n\n{where[0]}; {sizes}; {', '.join(sorted(versions))}; "
        f"revision {where[1]}."
    )


def rows_of(record: dict[str, Any], titles: Sequence[str]) -> Iterator[list[str]]:
    """A row for each batch size; in parentheses the speed-up against eager PyTorch."""
    times, parities = record["milliseconds"], [model["parity"] for model in record["models"].values()]
    first = [f"`{record['variant']}`, `{record['net']}`", worst(p["map"] for p in parities), decisions(parities)]
    for batch, eager in times[PYTORCH[0]].items():
        cells = [_cell(times.get(title, {}).get(batch), None if title == PYTORCH[0] else eager) for title in titles]
        yield [first[0], batch, *cells, *first[1:]]
        first = ["", "", ""]


def _cell(found: float | None, eager: float | None) -> str:
    if found is None:
        return "-"
    return f"{found:.1f}" + ("" if eager is None else f" ({eager / found:.1f} x)")


def worst(differences: Iterable[float]) -> str:
    """The largest difference."""
    return f"{max(differences):.0e}"


def decisions(parities: Sequence[dict[str, Any]]) -> str:
    """Of the runtime with the fewest equal decisions, out of those that are no ties."""
    if parities[0]["decisions"] is None:
        return "no threshold"
    fewest = min(parities, key=lambda parity: parity["decisions"])
    return f"{fewest['decisions']} of {fewest['images'] - fewest['ties']}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
