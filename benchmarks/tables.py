"""The table of a page from what benchmarks.run has written: python -m benchmarks.tables FILE [FILE ...] --into PAGE"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.run import HEADER, cells
from benchmarks.sections import Row
from benchmarks.timing import Quartiles
from commandline import Parser, exit_code
from report.rendering import into_page
from utils import format_table, write_atomically

COLUMNS = """Seconds are medians of the rounds (metrics has half as many, growth and memory one); ratios are those of
each round, with their quartiles.
GFLOP: products and convolutions done. GiB: the most memory that its process held, libraries included.
Off by: the largest difference of the first answer from the one it is against: of losses and metrics as a share of the
number, of maps as a share of their range."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on what a user can mend."""
    parser = Parser(prog="benchmarks.tables", description="Markdown of files that benchmarks.run --out has written")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="written by benchmarks.run --out")
    parser.add_argument("--into", metavar="PAGE", type=Path, help="write the table into this file")
    parser.add_argument("--marker", default="speed", help="between its lines <!-- table:MARKER --> (speed)")
    given = parser.parse_args(argv)
    markdown = render([read(path) for path in given.files])
    if given.into is not None:
        write_atomically(given.into, into_page(given.into, given.marker, markdown))
    print(markdown)
    return 0


def read(path: Path) -> dict[str, Any]:
    """A file's record. Raises FileNotFoundError, ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; python -m benchmarks.run --out {path} makes it")
    record = json.loads(path.read_text())
    if not {"rows", "peaks", "settings"} <= set(record):
        raise ValueError(f"{path}: not written by benchmarks.run --out")
    return record


def render(records: Sequence[dict[str, Any]]) -> str:
    """One table over all files, and a line about each of them."""
    lines, notes = [], []
    for record in records:
        rows = [row_of(saved) for saved in record["rows"]]
        alone = " (one process)" if record["settings"].get("one_process") else ""
        for row in rows:
            title, *rest = cells(row, record["peaks"])
            lines.append([title + alone, *rest])
        notes.append(f"- {', '.join(dict.fromkeys(row.section for row in rows))}{alone}: {about(record)}")
    return format_table(HEADER, lines, markdown=True) + f"\n\n{COLUMNS}\n\n" + "\n".join(notes)


def about(record: dict[str, Any]) -> str:
    """What the metrics were taken with."""
    used = record["settings"]
    peaks = [f"{name} {max(rates.values()):.0f} GFLOP/s" for name, rates in record["peaks"].items()]
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("python", "torch", "numpy"))
    sizes = f"{used['net']}, {used['image_size']} pixels, batch {used['batch_size']}, {used['images']} images"
    return (
        f"{sizes}, {used['repeats']} rounds, {record['hardware']}, peak {', '.join(peaks)}, {versions}, "
        f"revision {record['revision']}"
    )


def row_of(saved: dict[str, Any]) -> Row:
    """A row of the file."""
    values = {field.name: saved[field.name] for field in fields(Row)}
    for name in ("seconds", "ratio"):
        values[name] = None if values[name] is None else Quartiles(**values[name])
    return Row(**values)


if __name__ == "__main__":
    sys.exit(exit_code(main))
