"""A run folder has one writer, on one host or on many: claims, signs of life, takeovers, who may write after one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toys import ROOT

from run_files import Busy, FolderLock, Lost, Run
from run_files.lock import is_void
from utils import partial_path, write_atomically

OWNER = """
import sys, time
from pathlib import Path
from run_files.lock import FolderLock
with FolderLock(Path(sys.argv[1]), expires=float(sys.argv[2])) as lock:
    print("locked", flush=True)
    sys.stdin.readline()
    lock.check()
    print("still mine", flush=True)
"""
SHORT = 0.4  # seconds without a sign of life
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that locks a folder until it reads a line, then says whether the folder is still its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(folder: Path, expires: float = SHORT) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWNER, str(folder), str(expires)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(params=[True, False], ids=["with file locks", "without file locks"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether files can be locked: this process alone believes that they cannot."""
    if not request.param:

        def no_locks(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", no_locks)
    return bool(request.param)


def test_a_lock_has_one_owner_and_leaves_no_file(locking: bool, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run") as lock:
        with pytest.raises(Busy, match=f"process {os.getpid()} on "), FolderLock(tmp_path / "run"):
            pass
        assert (tmp_path / "run/.lock").exists()
        lock.check()
    assert not list((tmp_path / "run").iterdir())


def test_a_lock_ends_with_its_process(locking: bool, tmp_path: Path, start: Start) -> None:
    owner = start(tmp_path, expires=600)
    with pytest.raises(Busy, match=f"process {owner.pid} on "), FolderLock(tmp_path):
        pass
    owner.kill()
    owner.wait()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_living_owner_keeps_its_lock_for_longer_than_it_lasts(tmp_path: Path, start: Start) -> None:
    owner = start(tmp_path)
    end = time.monotonic() + 3 * SHORT
    while time.monotonic() < end:
        with pytest.raises(Busy), FolderLock(tmp_path, expires=SHORT):
            pass
        time.sleep(0.05)
    assert owner.communicate("\n")[0] == "still mine\n"


def test_who_stops_without_ending_loses_the_lock_and_must_not_write(
    locking: bool, tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = start(tmp_path)
    owner.send_signal(signal.SIGSTOP)
    left_behind = tmp_path / f".checkpoint.pt.{owner.pid}@elsewhere.partial"
    left_behind.touch()
    time.sleep(2 * SHORT)
    with FolderLock(tmp_path):
        assert "taken over" in capsys.readouterr().err
        assert not left_behind.exists(), "what the last owner was writing"
        owner.send_signal(signal.SIGCONT)
        said, problem = owner.communicate("\n")
        assert said == "" and f"taken over by process {os.getpid()} on " in problem
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid(), "it leaves the new lock alone"
    assert not list(tmp_path.iterdir())


def test_a_process_that_hangs_shows_no_sign_of_life(tmp_path: Path) -> None:
    work = iter(range(10**6))
    with FolderLock(tmp_path, expires=SHORT, work=lambda: next(work)):
        time.sleep(3 * SHORT)
        assert not is_void(tmp_path / ".lock")
    with FolderLock(tmp_path, expires=SHORT, work=lambda: 0):
        time.sleep(4 * SHORT)
        assert is_void(tmp_path / ".lock")


@pytest.mark.parametrize("moment", ["before it writes", "before it checks", "before it renames"])
def test_no_moment_lets_a_last_owner_write_over_its_successor(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes over at each step of a write: the file of the run is the successor's."""
    target = tmp_path / "metrics.json"

    def take_over() -> None:
        monkeypatch.setattr("run_files.lock.is_void", lambda path: True)
        monkeypatch.setattr("run_files.lock.WAITS", (0.0, 0.0))
        descriptor = FolderLock(tmp_path)._attempt()
        assert descriptor is not None
        target.write_text("theirs")

    lock = FolderLock(tmp_path)
    with lock:

        def content(file: object) -> None:
            if moment == "before it checks":
                take_over()

        def check() -> None:
            lock.check()
            if moment == "before it renames" and not target.exists():
                take_over()

        if moment == "before it writes":
            take_over()
        with pytest.raises(Lost):
            write_atomically(target, content, check)
        assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_run_whose_folder_was_taken_over_writes_nothing_and_discards_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "metrics.json").write_text("theirs")
    with run.lock():
        other = partial_path(tmp_path / "other")
        other.write_text("{}")
        other.replace(tmp_path / ".lock")
        for write in (lambda: run.write("train.csv", "ours"), run.discard, run.check):
            with pytest.raises(Lost):
                write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "metrics.json"]


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run") as lock:
        shutil.rmtree(tmp_path / "run")
        lock.check()
        assert (tmp_path / "run/.lock").is_file()
        with pytest.raises(Busy), FolderLock(tmp_path / "run"):
            pass
    assert not list((tmp_path / "run").iterdir())


def test_of_many_who_want_a_folder_one_at_a_time_has_it(locking: bool, tmp_path: Path) -> None:
    inside, most = [], []

    def enter(_: int) -> None:
        with FolderLock(tmp_path, wait=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(40)))
    assert len(most) == 40 and max(most) == 1
