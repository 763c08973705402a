"""Which numbers the networks compute with: fp32, or bf16, fast where a processor or GPU is made for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRECISIONS = ("fp32", "bf16", "auto")


def resolve(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where the device multiplies it in hardware, else fp32; the others are themselves."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def lowered(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bf16, or nothing at all for fp32; weights stay fp32, and so do losses, distances and maps.

    Processors that are not made for bf16 get the numbers of those that are, a little slower than fp32.
    """
    if precision == "bf16" and device.type == "cpu" and resolve("auto", device) != "bf16":
        return _Emulation()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class _Emulation(TorchFunctionMode):
    """Autocast whose convolutions are computed in fp32: operands rounded to bf16, products summed, the sum rounded.

    That is what the hardware does, in another order of summing; torch's own way without it is a hundred times slower.
    """

    def __enter__(self) -> _Emulation:
        self.autocast = torch.autocast("cpu", torch.bfloat16)
        self.autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.autocast.__exit__(*exception)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if function not in (F.conv2d, F.conv_transpose2d):
            return function(*args, **given)
        with torch.autocast("cpu", enabled=False):
            rounded = [_rounded(value) for value in args]
            return function(*rounded, **{name: _rounded(value) for name, value in given.items()}).bfloat16()


def _rounded(value: Any) -> Any:
    """A tensor as fp32 that holds numbers of bf16; anything else as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) else value
