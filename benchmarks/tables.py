"""A Markdown table of the files that benchmarks.run wrote: python -m benchmarks.tables docs/speed/*.json

With --into docs/speed.md it goes between that page's lines <!-- table:speed --> and <!-- /table:speed -->.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.pages import table_command
from benchmarks.run import COMPARED, HEADER, cells
from benchmarks.sections import Row
from benchmarks.timing import Quartiles
from commandline import Parser, exit_code
from utils import format_table

COLUMNS = """Seconds: the median of the rounds (the section metrics has half as many, growth and memory one). Speed-up:
the median of the ratios of each round, with their quartiles.
GFLOP: matrix products and convolutions. % of peak: of the fastest rate that the machine reached in a large matrix
product or convolution. GiB: the peak memory of the process, libraries included.
Max relative error: of the first result against the reference's; losses and metrics relative to the number, anomaly
maps relative to their range."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    parser = Parser(prog="benchmarks.tables", description="Markdown table of files written by benchmarks.run")
    return table_command(
        parser, "written by benchmarks.run --out", "speed", lambda paths: render([read(path) for path in paths]), argv
    )


def read(path: Path) -> dict[str, Any]:
    """The record in a file. Raises FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; python -m benchmarks.run --out {path} writes it")
    record = json.loads(path.read_text())
    if not {"rows", "peaks", "settings"} <= set(record):
        raise ValueError(f"{path}: not written by benchmarks.run --out")
    return record


def render(records: Sequence[dict[str, Any]]) -> str:
    """One table of all records, then a line on how each of them was measured."""
    lines, notes = [], []
    for record in records:
        rows = [parse_row(saved) for saved in record["rows"]]
        settings = record["settings"]
        suffix = " (one process)" if settings.get("one_process") else ""
        if limit := settings.get("limited_to"):
            suffix += f" (limited to {limit})"
        for row in rows:
            title, *rest = cells(row, record["peaks"])
            lines.append([title + suffix, *rest])
        notes.append(f"- {', '.join(dict.fromkeys(row.section for row in rows))}{suffix}: {conditions(record)}")
    return format_table(HEADER, lines, markdown=True) + f"\n\n{COLUMNS}\n\n" + "\n".join(notes)


def conditions(record: dict[str, Any]) -> str:
    """The sizes, hardware, versions and revision of a record."""
    settings = record["settings"]
    peaks = [f"{name} {max(rates.values()):.0f} GFLOP/s" for name, rates in record["peaks"].items()]
    names = " ".join(row["name"] for row in record["rows"])
    packages = (
        "python",
        "torch",
        "numpy",
        *(name for name in COMPARED if name in names and name in record["versions"]),
    )
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in packages)
    sizes = f"{settings['net']}, {settings['image_size']} pixels, batch {settings['batch_size']}"
    return (
        f"{sizes}, {settings['images']} images, {settings['repeats']} rounds, {record['hardware']}, "
        f"peak {', '.join(peaks)}, {versions}, revision {record['revision']}"
    )


def parse_row(saved: dict[str, Any]) -> Row:
    """A row as `dataclasses.asdict` wrote it."""
    values = {field.name: saved[field.name] for field in fields(Row)}
    for name in ("seconds", "ratio"):
        values[name] = None if values[name] is None else Quartiles(**values[name])
    return Row(**values)


if __name__ == "__main__":
    sys.exit(exit_code(main))
