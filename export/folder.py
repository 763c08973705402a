"""The folder of an export appears whole or not at all, and replaces nothing but an earlier export."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from utils import partial_path, read_json, sweep_partials

FACTS, PREDICT = "model.json", "predict.py"
MADE_BY = "python -m scripts.export"


def check_target(target: Path) -> None:
    """Raises ValueError for a folder that is not ours to replace: one that holds more than an export's own files."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise ValueError(f"--out {target}: is no folder; give another one")
    names = {path.name for path in target.iterdir()} - {"__pycache__"}
    others = sorted(names - _own_files(target))
    if others:
        raise ValueError(f"--out {target}: holds {', '.join(others[:3])}, not of an export; give another folder")


def _own_files(folder: Path) -> set[str]:
    """The files that an earlier export wrote into the folder; none where there was none."""
    try:
        record = read_json(folder / FACTS)
        return {FACTS, *record["files"]} if record["made_by"] == MADE_BY else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextlib.contextmanager
def replace_when_whole(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it at the end; removed where the block raises.

    Raises ValueError as `check_target`.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_partials(target.parent)
    partial, old = partial_path(target), partial_path(target.with_name(f"{target.name}.old"))
    try:
        partial.mkdir()
        yield partial
        check_target(target)  # it took a while
        if target.exists():
            target.replace(old)
        try:
            partial.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
