"""Frozen batch norms folded into the convolutions before them: the same function in fewer passes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Convolution = nn.Conv2d | nn.ConvTranspose2d


def fold_batch_norms(network: nn.Module) -> None:
    """Fold in place, in evaluation mode, every batch norm that directly follows a convolution.

    Found by the names that torchvision's residual blocks have (conv1, bn1, ...) and by order in a `Sequential`. A norm
    with an activation inside, as timm's, stays. Equal up to rounding; training such a network again makes no sense.
    """
    for module in list(network.modules()):
        for name, convolution, norm in list(_pairs(module)):
            _fold(convolution, norm)
            setattr(module, name, nn.Identity())


def _pairs(module: nn.Module) -> Iterator[tuple[str, Convolution, nn.BatchNorm2d]]:
    """(name of the norm, convolution, norm) among the direct children."""
    children = dict(module.named_children())
    names = list(children)
    for name, norm in children.items():
        if type(norm) is not nn.BatchNorm2d:
            continue
        in_order = isinstance(module, nn.Sequential)
        before = names[names.index(name) - 1] if in_order and name != names[0] else name.replace("bn", "conv")
        convolution = children.get(before)
        if isinstance(convolution, Convolution):
            yield name, convolution, norm


def _fold(convolution: Convolution, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None, "a norm of each batch cannot be folded"
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )
    convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
