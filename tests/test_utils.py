"""Seeding, atomic writing, the map that runs ahead, tables."""

from __future__ import annotations

import os
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

from utils import format_table, prefetch_map, seed_everything, set_determinism, write_atomically


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


@pytest.mark.usefixtures("torch_settings")
def test_determinism_keeps_a_workspace_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_determinism(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_tables_align() -> None:
    assert format_table(["class", "n"], [["nut", "12"]]) == "class   n\n-----  --\nnut    12"
    assert format_table(["class", "n"], [["nut", "12"]], markdown=True).splitlines()[1] == "| ----- | --: |"
    assert format_table(["a", "n"], [["b", "1"]], markdown=True).splitlines()[1] == "| --- | --: |"
