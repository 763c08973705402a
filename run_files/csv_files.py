"""CSV files that a spreadsheet shows as text, and from which every name can be read back.

A cell of text that begins like a formula (=, +, -, @, tab, line feed, carriage return) and is no number gets an
apostrophe in front, as OWASP advises against CSV injection; one that has such an apostrophe of its own gets another. A
relative path gets ./ in front instead, so that it still leads to its file. Names that are not UTF-8 keep their bytes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are the full-width = + - @


def safe_cell(value: Any) -> Any:
    """A value as a cell; numbers, None and harmless text stay as they are."""
    if isinstance(value, Path):
        return f"./{value}" if FORMULA.match(str(value)) else str(value)
    if isinstance(value, str) and FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def cell_text(cell: str) -> str:
    """The text that `safe_cell` made the cell of; a path is one already."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def csv_line(values: Iterable[Any]) -> str:
    """A line of a CSV file with its line feed."""
    text = io.StringIO()
    # with this terminator every version of Python quotes cells that hold a carriage return
    csv.writer(text, lineterminator="\r\n").writerow(map(safe_cell, values))
    return text.getvalue().removesuffix("\r\n") + "\n"


def to_csv(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """The text of a CSV file."""
    return "".join(map(csv_line, [header, *rows]))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of such a file, by column, as they were before `safe_cell`; cells that a row lacks are empty.

    Raises FileNotFoundError, and ValueError naming the file for what is no such file.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        table, rows = csv.DictReader(file, restval=""), []
        try:
            for row in table:
                if None in row:
                    raise ValueError(f"line {table.line_num} has more cells than there are columns")
                rows.append({name: cell_text(cell) for name, cell in row.items()})
        except (ValueError, csv.Error) as problem:
            raise ValueError(f"{path}: a damaged CSV file ({problem})") from None
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
