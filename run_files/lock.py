"""One writer at a time: a locked file in a folder, which names its owner and shows that it is alive.

On one host or on many that share the folder. A lock ends with its process where files can be locked (`flock`). Where
they cannot, or where a process has stopped without ending, it ends when its owner has shown no sign of life for some
minutes; another process may then take the folder over, and the first one finds out before it writes again.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from utils import is_alive, partial_path, sweep_partials

try:
    import fcntl
except ImportError:  # not a POSIX system: files are not locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
EXPIRES = 600.0  # seconds without a sign of life after which a lock is void
SIGNS = 20  # of life within that time
WAITS = 0.02, 0.5  # seconds between two attempts: at first, and at most
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system without locks


class Busy(OSError):
    """Another process writes this folder; the text names it."""


class Lost(Busy):
    """Another process has taken this folder over, and what is done here must not be written."""


class FolderLock:
    """`with FolderLock(folder):` nobody else who asks for it writes `folder` meanwhile.

    The file `.lock` names host, process and time, and its time of change is the last sign of life. It is removed on
    leaving. Raises Busy where another process holds it; with `wait`, waits for it. Makes the folder where it is
    missing. Raises OSError where files cannot be written.

    expires  seconds without a sign of life after which others may take the folder over
    work     a number that changes as long as the owner works: a process that hangs shows no sign of life either

    A folder is taken over in this order: the lock file is replaced, then what the last owner was writing is removed. An
    owner who writes a temporary file, then calls `check`, then renames it, therefore never writes over its successor:
    either `check` sees the new lock, or the temporary file is gone.
    """

    def __init__(
        self, folder: Path, wait: bool = False, expires: float = EXPIRES, work: Callable[[], int] | None = None
    ) -> None:
        self.path, self.wait, self.expires, self.work = folder / LOCK, wait, expires, work
        self._descriptor: int | None = None
        self._left = threading.Event()
        self._looked = -float("inf")  # when it was last looked whether the owner is alive

    def __enter__(self) -> FolderLock:
        self._claim()
        self._left.clear()
        self._thread = threading.Thread(target=self._show_life, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        self._left.set()
        self._thread.join()
        if self._is_current(self._descriptor):
            self.path.unlink(missing_ok=True)  # while it is still locked: whoever waits for it sees that it is gone
        os.close(self._descriptor)
        self._descriptor = None

    def check(self) -> None:
        """Raises Lost where another process has taken the folder over. A folder that was removed is made again."""
        assert self._descriptor is not None, "enter first"
        if self._is_current(self._descriptor):
            return
        folder = self.path.parent
        if folder.exists():
            owner = self._owner()
            raise Lost(f"{folder}: taken over by {owner}, since this process showed no sign of life for too long")
        before, self._descriptor = self._descriptor, None
        os.close(before)
        self._claim()

    def _claim(self) -> None:
        pause, longest = WAITS
        while self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._attempt()
            if self._descriptor is None:
                if not self.wait:
                    raise Busy(f"{self.path.parent}: {self._owner()} writes it now")
                time.sleep(pause)
                pause = min(2 * pause, longest)

    def _attempt(self) -> int | None:
        """The descriptor of the lock file, which is ours from now on; None where another process has it."""
        for _ in range(1000):  # an owner who leaves at this very moment is no owner
            try:
                descriptor, is_new = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                try:
                    descriptor, is_new = os.open(self.path, os.O_RDWR), False
                except FileNotFoundError:
                    continue
            try:
                if not _lock(descriptor, is_new):
                    os.close(descriptor)
                    return self._take_over() if self._is_void() else None
            except OSError:
                os.close(descriptor)
                raise
            if self._is_current(descriptor):
                return self._sign(descriptor)
            os.close(descriptor)
        return None

    def _sign(self, descriptor: int) -> int:
        """Write into the lock file who we are."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "since": now}
        owner["expires"] = self.expires
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        return descriptor

    def _is_void(self) -> bool:
        """Whether the owner of the lock file has ended, or has shown no sign of life for too long."""
        if time.monotonic() - self._looked < self.expires / SIGNS:
            return False
        self._looked = time.monotonic()
        return is_void(self.path)

    def _take_over(self) -> int | None:
        """Put our own lock file in place of one that is void, and remove what its owner was writing.

        None where another process was quicker.
        """
        own = partial_path(self.path)
        descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        _lock(descriptor, is_new=True)
        self._sign(descriptor)
        with contextlib.suppress(FileNotFoundError):  # another process takes over, and has removed it
            os.replace(own, self.path)
            time.sleep(WAITS[1])  # who found the lock void at the same time has replaced it by now
            if self._is_current(descriptor):
                print(f"{self.path.parent}: taken over from a process that shows no sign of life", file=sys.stderr)
                sweep_partials(self.path.parent, of_all=True)
                return descriptor
        os.close(descriptor)
        return None

    def _show_life(self) -> None:
        """Touch the lock file again and again, as long as there is work done."""
        pause = self.expires / SIGNS
        before, idle = None, 0.0
        while not self._left.wait(pause):
            now = None if self.work is None else self.work()
            idle = idle + pause if now is not None and now == before else 0.0
            before = now
            descriptor = self._descriptor
            if idle < self.expires and descriptor is not None:
                with contextlib.suppress(OSError):
                    os.utime(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Whether the file is still the one at the path: its last owner removed it otherwise, or somebody took over."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except OSError:
            return False

    def _owner(self) -> str:
        """The owner in words."""
        owner = _read_owner(self.path)
        return f"process {owner['pid']} on {owner['host']} (since {owner['since']})" if owner else "another process"


def is_void(path: Path) -> bool:
    """Whether the owner of a lock file has ended, as far as can be told here, or showed no sign of life for too long.

    The age is measured by the clock of the file system, which all hosts share.
    """
    owner = _read_owner(path)
    if owner and owner["machine"] == _machine() and not is_alive(owner["pid"]):
        return True
    probe = partial_path(path.with_name("now"))
    try:
        probe.touch()
        age = probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:  # the owner has left
        return False
    finally:
        probe.unlink(missing_ok=True)
    return age > (owner["expires"] if owner else EXPIRES)


def _lock(descriptor: int, is_new: bool) -> bool:
    """Whether the file is locked by us from now on; where files cannot be locked, whether it is our own new one."""
    if fcntl is None:
        return is_new
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise
        return is_new
    return True


def _machine() -> str:
    """Where a process number means one process: this boot of this machine, and this container."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _read_owner(path: Path) -> dict[str, Any] | None:
    """host, machine, pid, since and expires of a lock file; None while it is being written."""
    try:
        owner = json.loads(path.read_bytes()[:1000])
        return {
            "host": str(owner["host"]),
            "machine": str(owner["machine"]),
            "pid": int(owner["pid"]),
            "since": str(owner["since"]),
            "expires": float(owner["expires"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
