"""The tables at the end of a command, made from the folders of its runs and never from what one process remembers."""

from __future__ import annotations

from collections.abc import Sequence

from config import Config
from report.comparison import compare, render_comparison
from report.rendering import update_tables
from report.results import collect
from run_files.lock import FolderLock
from utils import terminal_width, write_atomically


def close_tables(runs: Sequence[Config], oracle: bool = False) -> str:
    """Write the tables of each folder of runs, and with several of them comparison.md above; returns the text.

    With several folders that text is the comparison alone. Raises as `report.collect`.
    """
    folders = list(dict.fromkeys(run.sweep_folder for run in runs))
    texts = [update_tables(folder, oracle) for folder in folders if folder.is_dir()]
    if len(folders) == 1:
        return f"{texts[0]}\n\ntables and runs: {folders[0]}"
    page = folders[0].parent / "comparison.md"
    with FolderLock(page.parent, wait=True):
        tables = compare(collect([folder for folder in folders if folder.is_dir()]))
        write_atomically(page, render_comparison(tables, markdown=True) + "\n")
    text = render_comparison(tables, width=terminal_width())
    return f"{text}\n\nthis table: {page}\ntables and runs: {', '.join(map(str, folders))}"
