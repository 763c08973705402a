"""Seeding, atomic writing, the map that runs ahead, tables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from toys import ROOT

from utils import (
    format_table,
    prefetch_map,
    printable,
    seed_everything,
    set_determinism,
    sweep_partials,
    walk_folders,
    write_atomically,
)


def draws() -> tuple[float, float]:
    return float(torch.rand(())), float(np.random.rand())


def test_equal_parts_give_equal_numbers_and_others_do_not() -> None:
    seed_everything("bottle seed 1", 3)
    first = draws()
    seed_everything("bottle seed 1", 3)
    assert draws() == first
    seed_everything("bottle seed 13")  # the parts are kept apart
    assert draws() != first


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_atomically(target, "old")

    def broken(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_atomically(target, broken)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_atomically(tmp_path / "list.csv", f"{name}\n")
    assert (tmp_path / "list.csv").read_bytes() == b"caf\xe9\n"
    assert seed_everything(name) != seed_everything("caf")


def test_a_name_as_long_as_a_disk_allows_is_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("x" * 251 + ".csv"), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_what_a_dead_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    host, dead = socket.gethostname()[:64], subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [f".a.{dead.pid}@{host}.partial", f".a.{dead.pid}.partial", f".old.{dead.pid}@elsewhere.partial"]
    kept = [f".a.{os.getpid()}@{host}.partial", ".b.1.partial", f".a.{dead.pid}@elsewhere.partial", ".mine.partial"]
    for name in (*left, *kept, "a.png"):
        (tmp_path / name).touch()
    os.utime(tmp_path / left[2], (0, 0))
    (tmp_path / f".folder.{dead.pid}@{host}.partial" / "below").mkdir(parents=True)
    sweep_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.png"}
    sweep_partials(tmp_path / "nowhere")


def test_the_file_of_an_interrupted_write_is_of_the_kind_that_is_swept(tmp_path: Path) -> None:
    dies = "utils.write_atomically(pathlib.Path(sys.argv[1]), lambda file: os._exit(9))"
    command = [sys.executable, "-c", f"import os, pathlib, sys, utils; {dies}", str(tmp_path / "a")]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(".partial")
    sweep_partials(tmp_path)
    assert not path.exists()


def test_folders_are_walked_through_links_once_and_never_upward(tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    (root / "b/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/below").mkdir(parents=True)
    for link, target in (("a", "b"), ("b/round", "."), ("b/up", ".."), ("out", "../elsewhere"), ("gone", "nowhere")):
        (root / link).symlink_to(target)
    (root / "b/top").symlink_to(tmp_path)
    (tmp_path / "elsewhere/back").symlink_to(root)
    wanted = [".", "b", "b/deep", "out", "out/below"]
    assert sorted(str(path.relative_to(root)) for path in walk_folders(root)) == wanted
    assert [str(path.relative_to(root / "out")) for path in walk_folders(root / "out")][:2] == [".", "below"]


def test_text_for_a_terminal_shows_its_control_characters() -> None:
    assert printable("a\nb\x1b[31m\t" + os.fsdecode(b"\xff")) == "a\\nb\\x1b[31m\\t\\xff"
    assert printable("Größe 80 µm ±2 ") == "Größe 80 µm ±2 "
    assert format_table(["a"], [["x\ny"]]).splitlines() == ["a", "----", "x\\ny"]
    assert "\u202e" not in printable("\u202egnp.exe") and "\u2028" not in printable("a\u2028b")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_map_ahead_keeps_order_and_stays_near_its_reader(workers: int) -> None:
    started: list[int] = []
    lock = threading.Lock()

    def square(number: int) -> int:
        with lock:
            started.append(number)
        return number * number

    results = prefetch_map(square, range(50), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(started) <= 5 + 2 * workers + 1
    assert list(results) == [n * n for n in range(5, 50)]


def test_map_ahead_raises_what_the_function_raised() -> None:
    results = prefetch_map(lambda n: 1 // n, [2, 1, 0, 4], 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


TAKE_AND_FREE = """
import resource, torch, utils
{first}
for turn in range(16):
    if turn == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_is_kept_is_not_mapped_again() -> None:
    faults = []
    for first in ("", "utils.keep_freed_memory()"):
        command = [sys.executable, "-c", TAKE_AND_FREE.format(first=first)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        faults.append(int(done.stdout))
    assert faults[1] < faults[0] / 4


@pytest.fixture
def torch_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without CUBLAS_WORKSPACE_CONFIG; whatever a test sets is put back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(deterministic)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)  # monkeypatch puts back what was there before


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_sets_every_switch_that_torch_has_for_it(wanted: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = wanted
    torch.use_deterministic_algorithms(not wanted)
    set_determinism(wanted)
    assert torch.are_deterministic_algorithms_enabled() == wanted
    assert torch.backends.cudnn.benchmark == (not wanted)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32, "fp32 means fp32"
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None)


def test_without_determinism_nothing_of_the_compiler_is_imported() -> None:
    code = "import sys, utils; utils.set_determinism(False); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.usefixtures("torch_settings")
def test_determinism_keeps_a_workspace_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_determinism(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_tables_align() -> None:
    assert format_table(["class", "n"], [["nut", "12"]]) == "class   n\n-----  --\nnut    12"
    assert format_table(["class", "n"], [["nut", "12"]], markdown=True).splitlines()[1] == "| ----- | --: |"
    assert format_table(["a", "n"], [["b", "1"]], markdown=True).splitlines()[1] == "| --- | --: |"
