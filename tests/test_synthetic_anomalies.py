"""Painted damage: where it is, how large, and what it is made of, read back from images of coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opensimplex import OpenSimplex

from methods.synthetic_anomalies import DAMAGES, copy_paste, painter, simplex_field, simplex_noise, swap_patches


def coordinates(batch, size):
    """(B, 3, S, S) float64: red holds the row, green the column, blue is 1 everywhere."""
    rows, columns = torch.meshgrid(*[torch.arange(size).double()] * 2, indexing="ij")
    return torch.stack([rows, columns, torch.ones(size, size).double()]).repeat(batch, 1, 1, 1)


def photographs(batch=3, size=64):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def rectangle(changed):
    """(S, S) bool -> rows, columns as slices around what changed; all of it must have."""
    rows, columns = (np.flatnonzero(changed.any(dim=axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert changed[window].all()
    return window


def extent(window):
    return window[0].stop - window[0].start, window[1].stop - window[1].start


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("size", [32, 64, 256])
def test_a_synthetic_anomaly_corrupts_every_image_of_a_copy_and_repeats_with_its_seed(name, size):
    paint, images = painter(name, 5, size), photographs(size=size)
    untouched = images.clone()
    first, second, other = (paint(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, untouched)
    assert first.shape == images.shape and first.dtype == images.dtype
    assert torch.equal(first, second) and not torch.equal(first, other)
    shares = (first != images).any(dim=1).double().mean(dim=(1, 2))
    assert (shares > 0).all() and (shares < 0.8).all()  # the rest equals the input to the bit


@pytest.mark.parametrize("size, bands", [(256, ((10, 32), (64, 100), (150, 200))), (64, ((2, 8), (16, 25), (38, 50)))])
def test_copy_paste_draws_one_side_per_batch_from_three_bands(size, bands):
    rng, images = np.random.default_rng(0), torch.ones(8, 3, size, size)
    sides = []
    for _ in range(400):
        changed = (copy_paste(images, rng) != images).any(dim=1)
        extents = np.array([extent(rectangle(image)) for image in changed])
        sides.append(extents.max())
        assert set(extents.flat) <= {sides[-1] - 1, sides[-1]}
    shares = [np.mean([low <= side <= high for side in sides]) for low, high in bands]
    assert sum(shares) == 1
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.07)
    for low, high in bands:
        inside = [side for side in sides if low <= side <= high]
        assert min(inside) <= low + 2 and max(inside) >= high - 2


@pytest.mark.parametrize("size", [64, 256])
def test_copy_paste_adds_a_fifth_of_what_lies_under_the_patch(size):
    rng, images = np.random.default_rng(1), coordinates(8, size)
    trimmed = set()
    for _ in range(40):
        painted = copy_paste(images, rng)
        windows = [rectangle(image[2] != 1) for image in painted]
        t = max(max(extent(window)) for window in windows)
        for image, window in zip(painted, windows, strict=True):
            rows, columns = window
            height, width = extent(window)
            patch = image[:, rows, columns] - 0.2 * images[0][:, rows, columns]
            y, x = round(patch[0, 0, 0].item()), round(patch[1, 0, 0].item())
            source = images[0][:, y : y + height, x : x + width]
            assert torch.equal(image[:, rows, columns], source + 0.2 * images[0][:, rows, columns])
            outside = torch.ones(size, size, dtype=torch.bool)
            outside[window] = False
            assert torch.equal(image[:, outside], images[0][:, outside])
            # drawn from [0, S - t) and [1, S - side - 1)
            assert 0 <= y < size - t and 0 <= x < size - t
            assert 1 <= rows.start < size - height - 1 and 1 <= columns.start < size - width - 1
            # a start and a side of different parity cost a pixel
            assert height == t - (y - t) % 2 and width == t - (x - t) % 2
            trimmed |= {("height", t - height), ("width", t - width)}
    assert len(trimmed) == 4


def displacements(image, images):
    """The changed pixels of a swapped image, one (S, S) bool for each way (rows, columns) that they moved."""
    rows, columns, _ = image - images[0]
    shift = 1000 * rows + columns
    return [shift == value for value in shift.unique() if value]


@pytest.mark.parametrize("size, batch", [(32, 1500), (256, 200)])
def test_swap_patches_moves_one_to_four_rectangles(size, batch):
    rng, images = np.random.default_rng(2), coordinates(batch, size)
    counts, sides = [], []
    for image in swap_patches(images, rng):
        moved = displacements(image, images)
        counts.append(len(moved))
        assert (image[2] == 1).all()
        if len(moved) == 1:
            sides += extent(rectangle(moved[0]))
    # never more shifts than patches: each was copied from the untouched image
    assert set(counts) == {1, 2, 3, 4}
    np.testing.assert_allclose([counts.count(n) / batch for n in (1, 2, 3, 4)], 0.25, atol=0.1)
    fractions = np.array(sides) / size
    assert round(0.03 * size) <= min(sides) and max(sides) <= round(0.4 * size)
    assert fractions.mean() == pytest.approx(0.13, abs=0.02) and fractions.std() == pytest.approx(0.07, abs=0.015)


@pytest.mark.parametrize("size, smallest, largest", [(32, 2, 3), (64, 2, 7), (256, 10, 31), (288, 11, 35)])
def test_simplex_noise_adds_a_fifth_of_the_fields_corner(size, smallest, largest):
    field = np.random.default_rng(0).uniform(0.5, 1, (3, largest, largest))
    rng, images = np.random.default_rng(3), torch.full((8, 3, size, size), 0.25, dtype=torch.float64)
    extents = []
    for _ in range(25):
        for image in simplex_noise(images, rng, field):
            window = rows, columns = rectangle((image != 0.25).all(dim=0))
            height, width = extent(window)
            expected = images[0].clone()
            expected[:, rows, columns] += 0.2 * torch.from_numpy(field[:, :height, :width])
            assert torch.equal(image, expected)
            assert min(rows.start, columns.start) >= 1 and max(rows.stop, columns.stop) < size
            extents.append((height, width))
    for sides in zip(*extents, strict=True):
        assert smallest <= min(sides) <= smallest + 1 and largest - 1 <= max(sides) <= largest
        assert np.mean(sides) == pytest.approx((smallest + largest) / 2, abs=0.08 * largest)


def test_the_field_is_a_sum_of_six_octaves():
    field, noise = simplex_field(11), OpenSimplex(11)
    assert field.shape == (3, 31, 31)
    for color, y, x in [(0, 0, 1), (1, 7, 3), (2, 30, 12), (0, 5, 30), (2, 17, 17)]:
        octaves = [0.6**n * noise.noise3(x * 2**n / 32, y * 2**n / 32, color * 2**n / 32) for n in range(6)]
        assert field[color, y, x] == pytest.approx(sum(octaves), abs=1e-12)
    assert np.array_equal(simplex_field(11, side=9), field[:, :9, :9])
    assert not np.array_equal(simplex_field(12, side=9), field[:, :9, :9])


def test_a_simplex_painter_keeps_one_field_for_the_whole_run():
    images = photographs()
    paint, again, other = (painter("simplex", seed, 64) for seed in (4, 4, 5))
    painted = [p(images, np.random.default_rng(0)) for p in (paint, again, other)]
    expected = simplex_noise(images, np.random.default_rng(0), simplex_field(4, side=7))
    assert torch.equal(painted[0], expected) and torch.equal(painted[1], expected)
    assert not torch.equal(painted[2], expected)


def test_what_cannot_be_painted_is_refused():
    with pytest.raises(ValueError, match="unknown damage 'scratch': choose from copy_paste, swap_patches, simplex"):
        painter("scratch", 0, 64)
    with pytest.raises(ValueError, match="--image_size 16: .* at least 32 pixels"):
        painter("copy_paste", 0, 16)
    with pytest.raises(ValueError, match="images of 256 pixels need sides of at least 31"):
        simplex_noise(photographs(size=256), np.random.default_rng(0), np.zeros((3, 7, 7)))
