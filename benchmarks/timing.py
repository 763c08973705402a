"""Alternating timings, their quartiles, counted floating-point operations, and the peak rates of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # slow to import: flags do without it
    import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Quartiles:
    """The median of some numbers, and their lower and upper quartile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, numbers: np.ndarray | list[float]) -> Quartiles:
        """Interpolates linearly between the numbers; a single number is all three."""
        return cls(*map(float, np.quantile(numbers, (0.25, 0.5, 0.75))))


def time_call(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, including all the work that it gives to a GPU."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(timed: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """Call each function in turn; what each returned (repeats,), by name.

    Every other round runs backwards, so that a drift of the machine's speed affects all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repeats):
        for name in list(timed)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed[name]())
    return {name: np.array(values) for name, values in seconds.items()}


def count_gflop(call: Call) -> tuple[float, Any]:
    """(1e9 floating-point operations of a call, its result): matrix products and convolutions, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops() / 1e9, result


def measure_peaks(precision: str, device: torch.device, image_size: int, rounds: int = 3) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a large channels-last convolution: the best of some rounds.

    Their sizes grow with the images, as the networks' own do: 2048 and 64x64 at 256 pixels. A GPU multiplies
    matrices of four times that size.
    """
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    draw = partial(torch.randn, device=device, dtype=dtypes[precision])
    size = 8 * image_size * (4 if device.type == "cuda" else 1)
    left, right = draw(size, size), draw(size, size)
    images = draw(8, 256, image_size // 4, image_size // 4).contiguous(memory_format=torch.channels_last)
    weights = draw(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    calls: dict[str, Call] = {
        "matrix product": lambda: left @ right,
        "convolution": lambda: torch.conv2d(images, weights, padding=1),
    }
    gflop = {name: count_gflop(call)[0] for name, call in calls.items()}  # this first call also warms up
    timed = {name: partial(time_call, call, device) for name, call in calls.items()}
    fastest = {name: seconds.min() for name, seconds in alternate(timed, rounds).items()}
    return {name: gflop[name] / fastest[name] for name in calls}
