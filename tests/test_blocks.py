"""The residual blocks against torchvision's: the same names, random draws, outputs and gradients, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet

from model.blocks import BLOCKS
from utils import seed_everything

THEIRS: dict[str, type[nn.Module]] = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
INPUTS, PLANES = 8, 16
KINDS = [("basic", 64), ("bottleneck", 64), ("bottleneck", 128)]


def built(block: type[nn.Module], outputs: int, width: int, stride: int) -> nn.Sequential:
    """A block with a shortcut that changes the shape, and one without; the same seed for every kind."""
    seed_everything("blocks")
    shortcut = nn.Sequential(nn.Conv2d(INPUTS, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(INPUTS, PLANES, stride, shortcut, base_width=width)
    return nn.Sequential(first, block(outputs, PLANES, base_width=width))


def passed(network: nn.Module) -> list[Tensor]:
    """The outputs in training and in evaluation, and the gradients of the input and of every parameter."""
    images = torch.randn(3, INPUTS, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    trained = network.train()(images)
    trained.square().mean().backward()
    assert images.grad is not None
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return [trained.detach(), network.eval()(images.detach()).detach(), images.grad, *gradients]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kind", "width"), KINDS)
def test_a_block_is_torchvisions(kind: str, width: int, stride: int) -> None:
    outputs = PLANES * BLOCKS[kind].expansion
    ours, theirs = (built(block, outputs, width, stride) for block in (BLOCKS[kind], THEIRS[kind]))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    before, wanted = ours.state_dict(), theirs.state_dict()
    assert list(before) == list(wanted)  # the order too
    assert all(torch.equal(before[name], wanted[name]) for name in wanted)
    found, expected = passed(ours), passed(theirs)
    assert len(found) == 3 + len(list(ours.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_next_random_number_is_the_same() -> None:
    draws = []
    for blocks in (BLOCKS, THEIRS):
        built(blocks["bottleneck"], 4 * PLANES, 128, 2)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1]
