"""SHA-256 of the content of many files: read in parallel, once a process, and kept by a stamp for the next one."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from readers.image_io import check_regular
from utils import file_sha256, prefetch_map, printable, write_atomically

Stamp = tuple[int, ...]  # see file_stamp
RACY_NS = 2_000_000_000  # a file that changed less than this before it was read may change again under the same stamp
VERSION = 1

_known: dict[str, tuple[Stamp, str]] = {}  # by absolute path, of this process


def file_stamp(path: Path) -> Stamp:
    """(device, inode, size, mtime, ctime) of a regular file, times in nanoseconds.

    An exchange that keeps size and mtime (`cp -p`, `touch -r`) still changes inode or ctime. Raises FileNotFoundError,
    and ValueError for what is no regular file (a folder, a FIFO, a device).
    """
    try:
        check_regular(path)
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(path)}: no such file") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def content_hashes(paths: Iterable[Path], store: Path | None = None, workers: int = 8) -> dict[Path, str]:
    """{path: SHA-256 of its content, 64 hexadecimal digits}, read on `workers` threads.

    A file whose stamp is known is not read again: in this process, and with `store`, a JSON file, in later ones. A
    damaged store counts as empty, and one that cannot be written is left out. Raises as `file_stamp`.
    """
    wanted = {path: (os.path.abspath(path), file_stamp(path)) for path in dict.fromkeys(paths)}

    def is_known(path: Path) -> bool:
        key, stamp = wanted[path]
        return key in _known and _known[key][0] == stamp

    if store is not None and not all(map(is_known, wanted)):
        for key, entry in _read_store(store).items():
            _known.setdefault(key, entry)
    missing = [path for path in wanted if not is_known(path)]
    hashes = {path: _known[wanted[path][0]][1] for path in wanted if is_known(path)}
    now = time.time_ns()
    for path, digest in zip(missing, prefetch_map(file_sha256, missing, workers), strict=True):
        hashes[path] = digest
        key, stamp = wanted[path]
        if max(stamp[-2:]) < now - RACY_NS:
            _known[key] = stamp, digest
    if missing and store is not None:
        _write_store(store, {key: _known[key] for key, _ in wanted.values() if key in _known})
    return {path: hashes[path] for path in wanted}


def _read_store(store: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        content = json.loads(store.read_text(encoding="utf-8", errors="surrogateescape"))
        if content["version"] != VERSION:
            return {}
        entries = {str(key): (_stamp(entry[:-1]), str(entry[-1])) for key, entry in content["files"].items()}
        return {key: entry for key, entry in entries.items() if len(entry[1]) == 64}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _stamp(values: Any) -> Stamp:
    return tuple(int(value) for value in values)


def _write_store(store: Path, known: dict[str, tuple[Stamp, str]]) -> None:
    content = {"version": VERSION, "files": {key: [*stamp, digest] for key, (stamp, digest) in known.items()}}
    with contextlib.suppress(OSError):  # a full or read-only disk: the files are read again next time
        write_atomically(store, json.dumps(content).encode())
