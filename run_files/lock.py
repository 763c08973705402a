"""One writer at a time: a locked file in a folder, which names its owner."""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import sys
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system without locks


class Busy(OSError):
    """Another process writes this folder; the text names it."""


class FolderLock:
    """`with FolderLock(folder):` nobody else who asks for it writes `folder` meanwhile.

    The file `.lock` is locked by `flock`, which ends with the process, however that ends; its content names host,
    process and time. It is removed on leaving. Raises Busy where another process holds it; with `wait`, waits for it.
    Makes the folder where it is missing. Where the file system has no locks, it says so and locks nothing. Raises
    OSError where files cannot be written.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.path, self.wait = folder / LOCK, wait
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
                if self._is_current(descriptor):
                    self._descriptor = descriptor
            except OSError as problem:
                if problem.errno in NO_LOCKS:
                    self._descriptor = descriptor
                    print(f"{self.path.parent}: files cannot be locked there: start one process only", file=sys.stderr)
                    continue
                if not isinstance(problem, BlockingIOError):
                    raise
                raise Busy(f"{self.path.parent}: {self._owner(descriptor)} writes it now") from None
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        self.path.unlink(missing_ok=True)  # while it is still locked: whoever waits for it sees that it is gone
        os.close(self._descriptor)
        self._descriptor = None

    def _is_current(self, descriptor: int) -> bool:
        """Whether the locked file is still the one at the path; its last owner removed it otherwise."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    @staticmethod
    def _owner(descriptor: int) -> str:
        """The owner in words."""
        try:
            owner = json.loads(os.pread(descriptor, 1000, 0))
            return f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
        except (ValueError, KeyError, TypeError):  # it has locked the file and not yet written
            return "another process"
