"""Print and save tables over finished runs: python -m scripts.summarize RUNS [RUNS ...]

Writes summary.csv, summary.json and summary.md; --into writes the Markdown table between two markers of a file. With
--compare there is a row per variant or --name, in the order of RUNS; then only --out (comparison.md) and --into write
files. --one_table puts several benchmarks, or classes, side by side. --by prints a row per kind of defect, or per
light, view or group, of each class. --verify compares every run with its data instead, and prints what is not as
recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report
from commandline import Parser, exit_code
from report.comparison import compare, compare_places, render_comparison, render_one_table
from report.groups import group_tables, render_groups, titles_in
from report.rendering import add_page_flags, check_page_flags, into_page
from report.results import METRIC_TITLES, collect_runs, finished_runs, unfinished
from report.tables import SETTINGS, summarize
from utils import printable, terminal_width, write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    parser = Parser(prog="scripts.summarize", description="Tables over finished runs, saved as summary.*")
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="run folders, or folders that contain some")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the files go (default: the first RUNS folder)")
    parser.add_argument("--oracle", action="store_true", help="add the metrics of the epoch chosen on the test set")
    parser.add_argument("--compare", action="store_true", help="one table per benchmark, a row per variant or --name")
    parser.add_argument(
        "--swept",
        metavar="SETTING",
        nargs="+",
        choices=SETTINGS,
        default=[],
        help="settings in which compared rows may differ",
    )
    parser.add_argument(
        "--one_table",
        metavar="METRIC",
        nargs="+",
        choices=METRIC_TITLES,
        help="with --compare: one table, with these metrics of each benchmark and set of classes",
    )
    parser.add_argument(
        "--by", metavar="TITLE", help="show the metrics of each kind of defect (defect), light, view or group"
    )
    parser.add_argument("--verify", action="store_true", help="compare every run with its data; see test.py --verify")
    parser.add_argument("--data_path", type=Path, help="with --verify: where the benchmark lies now")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    add_page_flags(parser)
    given = parser.parse_args(argv)
    check_page_flags(parser, given)
    if given.compare and given.oracle:
        parser.error("--oracle goes with the tables by class, not with --compare")
    if given.swept and not given.compare:
        parser.error("--swept goes with --compare")
    if given.one_table and not given.compare:
        parser.error("--one_table goes with --compare")
    if given.by is not None and (given.compare or given.oracle):
        parser.error("--by goes alone: not with --compare or --oracle")
    if given.data_path is not None and not given.verify:
        parser.error("--data_path goes with --verify")
    if given.verify:
        return verify_runs(given.runs, {} if given.data_path is None else {"data_path": given.data_path})

    found, left_out = collect_runs(given.runs), unfinished(given.runs)
    results = [result for _, result in found]
    if not results:
        where = printable(", ".join(map(str, given.runs)))
        raise ValueError(
            f"no finished run under {where} ({len(left_out)} unfinished): a finished run has a metrics.json"
        )
    if given.one_table:
        places = compare_places(found, given.runs, given.swept)
        text = render_one_table(places, given.one_table, width=terminal_width())
        markdown = render_one_table(places, given.one_table, markdown=True)
    elif given.compare:
        tables = compare(results, given.swept)
        text = render_comparison(tables, width=terminal_width())
        markdown = render_comparison(tables, markdown=True)
    elif given.by is not None:
        split = group_tables(results, [given.by])
        if not split:
            known = ", ".join(titles_in(results)) or "none"
            raise ValueError(f"--by {printable(given.by)}: no run has metrics by that; the runs have: {known}")
        by_group, markdown = render_groups(split, width=terminal_width()), render_groups(split, markdown=True)
    else:
        markdown = report.render(summarize(results), markdown=True, oracle=given.oracle)
    if given.into is not None:  # before anything is written, since markers may be missing
        page = into_page(given.into, given.marker, markdown)
    if not given.compare:
        text = report.update_tables(given.out or given.runs[0], given.oracle, given.runs)
        text = text if given.by is None else by_group
    elif given.out is not None:
        write_atomically(given.out / "comparison.md", markdown + "\n")
    if given.into is not None:
        write_atomically(given.into, page)
    print(markdown if given.markdown else text)
    if left_out:
        print(f"note: unfinished and left out: {printable(', '.join(map(str, left_out)))}", file=sys.stderr)
    return 0


def verify_runs(roots: Sequence[Path], changes: Mapping[str, Any]) -> int:
    """Print for every finished run whether it is as recorded, and what is not; returns 1 where one is not."""
    from verification import Check, verify  # with torch, whose import takes seconds

    folders = finished_runs(roots)
    if not folders:
        raise ValueError(f"no finished run under {', '.join(map(str, roots))}")
    verified = 0
    for folder in folders:
        try:
            different = [check for check in verify(folder, **changes) if check.ok is False]
        except (OSError, ValueError) as problem:
            different = [Check("run", False, str(problem))]
        verified += not different
        print(f"{'DIFFERENT' if different else 'ok':<12}  {folder}", flush=True)
        for check in different:
            print(f"    {check}")
    print(f"{verified} of {len(folders)} runs verified")
    return 0 if verified == len(folders) else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
