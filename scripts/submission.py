"""Write or check an upload for the server of MVTec AD 2.

    python -m scripts.submission RUNS --out submission.tar.gz
    python -m scripts.submission --check submission.tar.gz --data_path D

RUNS holds a finished run of each class, or one model over all. Both private test sets are predicted on: float16 maps of
the images' full size, and those thresholded at the run's own pixel threshold. --check looks at an archive, or at the
folder that it is made of, whoever made it: names, counts, types, sizes, values. Exit code 1: it is no whole submission.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from commandline import Parser, exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or OSError on user errors."""
    parser = Parser(
        prog="scripts.submission", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUNS", nargs="*", type=Path, help="run folders, or folders that contain some")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the archive to write, .tar.gz")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of each class the run of this seed, where it has several"
    )
    parser.add_argument("--check", metavar="PATH", type=Path, help="an archive, or a folder, to check")
    parser.add_argument("--data_path", type=Path, help="where the benchmark lies now; --check compares sizes with it")
    parser.add_argument("--weights", help="the teacher's weights file, where it has moved")
    parser.add_argument("--device", help="auto, cpu, cuda, ... (default: the run's)")
    parser.add_argument("--workers", type=int, help="threads that read images ahead")
    given = parser.parse_args(argv)
    names = ("weights", "device", "workers")
    changes = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.check is not None:
        if given.runs or given.out is not None or given.seed is not None or changes:
            parser.error("--check goes with --data_path alone")
        return check(given.check, given.data_path)
    if not given.runs or given.out is None:
        parser.error("give RUNS and --out FILE, or --check PATH")
    from submission.writer import choose_runs, write_submission

    if given.data_path is not None:
        changes["data_path"] = given.data_path
    print(write_submission(choose_runs(given.runs, given.seed), given.out, changes))
    return 0


def check(path: Path, root: Path | None) -> int:
    """Print what is wrong with a submission, a line each; returns 1 where something is."""
    from submission.checker import check_submission
    from submission.layout import private_counts

    counts = private_counts()
    problems = check_submission(path, {} if root is None else dict.fromkeys(counts, root))
    for problem in problems:
        print(problem)
    whole = f"a whole submission: {2 * sum(counts.values())} images of {len(counts)} classes"
    print(f"problems: {len(problems)}" if problems else whole)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
