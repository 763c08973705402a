"""The controls against their definitions, and the table that the command prints of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter
from sklearn.metrics import roc_auc_score
from toys import CPU, MakeTree, random_images

from commandline import exit_code
from dataset import ImageSet
from experiment import Experiment
from flags import parse
from model import Teacher, build_teacher
from scoring.metrics import compute_metrics
from scripts import controls
from scripts.controls import METRICS, main, metrics, nearest_neighbor_maps, patch_features, z_score_maps


@pytest.fixture
def images(mvtec_tree: MakeTree) -> tuple[ImageSet, ImageSet]:
    config = parse(["--data_path", str(mvtec_tree()), "--class", "bottle", "--image_size", "64"])
    one = Experiment(config, CPU)
    return one.normal_images, one.test_images


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return build_teacher("efficientnet_lite0")


def pixels_of(images: ImageSet) -> np.ndarray:
    return np.stack([images.image(i) for i in range(len(images))])


def z_scores_written_out(train: ImageSet, test: ImageSet) -> np.ndarray:
    """Deviations from the mean over the training images, in standard deviations plus one gray value."""
    normal = pixels_of(train).astype(float)
    deviations = np.abs(pixels_of(test) - normal.mean(axis=0)) / (normal.std(axis=0) + 1)
    return np.stack([gaussian_filter(one.mean(axis=0), 4) for one in deviations])


def patches_written_out(teacher: Teacher, images: ImageSet) -> np.ndarray:
    """(N, 8, 8, C): the levels at strides 8 and 16, averaged over 3x3 with zeros around, at stride 8 and joined."""
    _, middle, coarse = (
        torch.from_numpy(uniform_filter(level.double().numpy(), (0, 0, 3, 3), mode="constant"))
        for level in teacher(torch.from_numpy(pixels_of(images)))
    )
    coarse = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=False)
    return torch.cat([middle, coarse], dim=1).movedim(1, -1).numpy()


def nearest_written_out(teacher: Teacher, train: ImageSet, test: ImageSet) -> np.ndarray:
    known = patches_written_out(teacher, train).reshape(-1, sum(teacher.channels[1:]))
    maps = []
    for image in patches_written_out(teacher, test):
        nearest = [[np.sqrt(((known - patch) ** 2).sum(axis=1)).min() for patch in row] for row in image]
        large = torch.nn.functional.interpolate(
            torch.tensor(nearest)[None, None], size=(64, 64), mode="bilinear", align_corners=True
        )
        maps.append(gaussian_filter(large[0, 0].numpy(), 4))
    return np.stack(maps)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_z_score_is_the_one_of_its_definition(images: tuple[ImageSet, ImageSet], workers: int) -> None:
    maps = np.stack(list(z_score_maps(*images, workers)))
    assert maps.shape == (6, 64, 64)
    np.testing.assert_allclose(maps, z_scores_written_out(*images), rtol=1e-6)


def test_nearest_neighbors_are_those_of_the_definition(images: tuple[ImageSet, ImageSet], teacher: Teacher) -> None:
    """8 x 64 training patches: all of them are kept."""
    expected = nearest_written_out(teacher, *images)
    for batch_size, workers in ((4, 0), (5, 2)):
        maps = np.stack(list(nearest_neighbor_maps(teacher, *images, batch_size, workers)))
        np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_a_training_image_is_its_own_nearest_neighbor(images: tuple[ImageSet, ImageSet], teacher: Teacher) -> None:
    train, test = images
    itself = np.stack(list(nearest_neighbor_maps(teacher, train, train, 4, 0)))
    other = np.stack(list(nearest_neighbor_maps(teacher, train, test, 4, 0)))
    assert itself.max() < 0.05 * other.max()


def test_with_fewer_patches_to_choose_from_none_is_nearer(
    images: tuple[ImageSet, ImageSet], teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = np.stack(list(nearest_neighbor_maps(teacher, *images, 4, 0)))
    monkeypatch.setattr(controls, "BANK", 100)
    drawn, again = (np.stack(list(nearest_neighbor_maps(teacher, *images, 4, 0))) for _ in range(2))
    assert np.array_equal(drawn, again)
    assert (drawn >= everything - 1e-3 * everything.max()).all() and drawn.mean() > 1.01 * everything.mean()


def test_patch_features_have_the_channels_of_both_levels_at_stride_8(teacher: Teacher) -> None:
    assert patch_features(teacher, random_images(side=96).numpy()).shape == (2, 12, 12, sum(teacher.channels[1:]))


def test_metrics_are_over_all_images_with_the_map_s_maximum_as_score(images: tuple[ImageSet, ImageSet]) -> None:
    _, test = images
    maps = np.random.default_rng(0).random((6, 64, 64))
    masks = [test.mask(i) for i in range(6)]
    image_auroc, pixel_auroc, aupro = metrics(test, iter(maps))
    assert image_auroc == pytest.approx(roc_auc_score(test.labels, maps.max(axis=(1, 2))))
    assert pixel_auroc == pytest.approx(roc_auc_score(np.array(masks).ravel(), maps.ravel()))
    assert aupro == compute_metrics(test.labels, maps.max(axis=(1, 2)), maps, masks).values["aupro"]


def brighten(path: Path) -> None:
    """As under a brighter lamp: the texture stays, and the z-score takes the image for anomalous."""
    Image.open(path).point(lambda value: min(255, value + 70)).save(path)


def test_each_row_of_the_command_has_its_own_control_s_metrics(
    mvtec_tree: MakeTree, teacher: Teacher, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mvtec_tree(classes=("bottle", "cable"), train=4)
    for image in ("bottle/test/good/000.png", "bottle/test/good/001.png", "cable/test/good/000.png"):
        brighten(root / image)
    arguments = f"--data-path {root} --net efficientnet_lite0 --image_size 64 --workers 0".split()
    assert exit_code(lambda: main(arguments)) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["control", "class", *METRICS]

    expected: dict[str, list[list[float]]] = {"pixel z-score": [], "nearest neighbor": []}
    for name in ("bottle", "cable"):
        one = Experiment(parse([*arguments, "--class", name]), CPU)
        train, test = one.normal_images, one.test_images
        expected["pixel z-score"].append(metrics(test, iter(z_scores_written_out(train, test))))
        expected["nearest neighbor"].append(metrics(test, iter(nearest_written_out(teacher, train, test))))
    z_scores, neighbors = expected.values()
    differences = np.abs(np.subtract([*z_scores, *neighbors][:3], [*z_scores, *neighbors][1:]))
    assert (differences.max(axis=1) > 0.003).all(), "a mix-up of rows would show"
    found = iter(lines)
    for control, values in expected.items():
        for name, row in zip(("bottle", "cable", "mean"), [*values, np.mean(values, axis=0)], strict=True):
            line = next(found)
            assert line.split()[:-3] == [*control.split(), name]
            assert [float(value) for value in line.split()[-3:]] == pytest.approx(list(row), abs=0.0006)
    assert next(found, None) is None
