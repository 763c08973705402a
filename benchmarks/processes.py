"""Where an implementation runs: in this process, or in one of its own with its own memory and allocator."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import Call, count_gflop, time_call
from utils import set_up_libraries

if TYPE_CHECKING:  # slow to import: flags do without it
    import torch

Make = Callable[[], Call]


class InProcess:
    """An implementation in this process, built at once; its memory cannot be told from that of others."""

    def __init__(self, make: Make, device: torch.device) -> None:
        self.call, self.device = make(), device

    def first(self) -> tuple[float, Any]:
        """(GFLOP, result) of a call, which also warms up."""
        return count_gflop(self.call)

    def seconds(self) -> float:
        """Wall-clock seconds of a call."""
        return time_call(self.call, self.device)

    def peak_gib(self) -> float | None:
        """The peak memory so far, of the process or of the GPU; None where it is not known."""
        return None

    def close(self) -> None:
        """Free what it holds."""
        del self.call


class Subprocess(InProcess):
    """An implementation in a process of its own, which is idle while others are timed.

    `keeps_memory`: the process keeps freed memory, as main.py and test.py do with --fast 1; otherwise its allocator
    is as Python starts it. `make` is called in the process, so it must be a function of a module, or a partial of one.
    """

    def __init__(self, make: Make, device: torch.device, keeps_memory: bool) -> None:
        import torch

        context = multiprocessing.get_context("spawn")
        arguments = (make, device, keeps_memory, torch.get_num_threads())
        self.process = ProcessPoolExecutor(1, context, initializer=_initialize, initargs=arguments)

    def first(self) -> tuple[float, Any]:
        return self.process.submit(_first).result()

    def seconds(self) -> float:
        return self.process.submit(_seconds).result()

    def peak_gib(self) -> float | None:
        return self.process.submit(_peak_gib).result()

    def close(self) -> None:
        self.process.shutdown()


_state: dict[str, Any] = {}  # of the subprocess: its arguments, then also its implementation


def _initialize(make: Make, device: torch.device, keeps_memory: bool, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    set_up_libraries(deterministic=False, fast=keeps_memory)
    _state.update(make=make, device=device)


def _implementation() -> InProcess:
    if "implementation" not in _state:  # not built in _initialize: the executor does not pass on its errors
        _state["implementation"] = InProcess(_state["make"], _state["device"])
    return _state["implementation"]


def _first() -> tuple[float, Any]:
    return _implementation().first()


def _seconds() -> float:
    return _implementation().seconds()


def _peak_gib() -> float:
    if _state["device"].type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(_state["device"]) / 2**30
    if (status := Path("/proc/self/status")).is_file():  # getrusage would count what the parent had when it forked
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
