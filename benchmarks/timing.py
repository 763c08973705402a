"""Times taken in turn, their ratios, counted arithmetic, and the fastest this machine gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], object]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Quartiles:
    """The middle of some numbers, and the quarter below and above it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, numbers: np.ndarray | list[float]) -> Quartiles:
        """Linear interpolation between the numbers; a single one is all three."""
        return cls(*map(float, np.quantile(numbers, (0.25, 0.5, 0.75))))


def seconds_of(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call; a GPU has finished its work before and after."""
    wait_for(device)
    started = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(calls: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """What each call says it took (repeats,), by name: in turn, every other round backwards: drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            seconds[name].append(calls[name]())
    return {name: np.array(taken) for name, taken in seconds.items()}


def counted(call: Call) -> tuple[float, Any]:
    """(floating-point operations of a call, forward and backward, in 1e9, its result): products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops() / 1e9, result


def peaks(precision: str, device: torch.device, image_size: int, rounds: int = 3) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a large convolution (channels last), the best of some rounds.

    Their sizes grow with the images, 2048 and 64x64 at 256 pixels: large where the networks' own are. A GPU is given
    products of four times that side.
    """
    draw = partial(torch.randn, device=device, dtype=DTYPES[precision])
    side = 8 * image_size * (4 if device.type == "cuda" else 1)
    left, right = draw(side, side), draw(side, side)
    images = draw(8, 256, image_size // 4, image_size // 4).contiguous(memory_format=torch.channels_last)
    weights = draw(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    calls: dict[str, Call] = {
        "matrix product": lambda: left @ right,
        "convolution": lambda: torch.conv2d(images, weights, padding=1),
    }
    work = {name: counted(call)[0] for name, call in calls.items()}  # a first round, which warms up
    timed = {name: partial(seconds_of, call, device) for name, call in calls.items()}
    fastest = {name: seconds.min() for name, seconds in alternate(timed, rounds).items()}
    return {name: work[name] / fastest[name] for name in calls}
