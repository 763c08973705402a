"""Names in Markdown: what a folder, a flag or a file supplied stays text there, whatever characters it has."""

from __future__ import annotations

import re

from utils import printable

# Characters that Markdown or HTML could read as markup; _ only at the edge of a word, where it can be emphasis.
MARKUP = re.compile(r"[&<>\\`*~\[\]]|(?<![^\W_])_|_(?![^\W_])")


def shown(text: str, markdown: bool) -> str:
    """A name, or a line with names, as one line that shows its characters: markup as HTML entities in Markdown.

    Line feeds and other control characters are shown escaped (`printable`), also on a terminal.
    """
    line = printable(text)
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", line) if markdown else line


def shown_cell(text: str, markdown: bool) -> str:
    """The same for a cell of a table, in which | is markup too."""
    line = shown(text, markdown)
    return line.replace("|", f"&#{ord('|')};") if markdown else line
