"""Distances, anomaly maps and image scores against their definitions, written out or taken from PyTorch and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from toys import ODD, SQUARE, doubled, make_pairs

import scoring.anomaly_map
from methods import losses
from scoring.anomaly_map import (
    MapStatistics,
    anomaly_map,
    cosine_distance,
    image_score,
    level_maps,
    score_refinement_factor,
)


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


@pytest.mark.parametrize("mode", ["add", "mean", "multiply"])
@pytest.mark.parametrize("shapes", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize(("size", "sigma"), [(64, 4.0), (8, 4.0), (50, 1.3), (64, 0.0)])
def test_the_anomaly_map_is_upsampled_joined_and_smoothed_as_by_scipy(mode, shapes, size, sigma):
    pairs = make_pairs(shapes)
    upsampled = torch.cat(
        [F.interpolate(d[:, None], (size, size), mode="bilinear", align_corners=True) for d in maps_of(pairs)], dim=1
    )
    joined = {"add": upsampled.sum(1), "mean": upsampled.mean(1), "multiply": upsampled.prod(1)}[mode]
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
    for cache in (losses._gram, scoring.anomaly_map._upsample_matrix):
        cache.cache_clear()
    pairs = make_pairs()
    with torch.inference_mode():
        anomaly_map(pairs, 64)
        losses.consistency_loss(pairs)
    (anomaly_map(pairs, 64).sum() + losses.consistency_loss(pairs)).backward()
    assert all(student.grad is not None for _, student in pairs)


def test_the_anomaly_map_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"unknown mode 'median'.*add, mean, multiply"):
        anomaly_map(make_pairs(), 64, mode="median")
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
    normality = MapStatistics.of([maps[:, :5], maps[:, 5:]])
    known = maps.double().numpy()
    spread = known.std(axis=1) + known.std(axis=(1, 2, 3))[:, None, None]
    np.testing.assert_allclose(normality.spread.numpy(), spread, rtol=1e-5)
    new = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    expected = ((new.numpy() - known.mean(axis=1)[:, None]) / spread[:, None]).sum(axis=0)
    np.testing.assert_allclose(normality.standardized(new).numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normality.standardized(maps).mean(dim=0).numpy(), 0, atol=1e-4)


def test_a_place_without_any_spread_stays_finite():
    maps = torch.ones(1, 4, 3, 3)
    assert torch.equal(MapStatistics.of([maps]).standardized(maps), torch.zeros(4, 3, 3))


def test_the_refinement_is_that_of_the_steadiest_level():
    """Written out image by image: of the level whose upsampled map varies least, 1 + the largest native distance."""
    pairs = make_pairs()
    for image in range(3):
        steadiest, largest = torch.tensor(torch.inf), torch.tensor(0.0)
        for teacher, student in pairs:
            native = 1 - F.cosine_similarity(teacher[image : image + 1], student[image : image + 1])
            varies = F.interpolate(native[None], (64, 64), mode="bilinear", align_corners=True).var()
            if varies < steadiest:
                steadiest, largest = varies, native.max()
        assert score_refinement_factor(pairs, 64)[image].item() == pytest.approx(1 + largest.item(), rel=1e-5)
    assert score_refinement_factor(pairs, 64).min() >= 1
    assert torch.equal(
        score_refinement_factor([(teacher, teacher) for teacher, _ in pairs], 64).round(decimals=5), torch.ones(3)
    )
