"""General functions: seeding, devices, atomic writes, folders, strict JSON, hashes, a prefetching map, versions."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import unicodedata
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

if TYPE_CHECKING:  # torch takes seconds: the functions below that need it import it themselves
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def seed_everything(*parts: object) -> int:
    """Seed Python, NumPy and torch from the parts, e.g. (seed, class name, epoch); returns the 32-bit seed.

    The seed is a checksum of the text of the parts, so it is the same on every machine and in every process.
    """
    import torch

    seed = zlib.crc32("\x1f".join(map(str, parts)).encode(errors="surrogateescape"))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, or else the CPU. Raises ValueError where the named device is not available."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.ones(1, device=device).sum())  # on the device "meta", tensors have no values
    except Exception as error:  # each backend that is missing has its own kind
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        raise ValueError(f"--device {name}: not available on this machine ({reason}); use auto or cpu") from None
    return device


def describe_device(device: torch.device) -> str:
    """cpu (2 threads); cuda (NVIDIA H100)."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)


def set_determinism(wanted: bool) -> None:
    """Allow only deterministic operations, or let the libraries choose the fastest ones.

    TF32 is off in both cases, so fp32 on a GPU is fp32; torch would allow TF32 for convolutions.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != wanted:  # the call imports torch's compiler, for seconds
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


def to_device(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device. The copy to a GPU is asynchronous, from pinned memory."""
    import torch

    tensor = torch.from_numpy(pixels)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next allocation, instead of mapping memory for every large tensor.

    A training step on a processor then spends no time on page faults (otherwise a fifth of the step), for about a tenth
    more memory. With other C libraries this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def set_up_libraries(deterministic: bool, fast: bool) -> None:
    """What the settings of a run ask of torch and of the C library; it holds for the whole process."""
    set_determinism(deterministic)
    if fast:
        keep_freed_memory()


def write_atomically(
    path: Path, content: str | bytes | Callable[[BinaryIO], object], check: Callable[[], object] | None = None
) -> None:
    """Write the whole file or nothing: a temporary file beside it is flushed to disk, then renamed to `path`.

    `content` is text, bytes, or a function that writes to the file that it is given (such as torch.save). Text that is
    not UTF-8, such as the name of a file, is written as the bytes that it was read from. `check` is called just before
    the file is renamed, and again where it has gone meanwhile: what it raises stops that. Raises OSError naming `path`.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check()
            try:
                partial.replace(path)
            except FileNotFoundError:
                if check is not None:
                    check()
                raise
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as problem:
        # torch.save makes a RuntimeError of the error that its file raised, and of a signal that came amid
        cause = problem if isinstance(problem, OSError) else problem.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from problem


def read_json(path: Path) -> Any:
    """The content of a JSON file: UTF-8, finite numbers, no key twice. Raises OSError or ValueError naming it."""
    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        return json.loads(
            path.read_bytes().decode(),
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_unrepeated,
        )
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not valid JSON (not UTF-8 at byte {problem.start})") from None
    except ValueError as problem:
        raise ValueError(f"{path}: not valid JSON ({problem})") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deeply)") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is not finite")
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def partial_path(path: Path) -> Path:
    """.NAME.PID@HOST.partial beside the path; a name for which there would be no room is replaced by its checksum."""
    name = path.name if len(os.fsencode(path.name)) <= 150 else f"{zlib.crc32(os.fsencode(path.name)):08x}"
    return path.with_name(f".{name}.{os.getpid()}@{socket.gethostname()[:64]}.partial")


def sweep_partials(folder: Path, of_all: bool = False) -> None:
    """Remove what killed processes left in the folder in the middle of `write_atomically`, folders as well as files.

    What is of a process that is alive is not touched, nor what is of another host unless it is a day old; `of_all`:
    that too. Where nothing can be removed, it stays.
    """
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if of_all or _is_abandoned(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_abandoned(path: Path) -> bool:
    """Whether the process that wrote a .partial file is gone. Raises OSError where the file is gone itself."""
    owner = re.search(r"\.(\d+)(?:@(.+))?\.partial$", path.name)
    if owner is None:  # not a name of ours
        return False
    if owner[2] not in (None, socket.gethostname()[:64]):
        return time.time() - path.lstat().st_mtime > 24 * 3600
    return not is_alive(int(owner[1]))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there; True where that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def walk_folders(root: Path) -> Iterator[Path]:
    """`root` and all folders below it, each once, also through symbolic links; those last, links in a circle never.

    A link to a folder that holds `root` is not followed: what lies beside `root` is not below it. Raises OSError where
    a folder cannot be read.
    """

    def fail(problem: OSError) -> None:
        if not isinstance(problem, FileNotFoundError | NotADirectoryError):  # it vanished meanwhile
            raise problem

    own, seen, waiting = root.resolve(), set(), deque([root])
    while waiting:
        for place, names, _ in os.walk(waiting.popleft(), onerror=fail):
            folder = Path(place)
            target = folder.resolve()
            if target in seen or target in own.parents:
                names.clear()
                continue
            seen.add(target)
            names.sort()
            waiting.extend(folder / name for name in names if (folder / name).is_symlink())
            yield folder


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits. Raises FileNotFoundError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Pulse:
    """`count` grows with every step of work, an image read or a batch: it stands still where the process hangs."""

    def __init__(self) -> None:
        self.count = 0

    def beat(self) -> None:
        """A step of work is done."""
        self.count += 1


PULSE = Pulse()


def prefetch_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` on `workers` threads; results come in order. With 0 workers it is plain `map`.

    At most 2 x `workers` results are computed ahead of the one that is taken.
    """
    for result in _prefetched(function, items, workers):
        PULSE.beat()
        yield result


def _prefetched(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
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
            for future in waiting:  # where the caller stopped early, or an item failed
                future.cancel()


def ragged(arrays: Iterable[Any]) -> np.ndarray:
    """Arrays of any shapes -> one array (n,) of them, which is indexed and cut into views as a dense one is."""
    items = list(arrays)
    found = np.empty(len(items), object)
    for i, item in enumerate(items):
        found[i] = item
    return found


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Cells of text -> an aligned table: the first column to the left, the others to the right.

    For a terminal the cells are made `printable`; for Markdown they must be escaped already.
    """
    if not markdown:
        header, rows = list(map(printable, header)), [list(map(printable, row)) for row in rows]
    least = 3 if markdown else 1  # Markdown needs dashes beside the colon that aligns a column
    widths = [max(least, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    dashes = ["-" * widths[0], *("-" * (w - 1) + ":" if markdown else "-" * w for w in widths[1:])]
    return "\n".join([line(header), line(dashes), *map(line, rows)])


def terminal_width() -> int:
    """Columns of the terminal on standard output, or COLUMNS where that is set; 80 where there is neither."""
    return shutil.get_terminal_size().columns


def printable(text: Path | str) -> str:
    """The text or path in one line: line feeds, other control characters and bytes that are not UTF-8 are escaped."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """A line feed -> \\n, an escape character -> \\x1b, a stray byte 255 -> \\xff."""
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode() if unicodedata.category(character)[0] == "C" else " "


def code_revision() -> str:
    """The git revision of this code, with '+changes' where tracked files differ from it; 'unknown' without git."""
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
    """Versions and hardware, to be recorded with a result."""
    import torch

    processor = next(
        (
            line.partition(":")[2].strip()
            for line in _read_lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    threads = torch.get_num_threads()
    hardware = [f"{processor}, {threads} thread{'s' if threads > 1 else ''}"]
    if torch.cuda.is_available():
        hardware.append(torch.cuda.get_device_name())
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"versions": versions, "hardware": "; ".join(hardware)}


def _read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
