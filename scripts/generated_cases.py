"""Damaged run files, masks in all forms and hostile command lines, drawn at random.

Each must end in a result or in one line:

    python -m scripts.generated_cases --count 3000

A case is a failure where another error than ValueError or OSError comes out, where its text is not one line that names
the file, and where a checkpoint or a mask is taken whose values are not those that were saved. Exit code 1 with
failures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from commandline import Parser, exit_code
from utils import format_table


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        prog="scripts.generated_cases", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, metavar="N", default=300, help="cases of each kind (300)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="number of the first case (0)")
    given = parser.parse_args(argv)
    from scripts.damaged_files import CASES, run_cases  # with torch, whose import takes seconds

    rows, failures = [], []
    for name in CASES:
        counts, failed = run_cases(name, given.count, given.seed)
        rows.append([name, *(str(counts[key]) for key in ("taken", "refused", "failed"))])
        failures += failed
    for failure in failures:
        print(failure)
    print(format_table(["cases", "taken", "refused", "failed"], rows))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
