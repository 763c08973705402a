"""A implementation in a process of its own: with its own memory, and the C library's own ways of handing memory out."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.timing import Call, counted, seconds_of
from utils import keep_freed_memory, set_determinism

Make = Callable[[], Call]


class InProcess:
    """A implementation in this process: made at once, told nothing about its memory."""

    def __init__(self, make: Make, device: torch.device) -> None:
        self.call, self.device = make(), device

    def first(self) -> tuple[float, Any]:
        """(GFLOP, answer) of a call, which also warms up; products and convolutions are counted."""
        return counted(self.call)

    def seconds(self) -> float:
        """Wall-clock seconds of a call."""
        return seconds_of(self.call, self.device)

    def peak_gib(self) -> float | None:
        """The most memory that was taken so far: of the process, or of the GPU where that is the device."""
        return None

    def close(self) -> None:
        """Give back what it holds."""
        del self.call


class Subprocess(InProcess):
    """A implementation in a process of its own, which waits while others are timed.

    `tuned` processes keep freed memory, as main.py and test.py do; others have it as Python finds it. `make` is
    called in the process, so it must be a module's function, or a partial of one.
    """

    def __init__(self, make: Make, device: torch.device, tuned: bool) -> None:
        context = multiprocessing.get_context("spawn")
        begun = (make, device, tuned, torch.get_num_threads())
        self.process = ProcessPoolExecutor(1, context, initializer=_begin, initargs=begun)

    def first(self) -> tuple[float, Any]:
        return self.process.submit(_first).result()

    def seconds(self) -> float:
        return self.process.submit(_seconds).result()

    def peak_gib(self) -> float | None:
        return self.process.submit(_peak_gib).result()

    def close(self) -> None:
        self.process.shutdown()


_own: dict[str, Any] = {}  # what the process was begun with, and its one implementation once it was asked for


def _begin(make: Make, device: torch.device, tuned: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    set_determinism(False)
    if tuned:
        keep_freed_memory()
    _own.update(make=make, device=device)


def _here() -> InProcess:
    if "here" not in _own:  # made here and not in _begin, whose errors the executor does not hand on
        _own["here"] = InProcess(_own["make"], _own["device"])
    return _own["here"]


def _first() -> tuple[float, Any]:
    return _here().first()


def _seconds() -> float:
    return _here().seconds()


def _peak_gib() -> float:
    if _own["device"].type == "cuda":
        return torch.cuda.max_memory_allocated(_own["device"]) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
