"""Hidden cells: how many, which, when, and what of them a score may depend on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import random_features

from model.masking import FeatureMasking


def masking(channels=4, **settings):
    torch.manual_seed(0)
    return FeatureMasking(channels, **settings).double()


def only_hiding(**settings):
    """The part without its convolutions: what they would get."""
    part = masking(**settings)
    part.rebuild = nn.Sequential()
    return part


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.6])
def test_the_hidden_fraction_is_the_rate_in_every_sample(rate):
    visible = masking(rate=rate).visible(random_features(6, 4, 80, 80))
    assert visible.shape == (6, 1, 80, 80) and visible.dtype == torch.float64
    assert visible.unique().tolist() == [0, 1]
    torch.testing.assert_close(1 - visible.mean(dim=(1, 2, 3)), torch.full((6,), rate).double(), atol=0.03, rtol=0)


def test_training_hides_whole_cells_anew_for_every_sample_and_forward():
    part, x = only_hiding(rate=0.3), random_features(3, 4, 8, 8)
    first, second = part(x), part(x)
    hidden = (first == 0).all(dim=1, keepdim=True)
    assert torch.equal(first, torch.where(hidden, 0.0, x))  # all channels together, the rest to the bit
    assert not torch.equal(hidden[0], hidden[1]) and not torch.equal(first, second)


def test_the_convolutions_see_what_is_visible():
    part, x = masking(), random_features(2, 4, 8, 8)
    torch.manual_seed(3)
    out = part(x)
    torch.manual_seed(3)
    visible = x * part.visible(x)
    first, relu, second = part.rebuild
    assert isinstance(relu, nn.ReLU)
    for convolution in (first, second):
        assert convolution.weight.shape == (4, 4, 3, 3) and convolution.bias is not None
    assert torch.equal(out, second(first(visible).clamp(min=0)))
    assert out.shape == x.shape


def test_training_repeats_with_its_seed():
    part, x = masking(), random_features(2, 4, 8, 8)
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(part(x))
    assert torch.equal(*outputs)


def test_evaluation_hides_nothing():
    part, x = masking().eval(), random_features(2, 4, 8, 8)
    assert torch.equal(part(x), part.rebuild(x))


def test_a_score_depends_on_its_image_alone():
    part, x = only_hiding(rate=0.4, in_evaluation=True).eval(), random_features(5, 4, 8, 8)
    together = part(x)
    assert 0.2 < (together == 0).double().mean() < 0.6
    torch.manual_seed(99)
    assert torch.equal(part(x), together)
    assert torch.equal(part(x.flip(0)).flip(0), together)
    assert torch.equal(torch.cat([part(image[None]) for image in x]), together)
    assert torch.equal(only_hiding(rate=0.4, in_evaluation=True).eval()(x), together)


def test_evaluation_leaves_the_draws_of_training_alone():
    part, x = masking(in_evaluation=True).eval(), random_features(2, 4, 8, 8)
    before = torch.get_rng_state()
    part(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(part.train()(x), part(x))  # training draws anew all the same


def test_rate_zero_is_deterministic_and_equals_evaluation():
    part, x = masking(rate=0), random_features(2, 4, 8, 8)
    before = torch.get_rng_state()
    trained = part(x)
    assert torch.equal(trained, part(x)) and torch.equal(trained, part.eval()(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert masking(rate=0).visible(x).all()


def test_every_parameter_gets_a_gradient():
    part, x = masking(), random_features(2, 4, 8, 8).requires_grad_()
    part(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in part.parameters())
    assert x.grad is not None
    assert (x.grad == 0).all(dim=1).any()  # nothing flows into hidden cells


def test_convolutions_start_as_the_rest_of_the_student():
    part = masking(64)
    for convolution in (part.rebuild[0], part.rebuild[2]):
        assert convolution.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match="--mask_rate .* below 1"):
        FeatureMasking(4, rate=rate)
