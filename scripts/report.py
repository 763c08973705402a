"""One HTML page over finished runs: python -m scripts.report RUNS [RUNS ...] [--out DIR]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commandline import Parser, exit_code
from report.page import write_page
from report.results import collect_runs, unfinished
from utils import printable


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or OSError on user errors."""
    parser = Parser(prog="scripts.report", description="Write report.html over finished runs, and curves.csv")
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="run folders, or folders that contain some")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the page goes (default: the first RUNS folder)")
    given = parser.parse_args(argv)
    runs, left_out = collect_runs(given.runs), unfinished(given.runs)
    if not runs:
        places = printable(", ".join(map(str, given.runs)))
        raise ValueError(
            f"no finished run under {places} ({len(left_out)} unfinished): a finished run has a metrics.json"
        )
    print(f"page: {printable(write_page(runs, given.out or given.runs[0], left_out))}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
