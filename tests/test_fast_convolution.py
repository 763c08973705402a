"""Gradients by matrix products are torch's, wherever they are used."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import fast_convolution
from model.fast_convolution import use_fast_gradients, weight_gradient
from model.fold_batch_norm import fold_batch_norms


@pytest.fixture(autouse=True)
def on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of the matrix products, whatever processor they run on."""
    monkeypatch.setattr(fast_convolution, "FASTER_HERE", True)


@pytest.mark.parametrize("kernel, stride", list(itertools.product((1, 2, 3, 5), (1, 2, 3))))
def test_the_weights_gradient_is_torchs(kernel: int, stride: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for padding, height, width in itertools.product(range(kernel), (7, 8, 12), (8, 9)):
        x = torch.randn(2, 3, height, width, generator=draw, dtype=torch.float64)
        weight = torch.randn(4, 3, kernel, kernel, generator=draw, dtype=torch.float64, requires_grad=True)
        made = F.conv2d(x, weight, stride=stride, padding=padding)
        gradient = torch.randn(made.shape, generator=draw, dtype=torch.float64)
        (wanted,) = torch.autograd.grad(made, weight, gradient)
        found = weight_gradient(x, gradient, kernel, stride, padding)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, msg=f"padding {padding} of {height}x{width}")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 2, 3, padding=1, bias=False),
    )


def test_a_network_made_fast_is_the_same_network() -> None:
    plain = network().double()
    fast = copy.deepcopy(plain)
    before = dict(fast.named_parameters())
    use_fast_gradients(fast)
    ours = {name for name, part in fast.named_children() if type(part).__module__ == fast_convolution.__name__}
    assert ours == {"0", "4", "6"}, "not the one with a bias, not the one with groups"
    assert all(parameter is before[name] for name, parameter in fast.named_parameters())
    assert fast.state_dict().keys() == plain.state_dict().keys()

    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found, wanted = images.clone().requires_grad_(), images.clone().requires_grad_()
    for one, x in ((fast, found), (plain, wanted)):
        one(x).square().sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad)
    for (name, ours_), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours_.grad, theirs.grad, msg=name)

    for one in (fast, plain):
        fold_batch_norms(one.eval())
    torch.testing.assert_close(fast(images), plain(images), msg="a folded convolution has a bias")


def test_images_that_need_no_gradient_get_none() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False))
    use_fast_gradients(layer)
    images = torch.randn(1, 3, 8, 8)
    layer(images).sum().backward()
    assert images.grad is None and layer[0].weight.grad is not None
    layer.requires_grad_(False)
    layer(images.requires_grad_()).sum().backward()
    assert images.grad is not None


@pytest.mark.parametrize("faster", [True, False])
def test_the_processor_decides_whose_gradients_are_used(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_convolution, "FASTER_HERE", faster)
    layer = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False))
    use_fast_gradients(layer)
    name = type(layer(torch.randn(1, 3, 8, 8)).grad_fn).__name__
    assert name == ("_ConvolutionBackward" if faster else "ConvolutionBackward0")
