"""The teacher's levels of many images in memory-mapped files, made once and shared by all runs that need the same.

A folder per key, named by its hash: `key.json` says what the levels were made of, `level0` to `level2` hold them,
(N, H, W, C) without a header. A folder is filled under another name and renamed when it is whole, so what lies under
its own name is complete, whoever else was filling at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEY = "key.json"


def stored_levels(
    root: Path, key: Mapping[str, Any], count: int, like: Sequence[Tensor], fill: Callable[[list[Tensor]], None]
) -> list[Tensor]:
    """Levels of `count` images, each (N, C, H, W) laid out channels last, as `like`'s (1, C, H, W): read or made.

    `key` is all that decides them, as JSON takes it. `fill` writes all levels into the tensors it is given. What lies
    there under the same hash with another key or size is not used but made again.
    """
    text = json.dumps({**key, "count": count, "levels": [[str(x.dtype), *x.shape[1:]] for x in like]}, indent=1)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
    if not _holds(folder, text, count, like):
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fill(_mapped(partial, count, like, writable=True))
            (partial / KEY).write_text(text)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                partial.rename(folder)
            except OSError:  # another process was as fast
                if not _holds(folder, text, count, like):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _mapped(folder, count, like, writable=False)


def bytes_of(count: int, like: Sequence[Tensor]) -> int:
    """How much `count` images' levels take, in memory or in a file."""
    return count * sum(level[0].numel() * level.element_size() for level in like)


def _holds(folder: Path, text: str, count: int, like: Sequence[Tensor]) -> bool:
    if not (folder / KEY).is_file() or (folder / KEY).read_text() != text:
        return False
    files = [(folder / f"level{k}", bytes_of(count, [level])) for k, level in enumerate(like)]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def _mapped(folder: Path, count: int, like: Sequence[Tensor], writable: bool) -> list[Tensor]:
    levels = []
    for k, level in enumerate(like):
        _, channels, height, width = level.shape
        size = count * channels * height * width
        flat = torch.from_file(str(folder / f"level{k}"), shared=writable, size=size, dtype=level.dtype)
        levels.append(flat.view(count, height, width, channels).permute(0, 3, 1, 2))
    return levels
