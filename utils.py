"""What any repository could use: seeding, devices, atomic writes, hashes, a prefetching map, tables, versions."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import random
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def seed_everything(*parts: object) -> int:
    """Seed Python, NumPy and torch from the parts, e.g. (seed, class name, epoch); returns the 32-bit seed used.

    The seed is a checksum of the parts' text, so it is the same on every machine and in every process.
    """
    seed = zlib.crc32("\x1f".join(map(str, parts)).encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU. Raises ValueError where the device asked for is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: not available on this machine ({reason}); use auto or cpu") from None
    return device


def set_determinism(wanted: bool) -> None:
    """Allow only operations that repeat to the bit, or let the libraries choose the fastest.

    On a GPU fp32 means fp32 either way: TF32, which torch allows for convolutions, is off. bf16 is there for speed.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


def to_device(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on the device; a GPU gets it from pinned memory while the processor goes on."""
    tensor = torch.from_numpy(pixels)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next request, instead of mapping every large tensor anew.

    On a processor a training step then spends no time on page faults (a fifth of it otherwise), for about a tenth more
    memory. Does nothing with other C libraries.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a whole file or nothing: into a neighbor first, flushed to the disk, then renamed over `path`.

    `content` is text, bytes, or a function that writes the file it is given (torch.save, say).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits. Raises FileNotFoundError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prefetch_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` on `workers` threads, in order, at most 2 x workers results ahead of the reader; 0 workers: plain map."""
    if workers < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # the reader stopped early, or an item failed
                future.cancel()


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Text cells -> an aligned table: first column left, the others right; as Markdown on request."""
    least = 3 if markdown else 1  # Markdown wants dashes beside the colon that aligns a column
    widths = [max(least, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    dashes = ["-" * widths[0], *("-" * (w - 1) + ":" if markdown else "-" * w for w in widths[1:])]
    return "\n".join([line(header), line(dashes), *map(line, rows)])


def code_revision() -> str:
    """The git revision of the code beside this file, with '+changes' where files differ from it, or 'unknown'."""
    folder = Path(__file__).parent
    try:
        revision, changes = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("+changes" if changes.strip() else "")


def environment_info() -> dict[str, Any]:
    """Versions and hardware, to be recorded beside a result."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    threads = torch.get_num_threads()
    hardware = [f"{processor}, {threads} thread{'s' if threads > 1 else ''}"]
    if torch.cuda.is_available():
        hardware.append(torch.cuda.get_device_name())
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"versions": versions, "hardware": "; ".join(hardware)}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
