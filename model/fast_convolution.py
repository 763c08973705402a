"""Convolutions whose weight gradients are matrix products: faster than torch's own on processors without AVX-512."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Limited to AVX2, a training step is faster with them; with AVX-512 torch's own gradients are as fast
# (docs/speed.md). Other processors were not measured and keep torch's.
FASTER_HERE = torch.backends.cpu.get_cpu_capability() == "AVX2"


def use_fast_gradients(network: nn.Module) -> None:
    """Replace torch's `Conv2d` and `ConvTranspose2d` by those of this module, with the same parameters.

    Convolutions with a bias, groups, dilation or another padding than zeros stay as they are.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and _is_plain(child):
                setattr(module, name, Conv2d.of(child))
            elif type(child) is nn.ConvTranspose2d and _is_plain(child):
                setattr(module, name, ConvTranspose2d.of(child))


def _is_plain(convolution: Any) -> bool:
    one_number = all(len(set(getattr(convolution, name))) == 1 for name in ("kernel_size", "stride", "padding"))
    plain = convolution.bias is None and convolution.groups == 1 and convolution.dilation == (1, 1)
    return one_number and plain and convolution.padding_mode == "zeros" and convolution.output_padding == (0, 0)


class _FastGradientMixin:
    """What the two classes below share."""

    @classmethod
    def of(cls, other: Any) -> Any:
        """One that shares the parameters of torch's."""
        shape = (other.in_channels, other.out_channels, other.kernel_size)
        with torch.device("meta"):
            made = cls(*shape, stride=other.stride, padding=other.padding, bias=False)  # type: ignore[call-arg]
        made.weight = other.weight  # type: ignore[attr-defined]
        return made.train(other.training)  # type: ignore[attr-defined]

    def _use_fast_gradient(self, x: Tensor) -> bool:
        """Whether it is faster: never on a GPU or in half precision, where it was not measured."""
        plain = self.bias is None and torch.is_grad_enabled()  # type: ignore[attr-defined]
        return FASTER_HERE and plain and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class Conv2d(_FastGradientMixin, nn.Conv2d):
    """As torch's, on a processor in fp32 or float64 with another algorithm for the same gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._use_fast_gradient(x):
            return super().forward(x)
        return _Convolution.apply(x, self.weight, self.stride[0], self.padding[0], False)


class ConvTranspose2d(_FastGradientMixin, nn.ConvTranspose2d):
    """As torch's, on a processor in fp32 or float64 with another algorithm for the same gradient."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not self._use_fast_gradient(x):
            return super().forward(x, output_size)
        return _Convolution.apply(x, self.weight, self.stride[0], self.padding[0], True)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, transposed
        function = F.conv_transpose2d if transposed else F.conv2d
        return function(x, weight, stride=stride, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, transposed = ctx.how
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            mask = (True, False, False)
            same = ((stride, stride), (padding, padding), (1, 1), transposed, (0, 0), 1)
            to_input = torch.ops.aten.convolution_backward(gradient, x, weight, None, *same, mask)[0]
        if ctx.needs_input_grad[1]:
            large, small = (gradient, x) if transposed else (x, gradient)
            to_weight = weight_gradient(large, small, weight.shape[-1], stride, padding)
        return to_input, to_weight, None, None, None


def weight_gradient(x: Tensor, gradient: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Input (B, C, H, W) and output gradient (B, D, h, w) of a convolution -> its weights' gradient (D, C, k, k).

    For a transposed convolution the two change places. Both are laid out as matrices of a row per pixel; the input once
    for each remainder of rows and columns by the stride. At each of the k x k places of the kernel the gradient is then
    one product of the two, shifted against each other by whole rows of the matrix: rows and columns of zeros between
    lines and images separate what is not adjacent. Fastest for tensors laid out channels last.
    """
    height, width = gradient.shape[-2:]
    shifts = [divmod(place - padding, stride) for place in range(kernel)]  # (pixels, remainder)
    before, after = max(0, -shifts[0][0]), max(0, shifts[-1][0])
    surplus = max(-(-x.shape[-2] // stride) - height, -(-x.shape[-1] // stride) - width, 0)
    margin = max(after, min(after, surplus) + before)  # what is read below, and zeros above the next line
    rows = partial(_rows, lines=(height, width), kept=margin - before, margin=margin)
    right = rows(gradient).T
    starts = {remainder for _, remainder in shifts}
    remainders = {(i, j): rows(x[:, :, i::stride, j::stride]) for i in starts for j in starts}
    made = x.new_empty(kernel, kernel, gradient.shape[1], x.shape[1])
    for row, (down, i) in enumerate(shifts):
        for column, (along, j) in enumerate(shifts):
            left, shift = remainders[i, j], down * (width + margin) + along
            first, last = max(0, -shift), len(left) - max(0, shift)
            torch.mm(right[:, first:last], left[first + shift : last + shift], out=made[row, column])
    return made.permute(2, 3, 0, 1)


def _rows(x: Tensor, lines: tuple[int, int], kept: int, margin: int) -> Tensor:
    """(B, C, H, W) -> (B (h + margin) (w + margin), C), lines being (h, w): cut to h + kept, w + kept, then zeros."""
    height, width = lines
    x = x[:, :, : height + kept, : width + kept].permute(0, 2, 3, 1)
    wanted = (len(x), height + margin, width + margin, x.shape[-1])
    if x.shape != wanted:
        filled = x.new_zeros(wanted)
        filled[:, : x.shape[1], : x.shape[2]] = x
        x = filled
    return x.reshape(-1, x.shape[-1])
