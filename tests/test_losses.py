"""Every loss against its definition, written out or taken from PyTorch; optimal transport against its limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from toys import ODD, SQUARE, doubled, make_pairs

from methods.losses import LOSSES, consistency_loss, contrast_loss

DISTANCES = [name for name in LOSSES if name != "contrast"]  # 0 for equal features


def written_out(name, pairs):
    """Every loss by its definition, from PyTorch's own parts."""
    cosine = torch.nn.CosineSimilarity(dim=1)
    total = torch.zeros((), dtype=torch.float64)
    if name == "consistency":
        for (t_fine, s_fine), (t_coarse, s_coarse) in zip(pairs, pairs[1:], strict=False):
            t_up = F.interpolate(t_coarse, t_fine.shape[2:], mode="bilinear", align_corners=True)
            s_up = F.interpolate(s_coarse, s_fine.shape[2:], mode="bilinear", align_corners=True)
            total = total + (F.mse_loss(t_up, s_up) - F.mse_loss(t_fine, s_fine)).abs()
        return total
    for teacher, student in pairs:
        if name in ("cosine", "cosine_hard"):
            total = total + (1 - cosine(teacher.flatten(1), student.flatten(1))).mean()
        elif name == "cosine_pixel":
            total = total + (1 - cosine(teacher, student)).mean()
        elif name == "absolute":
            total = total + (teacher - student).abs().mean()
        elif name == "cosine_channel":
            total = total + (1 - cosine(teacher.flatten(0, 1).flatten(1), student.flatten(0, 1).flatten(1))).mean()
        else:
            total = total + ((teacher - student) ** 2).mean()
    return total


@pytest.mark.parametrize("shapes", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", DISTANCES)
def test_a_loss_and_its_gradient_equal_the_definition(name, layout, shapes):
    pairs = [(t.to(memory_format=layout), s.detach().to(memory_format=layout)) for t, s in make_pairs(shapes)]
    students = [student.requires_grad_() for _, student in pairs]
    loss, expected = LOSSES[name](pairs), written_out(name, doubled(pairs))
    assert loss.dtype == torch.float32 and expected > 0.1
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(torch.autograd.grad(loss, students), torch.autograd.grad(expected, students), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", DISTANCES)
def test_equal_features_give_loss_zero(name):
    pairs = [(teacher, teacher.clone()) for teacher, _ in make_pairs()]
    assert LOSSES[name](pairs).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "cosine_pixel", "cosine_channel"])
def test_a_cosine_loss_counts_one_for_every_level_of_orthogonal_features_and_two_for_opposite_ones(name):
    teacher = torch.zeros(2, 4, 4, 4)
    teacher[:, :2, :2] = 1
    student = torch.zeros_like(teacher)
    student[:, 2:, 2:] = 3
    assert LOSSES[name]([(teacher, student)] * 3).item() == pytest.approx(3)
    full = torch.rand(2, 4, 4, 4) + 1
    assert LOSSES[name]([(full, -2 * full)] * 3).item() == pytest.approx(6)


@pytest.mark.parametrize("name", DISTANCES)
def test_zero_features_leave_every_gradient_finite(name):
    pairs = make_pairs()
    zeros = [(teacher, torch.zeros_like(student, requires_grad=True)) for teacher, student in pairs]
    zeros[0] = (torch.zeros_like(pairs[0][0]), zeros[0][1])
    loss = LOSSES[name](zeros)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [student for _, student in zeros]))


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_pass_gradcheck(name):
    pairs = make_pairs(((2, 5, 6), (3, 3, 3), (2, 2, 2)), dtype=torch.float64, batch=2)
    teachers = [teacher for teacher, _ in pairs]
    students = [student for _, student in pairs]
    assert torch.autograd.gradcheck(lambda *s: LOSSES[name](list(zip(teachers, s, strict=True))), students)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_accumulated_in_fp32_also_under_autocast(name, dtype):
    pairs = make_pairs(dtype=dtype)
    expected = written_out(name, doubled(pairs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOSSES[name](pairs)
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(student.grad is not None and student.grad.dtype == dtype for _, student in pairs)


def test_consistency_upsamples_the_coarser_level_to_any_finer_size():
    """A difference that is constant keeps its mean square under upsampling: only the levels' own values count."""
    pairs = [
        (torch.full((1, 2, side, side), value), torch.zeros(1, 2, side, side)) for side, value in ((9, 1.0), (5, 3.0))
    ]
    assert consistency_loss(pairs).item() == pytest.approx(9 - 1)


def test_contrast_is_torch_s_cosine_embedding_loss_against_features_that_should_differ():
    pairs = []
    for noise in (0.3, 1.0, 3.0):
        pairs += [(one, (one + noise * other).detach().requires_grad_()) for one, other in make_pairs()]
    away = -torch.ones(3)
    flat = [(one.flatten(1), other.flatten(1)) for one, other in pairs]
    expected = torch.stack([F.cosine_embedding_loss(one, other, away, margin=0.5) for one, other in flat]).sum()
    found = contrast_loss(pairs)
    torch.testing.assert_close(found, expected)
    students = [student for _, student in pairs]
    for ours, theirs in zip(torch.autograd.grad(found, students), torch.autograd.grad(expected, students), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    opposite = [(teacher, -teacher) for teacher, _ in pairs]
    assert contrast_loss(opposite).item() == 0


def sinkhorn_divergence(x, y, blur=0.05, scaling=0.95, diameter=1e7):
    """Debiased Sinkhorn divergence of two clouds (n, D) and (m, D), cost |x - y|^2 / 2 (Feydy et al., AISTATS 2019)."""
    x, y = x.double(), y.double()
    pairs = [(x, y.detach()), (y, x.detach()), (x, x.detach()), (y, y.detach())]
    costs = [torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / 2 for a, b in pairs]
    steps = int(math.log(diameter / blur) / -math.log(scaling)) + 1
    schedule = [max(diameter * scaling**step, blur) ** 2 for step in range(steps)] + [blur**2]

    def transform(cost, potential, epsilon):
        return -epsilon * (torch.logsumexp((potential - cost) / epsilon, dim=1) - math.log(len(potential)))

    def step(potentials, epsilon):
        partners = (potentials[1], potentials[0], potentials[2], potentials[3])
        return [transform(cost, partner, epsilon) for cost, partner in zip(costs, partners, strict=True)]

    with torch.no_grad():
        potentials = [x.new_zeros(len(a)) for a, _ in pairs]
        for epsilon in schedule:
            potentials = [(old + new) / 2 for old, new in zip(potentials, step(potentials, epsilon), strict=True)]
    f, g, p, q = step(potentials, blur**2)
    return (f - p).mean() + (g - q).mean()


def test_rdpp_s_optimal_transport_term_is_0_with_zero_gradient():
    """SSOT compares a batch with the same batch in another order, which is the same cloud: so it is left out here."""
    cloud = torch.rand(6, 40).softmax(dim=1).requires_grad_()
    found = sinkhorn_divergence(cloud, cloud[torch.randperm(6)])
    assert abs(found.item()) < 1e-8
    (gradient,) = torch.autograd.grad(found, [cloud])
    assert gradient.abs().max() < 1e-6
    assert sinkhorn_divergence(cloud, cloud + 1).item() > 1, "another cloud is told apart"
