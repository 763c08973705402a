"""A command that makes a Markdown table of files, and writes it into a page between two markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from commandline import Parser
from report.rendering import into_page
from utils import write_atomically


def table_command(
    parser: Parser, files: str, marker: str, table: Callable[[Sequence[Path]], str], argv: Sequence[str] | None
) -> int:
    """Print the table of the files that are given, and with --into write it into that page; returns the exit code.

    `files` is the help on the files, `marker` the default of --marker. Raises ValueError or FileNotFoundError as
    `table`, and for a page without the markers.
    """
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help=files)
    parser.add_argument(
        "--into", metavar="PAGE", type=Path, help="also write the table into this page, such as docs/speed.md"
    )
    parser.add_argument(
        "--marker",
        default=marker,
        help=f"between the page's lines <!-- table:MARKER --> and <!-- /table:MARKER --> ({marker})",
    )
    given = parser.parse_args(argv)
    markdown = table(given.files)
    if given.into is not None:
        write_atomically(given.into, into_page(given.into, given.marker, markdown))
    print(markdown)
    return 0
