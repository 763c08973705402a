"""SCConv's two units and SimAM against their definitions, written out with loops over samples, channels and cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_features

from model.attention import CRU, SRU, SCConv, SimAM


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def spread(module, seed=0):
    """The module in float64, every parameter drawn anew: no default of 1 or 0 can hide a missing one."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = torch.rand(parameter.shape, generator=draw, dtype=torch.float64) + 0.2
    return module


def numbers(parameter):
    return parameter.detach().numpy()


def sru_written_out(sru, x, groups):
    gamma, beta = numbers(sru.norm.weight), numbers(sru.norm.bias)
    samples, channels = x.shape[:2]
    size, half = channels // groups, channels // 2
    out = np.empty_like(x)
    for b in range(samples):
        kept, rest = np.empty_like(x[b]), np.empty_like(x[b])
        for c in range(channels):
            group = x[b, c // size * size : (c // size + 1) * size]
            normed = gamma[c] * (x[b, c] - group.mean()) / np.sqrt(group.var() + 1e-5) + beta[c]
            r = sigmoid(gamma[c] / gamma.sum() * normed)
            kept[c] = np.where(r > 0.5, 1, r) * x[b, c]
            rest[c] = np.where(r > 0.5, 0, r) * x[b, c]
        out[b, :half] = kept[:half] + rest[half:]
        out[b, half:] = kept[half:] + rest[:half]
    return out


def convolved(x, conv):
    """(C, H, W) -> (C', H, W): a convolution of odd kernel, zeros around, one cell and one output channel at a time."""
    weight, reach = numbers(conv.weight), conv.kernel_size[0] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    outputs, inputs, kernel, _ = weight.shape
    out = np.zeros((outputs, *x.shape[1:]))
    for o in range(outputs):
        first = o // (outputs // conv.groups) * inputs  # of the input channels that this output's group sees
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                out[o, i, j] = (weight[o] * padded[first : first + inputs, i : i + kernel, j : j + kernel]).sum()
        out[o] += 0 if conv.bias is None else numbers(conv.bias)[o]
    return out


def cru_written_out(cru, x):
    half = x.shape[1] // 2
    out = np.empty_like(x)
    for b in range(len(x)):
        upper = convolved(x[b, :half], cru.squeeze_upper)
        lower = convolved(x[b, half:], cru.squeeze_lower)
        rich = convolved(upper, cru.grouped) + convolved(upper, cru.pointwise)
        cheap = np.concatenate([convolved(lower, cru.complement), lower])
        powers = np.exp([channel.mean() for channel in [*rich, *cheap]])
        weights = powers / powers.sum()
        for c in range(x.shape[1]):
            out[b, c] = weights[c] * rich[c] + weights[x.shape[1] + c] * cheap[c]
    return out


@pytest.mark.parametrize("groups", [4, 2])
def test_sru_equals_its_definition(groups):
    sru, x = spread(SRU(8, groups)), random_features(2, 8, 3, 5)
    assert 0.1 < (sru.norm(x) > 0).double().mean() < 0.9  # both sides of the threshold are met
    np.testing.assert_allclose(numbers(sru(x)), sru_written_out(sru, x.numpy(), groups), atol=1e-12)


def test_cru_equals_its_definition():
    cru, x = spread(CRU(16)), random_features(2, 16, 3, 5) / 10
    assert cru.grouped.groups == 2
    assert [name for name, _ in cru.named_parameters() if name.endswith("bias")] == ["grouped.bias"]
    np.testing.assert_allclose(numbers(cru(x)), cru_written_out(cru, x.numpy()), atol=1e-12)


def test_scconv_is_sru_then_cru():
    scconv, x = spread(SCConv(8)), random_features(2, 8, 4, 4)
    expected = cru_written_out(scconv[1], sru_written_out(scconv[0], x.numpy(), groups=4))
    np.testing.assert_allclose(numbers(scconv(x)), expected, atol=1e-12)


@pytest.mark.parametrize("channels, count", [(1024, 1_903_616), (2048, 7_608_320), (3072, 17_114_112)])
def test_scconv_has_the_published_number_of_parameters(channels, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in SCConv(channels).parameters()) == count


@pytest.mark.parametrize("channels", [8, 40, 112])
def test_scconv_keeps_the_shape_and_reaches_every_parameter(channels):
    scconv = SCConv(channels).double()
    x = random_features(2, channels, 4, 6).requires_grad_()
    out = scconv(x)
    assert out.shape == x.shape
    (out * random_features(*x.shape, seed=1)).sum().backward()
    gradients = {"input": x.grad} | {name: parameter.grad for name, parameter in scconv.named_parameters()}
    assert "0.norm.weight" in gradients  # gamma: a hard gate would leave it none
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().max() > 0] == []


def test_the_softmax_of_cru_shrinks_its_output():
    """Why a batch norm belongs after SCConv: 2C weights sum to 1, so the output is about 2C times smaller."""
    x = random_features(2, 256, 4, 4)
    assert SCConv(256).double()(x).std() < x.std() / 100


@pytest.mark.parametrize("channels", [0, 4, 12, 28, 100])
def test_scconv_refuses_channels_it_cannot_split(channels):
    with pytest.raises(ValueError, match=rf"SCConv: {channels} channels .* multiple of 8"):
        SCConv(channels)


def test_the_units_refuse_channels_they_cannot_split():
    with pytest.raises(ValueError, match="SRU: 6 channels .* 4 groups"):
        SRU(6)
    with pytest.raises(ValueError, match="SRU: 9 channels .* 2 halves"):
        SRU(9, groups=3)
    with pytest.raises(ValueError, match="CRU, upper part: 6 channels"):
        CRU(12)


@pytest.mark.parametrize("epsilon", [1e-4, 0.3])
def test_simam_equals_its_definition(epsilon):
    x = random_features(2, 3, 4, 5)
    expected = np.empty(x.shape)
    for b, sample in enumerate(x.numpy()):
        for c, channel in enumerate(sample):
            variance = ((channel - channel.mean()) ** 2).sum() / (channel.size - 1)
            for i, j in np.ndindex(channel.shape):
                energy = (channel[i, j] - channel.mean()) ** 2 / (4 * (variance + epsilon)) + 0.5
                expected[b, c, i, j] = channel[i, j] * sigmoid(energy)
    np.testing.assert_allclose(SimAM(epsilon)(x), expected, atol=1e-12)


@pytest.mark.parametrize("side", [1, 4])
def test_simam_of_a_constant_map_is_x_times_sigmoid_of_a_half(side):
    x = torch.full((2, 3, side, side), -1.5, requires_grad=True)
    out = SimAM()(x)
    torch.testing.assert_close(out, x * sigmoid(0.5))
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_simam_has_no_parameters():
    assert not list(SimAM().parameters()) and not list(SimAM().buffers())
