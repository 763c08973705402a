"""Is A better than B? Paired tests over finished runs: python -m scripts.compare RUNS_A RUNS_B [RUNS_C ...]

Every name of runs below the folders is a method; the first is compared with each of the others, by class and seed, on
the same test images. docs/comparing.md says what each test asks. --into writes the Markdown between two markers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commandline import Parser, exit_code
from report.difference_tables import differences_json, render_differences
from report.differences import Comparison, compare_sides
from report.page.forest import forest_svg
from report.pairing import by_benchmark, sides_below
from report.rendering import add_page_flags, check_page_flags, into_page
from report.results import METRIC_TITLES, unfinished
from scoring.intervals import Bootstrap
from utils import printable, terminal_width, write_atomically

METRICS = ("image_auroc", "pixel_auroc", "aupro")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or OSError on user errors."""
    parser = Parser(prog="scripts.compare", description="Is A better than B? Paired tests over finished runs")
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="a folder of runs for each method")
    parser.add_argument(
        "--metrics", nargs="+", choices=[*METRIC_TITLES, "all"], default=METRICS, help=f"default: {' '.join(METRICS)}"
    )
    parser.add_argument(
        "--all_pairs", action="store_true", help="compare all pairs, not only the first with the others"
    )
    parser.add_argument("--level", type=float, default=0.95, metavar="X", help="of the intervals (0.95)")
    parser.add_argument("--replicates", type=int, default=1000, metavar="N", help="of the bootstrap over images (1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything into this file, as fractions")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the differences by class into this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    add_page_flags(parser)
    given = parser.parse_args(argv)
    check_page_flags(parser, given)
    if given.seed < 0:
        parser.error(f"--seed {given.seed}: must be at least 0")
    if given.into is not None:
        into_page(given.into, given.marker, "")  # the markers may be missing: better said now than after the work
    metrics = [name for name in METRIC_TITLES if name in given.metrics or "all" in given.metrics]
    comparisons = compare(given.runs, metrics, Bootstrap(given.level, given.replicates, given.seed), given.all_pairs)
    markdown = render_differences(comparisons, markdown=True)
    if given.json is not None:
        write_atomically(given.json, differences_json(comparisons))
    if given.svg is not None:
        write_atomically(given.svg, forest_svg(comparisons))
    if given.into is not None:
        write_atomically(given.into, into_page(given.into, given.marker, markdown))
    print(markdown if given.markdown else render_differences(comparisons, width=terminal_width()))
    if left_out := unfinished(given.runs):
        print(f"note: unfinished and left out: {printable(', '.join(map(str, left_out)))}", file=sys.stderr)
    return 0


def compare(
    roots: Sequence[Path], metrics: Sequence[str], bootstrap: Bootstrap, all_pairs: bool = False
) -> list[Comparison]:
    """A comparison per benchmark on which there are two methods. Raises as `sides_below` and `compare_sides`."""
    found = [
        compare_sides(sides, metrics, bootstrap, all_pairs)
        for sides in by_benchmark(sides_below(roots)).values()
        if len(sides) > 1
    ]
    if not any(comparison.differences for comparison in found):
        wanted = ", ".join(METRIC_TITLES[name] for name in metrics)
        raise ValueError(f"no metric to compare: on no shared class do all runs have {wanted}; give other --metrics")
    return found


if __name__ == "__main__":
    sys.exit(exit_code(main))
