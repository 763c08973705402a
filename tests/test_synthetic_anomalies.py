"""Synthetic anomalies: where they are, how large, and of what, read back from images of coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opensimplex import OpenSimplex
from scipy.ndimage import median_filter

from config import Config
from dataset import BENCHMARKS
from experiment import Experiment
from methods.mrkd_patches import MIDDLE, PATCH_SETTINGS, object_mask, swap_patches
from methods.synthetic_anomalies import CORRUPTIONS, build_corruption, copy_paste, simplex_field, simplex_noise


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


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 64, 256])
def test_a_corruption_changes_every_image_of_a_copy_and_repeats_with_its_seed(name, size):
    corrupt, images = build_corruption(name, 5, size), photographs(size=size)
    untouched = images.clone()
    first, second, other = (corrupt(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, untouched)
    assert first.shape == images.shape and first.dtype == images.dtype
    assert torch.equal(first, second) and not torch.equal(first, other)
    shares = (first != images).any(dim=1).double().mean(dim=(1, 2))
    assert (shares > 0).all() and (shares < 0.8).all()  # the rest equals the input to the bit


@pytest.mark.parametrize(
    "size, bands",
    [
        pytest.param(256, ((10, 32), (64, 100), (150, 200)), marks=pytest.mark.slow),
        (64, ((2, 8), (16, 25), (38, 50))),
    ],
)
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
        corrupted = copy_paste(images, rng)
        windows = [rectangle(image[2] != 1) for image in corrupted]
        t = max(max(extent(window)) for window in windows)
        for image, window in zip(corrupted, windows, strict=True):
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
    """The changed pixels of an image with moved patches, one (S, S) bool for each way (rows, columns) they moved."""
    rows, columns, _ = image - images[0]
    shift = 1000 * rows + columns
    return [shift == value for value in shift.unique() if value]


def noise(size=256):
    """(1, 3, S, S), noise between 51 and 128 gray levels: object everywhere, whatever the class's background."""
    return 0.2 + 0.3 * torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def shares_changed(images, count, class_name):
    """The changed share of each of `count` copies of one image."""
    rng, shares = np.random.default_rng(4), []
    for batch in images.expand(count, -1, -1, -1).split(50):
        shares.append((swap_patches(batch, rng, class_name) != batch).any(dim=1).double().mean(dim=(1, 2)))
    return torch.cat(shares)


@pytest.mark.slow
@pytest.mark.parametrize(
    "class_name, share, tolerance",  # shares: the published code over 200 images; tolerance: three standard errors
    [
        ("carpet", 0.146, 0.020),
        ("leather", 0.146, 0.020),
        ("bottle", 0.112, 0.019),
        ("tile", 0.043, 0.004),
        ("wood", 0.006, 0.0005),  # here and below: half a digit
        ("screw", 0.010, 0.0005),
        ("capsule", 0.010, 0.0005),
    ],
)
def test_swap_patches_changes_the_share_of_pixels_that_mrkd_changes(class_name, share, tolerance):
    shares = shares_changed(noise(), 300, class_name)
    assert shares.min() > 0
    assert shares.mean().item() == pytest.approx(share, abs=tolerance)


def test_patch_sizes_scale_with_the_image():
    small, large = (shares_changed(noise(size), 300, "carpet").mean().item() for size in (64, 256))
    assert small == pytest.approx(large, abs=0.02)
    assert shares_changed(noise(), 20, "toothbrush").tolist() == [6 * 6 / 256**2] * 20
    assert shares_changed(noise(128), 20, "toothbrush").tolist() == [2 * 2 / 128**2] * 20
    assert shares_changed(noise(32), 20, "toothbrush").tolist() == [2 * 2 / 32**2] * 20


@pytest.mark.parametrize(
    "class_name, counts",
    [("grid", {1: 1 / 8, 2: 3 / 8, 3: 3 / 8, 4: 1 / 8}), ("cable", {1: 1 / 4, 2: 1 / 2, 3: 1 / 4})],
)
def test_after_the_first_patch_each_further_one_is_a_coin_flip(class_name, counts):
    images = coordinates(200, 256)
    corrupted = swap_patches(images, np.random.default_rng(2), class_name)
    found = [len(displacements(image, images)) for image in corrupted]
    assert set(found) == set(counts)
    for count, share in counts.items():
        assert found.count(count) / 200 == pytest.approx(share, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "class_name, mean_sides, largest", [("carpet", (64, 64), (204, 204)), ("wood", (25, 6), (26, 6))]
)
def test_patches_are_rectangles_of_the_same_image_off_its_border(class_name, mean_sides, largest):
    images, sides = coordinates(50, 256), []
    rng = np.random.default_rng(3)
    for image in torch.cat([swap_patches(images, rng, class_name) for _ in range(6)]):
        moved = displacements(image, images)
        assert (image[2] == 1).all()
        # never more shifts than patches: each was copied from the untouched image
        assert 1 <= len(moved) <= 4
        for shifted in moved:
            rows, columns = np.nonzero(shifted.numpy())
            assert rows.min() >= 1 and columns.min() >= 1 and rows.max() <= 254 and columns.max() <= 254
        if len(moved) == 1:
            sides.append(extent(rectangle(moved[0])))
    np.testing.assert_allclose(np.mean(sides, axis=0), mean_sides, rtol=0.25)
    assert (np.max(sides, axis=0) <= largest).all()


def test_the_settings_are_those_of_mvtec_s_classes_and_their_middle():
    assert set(PATCH_SETTINGS) == set(BENCHMARKS["mvtec"].classes)
    for name in ("heights", "widths", "most"):
        of_classes = [getattr(settings, name) for settings in PATCH_SETTINGS.values()]
        assert getattr(MIDDLE, name) == pytest.approx(np.median(of_classes, axis=0))
    assert MIDDLE.background is None and PATCH_SETTINGS["cable"] == MIDDLE
    # what is object is asked only where there is a background
    assert all((settings.background is None) == (settings.object_share == 0) for settings in PATCH_SETTINGS.values())


def test_a_corruption_depends_on_the_class_and_an_unknown_one_gets_the_middle():
    images = photographs(size=64)

    def corrupt(*class_name):
        return build_corruption("swap_patches", 0, 64, *class_name)(images, np.random.default_rng(1))

    middle = corrupt()
    assert torch.equal(middle, corrupt("cable")) and torch.equal(middle, corrupt("pcb1"))
    assert torch.equal(corrupt("carpet"), swap_patches(images, np.random.default_rng(1), "carpet"))
    assert not torch.equal(middle, corrupt("carpet"))
    # a run gives its own class
    for class_name in ("carpet", "cable"):
        of_run = Experiment(
            Config(variant="mrkd", classes=(class_name,), image_size=64), torch.device("cpu")
        ).corruption
        assert of_run is not None
        assert torch.equal(of_run(images, np.random.default_rng(1)), corrupt(class_name))


@pytest.mark.parametrize("size, side", [(32, 1), (64, 3), (256, 7)])
@pytest.mark.parametrize("brightness, tolerance", [(200, 60), (20, 20)])
def test_the_object_mask_is_what_differs_from_the_background_less_grain(size, side, brightness, tolerance):
    rng = np.random.default_rng(5)
    levels = rng.integers(0, 256, (4, 3, size, size))
    levels[1:] = np.clip(brightness + rng.normal(0, tolerance, (3, 1, size, size)), 0, 255)
    levels[2:, :, : size // 2] = 90  # an object with a straight edge, in noise
    into_range = 1 if brightness < 128 else -1
    levels[3] = brightness + into_range * tolerance  # background still, one level from being object
    levels[3, :, :, size // 2 :] += into_range
    differs = np.abs(levels.mean(axis=1) - brightness) > tolerance
    expected = np.stack([median_filter(mask, side, mode="nearest") for mask in differs])
    found = object_mask(torch.from_numpy(levels).float() / 255, brightness, tolerance)
    assert found.shape == (4, size, size) and found.dtype == torch.bool
    assert np.array_equal(found.numpy(), expected)
    assert found[3, :, size // 2 :].all() and not found[3, :, : size // 2].any()


def background_of(class_name):
    background = PATCH_SETTINGS[class_name].background
    assert background is not None
    return background


def scene(batch, size, brightness):
    """(B, 3, S, S) float64 and (S, S) bool: a disk on a background; red and green tell row and column."""
    rows, columns, _ = coordinates(1, size)[0]
    disk = (rows - 0.45 * size) ** 2 + (columns - 0.55 * size) ** 2 < (0.3 * size) ** 2
    levels = torch.where(disk, 100.0, float(brightness)).repeat(3, 1, 1)
    levels[0] += rows / size
    levels[1] += columns / size
    return (levels / 255).repeat(batch, 1, 1, 1), disk


@pytest.mark.parametrize("class_name", ["screw", "capsule", "pill", "toothbrush", "zipper", "metal_nut"])
def test_patches_come_from_the_object_land_on_it_and_change_it_alone(class_name):
    size, batch = 128, 150
    brightness, tolerance = background_of(class_name)
    images, disk = scene(batch, size, brightness)
    objects = object_mask(images[:1], brightness, tolerance)[0]
    assert (objects != disk).double().mean() < 0.005
    level = torch.where(disk, 100.0, float(brightness))
    shares, overlaps, least = [], [], PATCH_SETTINGS[class_name].object_share
    for image in swap_patches(images, np.random.default_rng(6), class_name):
        changed = (image != images[0]).any(dim=0)
        red, green, blue = image * 255
        base = torch.where((blue - 100).abs() < 1, 100.0, float(brightness))
        rows, columns = (torch.round((channel - base) * size).long() for channel in (red, green))
        assert torch.equal(level[rows, columns], base)  # each pixel is one of the same image
        away = torch.stack([rows, columns]) - torch.stack([*coordinates(1, size)[0, :2]]).long()
        (shift,) = away[:, changed].T.unique(dim=0)  # one patch, moved as a whole
        spots = changed.nonzero()
        window = tuple(slice(low, high + 1) for low, high in zip(spots.amin(0), spots.amax(0), strict=True))
        source = tuple(slice(w.start + s, w.stop + s) for w, s in zip(window, shift, strict=True))
        held, beneath = objects[source], objects[window]
        assert torch.equal(changed[window], held | beneath)
        shares.append(held.double().mean().item())
        overlaps.append(((held & beneath).sum() / held.sum()).item())
    # the limits hold, and some patches come near them
    assert least < min(shares) < least + 0.3 and 0.25 < min(overlaps) < 0.6


@pytest.mark.parametrize("class_name", ["bottle", "pill"])
def test_an_image_without_an_object_stays_as_it_is(class_name):
    images = torch.full((2, 3, 64, 64), background_of(class_name)[0] / 255)
    assert torch.equal(swap_patches(images, np.random.default_rng(0), class_name), images)


@pytest.mark.parametrize("size, smallest, largest", [(32, 2, 3), (64, 2, 7), (256, 10, 31), (288, 11, 35)])
def test_simplex_noise_adds_a_fifth_of_the_fields_corner(size, smallest, largest):
    field = np.random.default_rng(0).uniform(0.5, 1, (3, largest, largest))
    rng, images = np.random.default_rng(3), torch.full((8, 3, size, size), 0.25, dtype=torch.float64)
    extents, places = [], []
    for _ in range(25):
        for image in simplex_noise(images, rng, field):
            window = rows, columns = rectangle((image != 0.25).all(dim=0))
            height, width = extent(window)
            expected = images[0].clone()
            expected[:, rows, columns] += 0.2 * torch.from_numpy(field[:, :height, :width])
            assert torch.equal(image, expected)
            assert min(rows.start, columns.start) >= 1 and max(rows.stop, columns.stop) < size
            extents.append((height, width))
            # how far between the first place that is possible, 0, and the last, 1
            places.append([(rows.start - 1) / (size - height - 2), (columns.start - 1) / (size - width - 2)])
    for starts in zip(*places, strict=True):  # 200 uniform draws: the standard error of their mean is 0.02
        assert min(starts) < 0.05 and max(starts) > 0.95
        assert np.mean(starts) == pytest.approx(0.5, abs=0.08)
    assert abs(np.corrcoef(np.array(places).T)[0, 1]) < 0.3, "rows and columns are drawn separately"
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


def test_a_simplex_corruption_keeps_one_field_for_the_whole_run():
    images = photographs()
    corrupt, again, other = (build_corruption("simplex", seed, 64) for seed in (4, 4, 5))
    corrupted = [p(images, np.random.default_rng(0)) for p in (corrupt, again, other)]
    expected = simplex_noise(images, np.random.default_rng(0), simplex_field(4, side=7))
    assert torch.equal(corrupted[0], expected) and torch.equal(corrupted[1], expected)
    assert not torch.equal(corrupted[2], expected)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(ValueError, match="unknown corruption 'scratch': choose from copy_paste, swap_patches, simplex"):
        build_corruption("scratch", 0, 64)
    with pytest.raises(ValueError, match="--image_size 16: .* at least 32 pixels"):
        build_corruption("copy_paste", 0, 16)
    with pytest.raises(ValueError, match="images of 256 pixels need sides of at least 31"):
        simplex_noise(photographs(size=256), np.random.default_rng(0), np.zeros((3, 7, 7)))
