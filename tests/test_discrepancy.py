"""Losses, anomaly maps and image scores against their definitions, written out or taken from PyTorch and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

import discrepancy
from discrepancy import LOSSES, Normality, anomaly_map, consistency_loss, cosine_distance, image_score, level_maps

SQUARE = ((6, 16, 16), (10, 8, 8), (12, 4, 4))
ODD = ((3, 15, 22), (5, 7, 11), (4, 3, 5))  # neither square nor halved exactly


def make_pairs(shapes=SQUARE, dtype=torch.float32, batch=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pairs = []
    for shape in shapes:
        teacher, student = torch.randn(2, batch, *shape, generator=draw, dtype=torch.float64).to(dtype)
        pairs.append((teacher, student.requires_grad_()))
    return pairs


def doubled(pairs):
    return [(teacher.double(), student.double()) for teacher, student in pairs]


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
        if name == "cosine":
            total = total + (1 - cosine(teacher.flatten(1), student.flatten(1))).mean()
        elif name == "cosine_pixel":
            total = total + (1 - cosine(teacher, student)).mean()
        elif name == "cosine_channel":
            total = total + (1 - cosine(teacher.flatten(0, 1).flatten(1), student.flatten(0, 1).flatten(1))).mean()
        else:
            total = total + ((teacher - student) ** 2).mean()
    return total


@pytest.mark.parametrize("shapes", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_equal_the_definition(name, layout, shapes):
    pairs = [(t.to(memory_format=layout), s.detach().to(memory_format=layout)) for t, s in make_pairs(shapes)]
    students = [student.requires_grad_() for _, student in pairs]
    loss, expected = LOSSES[name](pairs), written_out(name, doubled(pairs))
    assert loss.dtype == torch.float32 and expected > 0.1
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(torch.autograd.grad(loss, students), torch.autograd.grad(expected, students), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
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


@pytest.mark.parametrize("name", LOSSES)
def test_zero_features_leave_every_gradient_finite(name):
    pairs = make_pairs()
    zeros = [(teacher, torch.zeros_like(student, requires_grad=True)) for teacher, student in pairs]
    zeros[0] = (torch.zeros_like(pairs[0][0]), zeros[0][1])
    loss = LOSSES[name](zeros)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [student for _, student in zeros]))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_pass_gradcheck(name):
    pairs = make_pairs(((2, 5, 6), (3, 3, 3), (2, 2, 2)), dtype=torch.float64, batch=2)
    teachers = [teacher for teacher, _ in pairs]
    students = [student for _, student in pairs]
    assert torch.autograd.gradcheck(lambda *s: LOSSES[name](list(zip(teachers, s, strict=True))), students)


@pytest.mark.parametrize("name", LOSSES)
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


def test_cosine_distance_per_pixel():
    (teacher, student), *_ = make_pairs()
    distance = cosine_distance(teacher, student)
    assert distance.shape == (3, 16, 16)
    torch.testing.assert_close(distance, 1 - F.cosine_similarity(teacher, student), rtol=1e-5, atol=1e-6)
    assert cosine_distance(teacher, 5 * teacher).max().item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(teacher, -teacher).min().item() == pytest.approx(2)
    assert (cosine_distance(teacher, torch.zeros_like(teacher)) == 1).all()
    assert distance.min() >= 0 and cosine_distance(teacher, teacher).min() >= 0


def maps_of(pairs):
    """Each level's distances (B, h, w) in float64, by PyTorch's own cosine."""
    return [1 - F.cosine_similarity(teacher.double(), student.detach().double()) for teacher, student in pairs]


def smoothed(maps, sigma):
    return np.stack([gaussian_filter(image, sigma=sigma) for image in maps.numpy()])


@pytest.mark.parametrize("mode", ["add", "multiply"])
@pytest.mark.parametrize("shapes", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize(("size", "sigma"), [(64, 4.0), (8, 4.0), (50, 1.3), (64, 0.0)])
def test_the_anomaly_map_is_upsampled_joined_and_smoothed_as_by_scipy(mode, shapes, size, sigma):
    pairs = make_pairs(shapes)
    upsampled = torch.cat(
        [F.interpolate(d[:, None], (size, size), mode="bilinear", align_corners=True) for d in maps_of(pairs)], dim=1
    )
    joined = upsampled.sum(1) if mode == "add" else upsampled.prod(1)
    expected = smoothed(joined, sigma) if sigma else joined.numpy()
    found = anomaly_map(pairs, size, mode=mode, sigma=sigma)
    assert found.shape == (3, size, size) and found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_the_anomaly_map_of_a_full_sized_image_equals_scipy():
    pairs = make_pairs(((4, 64, 64), (4, 32, 32), (4, 16, 16)), batch=1)
    joined = sum(
        F.interpolate(d[:, None], (256, 256), mode="bilinear", align_corners=True)[:, 0] for d in maps_of(pairs)
    )
    np.testing.assert_allclose(anomaly_map(pairs, 256).detach().numpy(), smoothed(joined, 4), atol=1e-5)


def test_the_anomaly_map_of_half_precision_features_is_fp32_also_under_autocast():
    pairs = make_pairs(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = anomaly_map(pairs, 64)
    torch.testing.assert_close(found, anomaly_map(doubled(pairs), 64), rtol=0, atol=1e-5)


def test_an_image_s_map_does_not_depend_on_its_batch():
    pairs = make_pairs()
    alone = [(teacher[1:2], student[1:2]) for teacher, student in pairs]
    torch.testing.assert_close(anomaly_map(pairs, 64)[1:2], anomaly_map(alone, 64), rtol=0, atol=1e-6)


def test_matrices_cached_in_inference_mode_serve_training():
    for cache in (discrepancy._gram, discrepancy._enlarging):
        cache.cache_clear()
    pairs = make_pairs()
    with torch.inference_mode():
        anomaly_map(pairs, 64)
        consistency_loss(pairs)
    (anomaly_map(pairs, 64).sum() + consistency_loss(pairs)).backward()
    assert all(student.grad is not None for _, student in pairs)


def test_the_anomaly_map_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"unknown mode 'mean'.*add, multiply"):
        anomaly_map(make_pairs(), 64, mode="mean")
    with pytest.raises(ValueError, match="sigma"):
        anomaly_map(make_pairs(), 64, sigma=-1)


def test_the_image_score_is_the_mean_of_the_largest_pixels():
    maps = torch.tensor([[[1.0, 5.0], [2.0, 4.0]], [[0.0, 0.0], [8.0, 0.0]]])
    assert image_score(maps).tolist() == [5, 8]
    assert image_score(maps, top=2).tolist() == [4.5, 4]
    assert image_score(maps, top=4).tolist() == [3, 2]
    for top in (0, 5):
        with pytest.raises(ValueError, match=f"1 to 4 pixels; found {top}"):
            image_score(maps, top=top)


def test_levels_maps_add_up_to_the_anomaly_map():
    pairs = make_pairs()
    torch.testing.assert_close(level_maps(pairs, 64).sum(dim=0), anomaly_map(pairs, 64), rtol=0, atol=1e-5)


def test_standardised_maps_are_deviations_in_spreads():
    """Against NumPy over all normal images at once: the standard deviation at a place plus that of the level."""
    maps = (
        torch.rand(2, 12, 5, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 7.0])[:, None, None, None]
    )
    normality = Normality.of([maps[:, :5], maps[:, 5:]])
    known = maps.double().numpy()
    spread = known.std(axis=1) + known.std(axis=(1, 2, 3))[:, None, None]
    np.testing.assert_allclose(normality.spread.numpy(), spread, rtol=1e-5)
    new = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    expected = ((new.numpy() - known.mean(axis=1)[:, None]) / spread[:, None]).sum(axis=0)
    np.testing.assert_allclose(normality.standardised(new).numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normality.standardised(maps).mean(dim=0).numpy(), 0, atol=1e-4)


def test_a_place_without_any_spread_stays_finite():
    maps = torch.ones(1, 4, 3, 3)
    assert torch.equal(Normality.of([maps]).standardised(maps), torch.zeros(4, 3, 3))
