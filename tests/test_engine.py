"""The loops: every way of feeding the student is the same, an epoch learns, scoring keeps the images' order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import MakeTree

from dataset import ImageSet, Sample
from engine import Scoring, evaluate, fit_map_statistics, held_out_loss, predict, train_one_epoch
from experiment import images_of
from feature_cache import CachePolicy, FeatureCache
from flags import parse
from methods import VARIANTS, Recipe, build_distiller
from methods.losses import cosine_loss
from methods.synthetic_anomalies import painter
from model import Distiller, build_teacher
from scoring.anomaly_map import anomaly_map, image_score

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def distiller() -> Distiller:
    torch.manual_seed(0)
    return build_distiller(VARIANTS["sk_rd4ad"], build_teacher("efficientnet_lite0", "random"))


@pytest.fixture
def images(mvtec_tree: MakeTree) -> ImageSet:
    root = mvtec_tree(train=7)
    return images_of(parse(["--data_path", str(root), "--class", "bottle", "--image_size", "64"]), "train")


@pytest.mark.parametrize("cache", ["features", "images"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_cache_gives_the_levels_that_no_cache_gives(
    distiller: Distiller, images: ImageSet, cache: str, workers: int
) -> None:
    order = [3, 0, 6, 1, 5, 2, 4]
    plain = FeatureCache(distiller.teacher, images, CachePolicy("none"))
    cached = FeatureCache(distiller.teacher, images, CachePolicy(cache), batch_size=3, workers=workers)
    assert cached.cache == cache
    for _ in range(2):  # the second epoch reads the cache again
        batches = list(zip(plain.batches(order, 3), cached.batches(order, 3), strict=True))
        assert [len(seen.clean[0]) for seen, _ in batches] == [3, 3, 1]
        for expected, found in batches:
            assert found.corrupted is None and found.corruption_map is None
            for a, b in zip(expected.clean, found.clean, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_auto_takes_the_first_cache_that_fits(distiller: Distiller, images: ImageSet) -> None:
    gib = 2**30
    features = 4 * 7 * sum(level[0].numel() for level in distiller.teacher(torch.zeros(1, 3, 64, 64)))
    pixels = 7 * 3 * 64 * 64
    for budget, kind in ((features, "features"), (features - 1, "images"), (pixels - 1, "none")):
        assert FeatureCache(distiller.teacher, images, CachePolicy("auto", budget / gib)).cache == kind


def test_an_epoch_lowers_the_loss_and_reports_its_terms(distiller: Distiller, images: ImageSet) -> None:
    targets = FeatureCache(distiller.teacher, images)
    recipe = VARIANTS["sk_rd4ad"]
    optimizer = torch.optim.Adam(distiller.trainable(), lr=0.002)
    order = list(range(len(images)))
    epochs = [train_one_epoch(distiller, targets.batches(order, 4), optimizer, recipe) for _ in range(5)]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    for epoch in epochs:
        assert epoch["loss"] == pytest.approx(sum(term.weight * epoch[term.label] for term in recipe.losses), rel=1e-5)


def test_a_short_last_batch_weighs_by_its_images(distiller: Distiller, images: ImageSet) -> None:
    """With a step size of 0 the mean over batches of 4 and 3 is the mean over images."""
    targets = FeatureCache(distiller.teacher, images)
    optimizer = torch.optim.SGD(distiller.trainable(), lr=0.0)
    batches = list(targets.batches(list(range(7)), 4))
    parts = [train_one_epoch(distiller, iter([batch]), optimizer, Recipe())["loss"] for batch in batches]
    whole = train_one_epoch(distiller, iter(batches), optimizer, Recipe())["loss"]
    assert whole == pytest.approx((4 * parts[0] + 3 * parts[1]) / 7, rel=1e-6)


def test_predictions_come_in_the_order_of_the_images(distiller: Distiller, images: ImageSet) -> None:
    batches = list(predict(distiller, images, CPU, Scoring(batch_size=3, workers=2)))
    maps = np.concatenate([maps for _, maps in batches])
    scores = np.concatenate([scores for scores, _ in batches])
    with torch.no_grad():
        for i in range(len(images)):
            alone = anomaly_map(distiller(torch.from_numpy(images.image(i)[None])), 64)
            np.testing.assert_allclose(maps[i], alone[0].numpy(), atol=1e-5)
            assert scores[i] == pytest.approx(float(image_score(alone)), abs=1e-5)


def test_scoring_options_reach_map_and_score(distiller: Distiller, images: ImageSet) -> None:
    plain = Scoring(batch_size=7)
    ((scores, maps),) = predict(distiller, images, CPU, replace(plain, score_num=10))
    highest = np.sort(maps.reshape(7, -1), axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(scores, highest, rtol=1e-6)
    ((_, coarse),) = predict(distiller, images, CPU, replace(plain, levels=(1, 2)))
    ((_, fine),) = predict(distiller, images, CPU, replace(plain, levels=(0,)))
    np.testing.assert_allclose(coarse + fine, maps, atol=1e-5)
    ((_, product),) = predict(distiller, images, CPU, replace(plain, anomaly_map="multiply"))
    assert not np.allclose(product, maps)


def test_without_masks_pixel_figures_are_undefined_and_image_figures_stand(
    distiller: Distiller, images: ImageSet
) -> None:
    samples = [replace(sample, anomalous=i < 3, defect="x") for i, sample in enumerate(images.samples)]
    result = evaluate(distiller, ImageSet(samples, 64), CPU, Scoring())
    metrics = result.metrics()
    assert metrics["image_auroc"] is not None
    assert metrics["pixel_auroc"] is None and "mask" in result.report.reasons["pixel_auroc"]


def test_only_normal_images_leave_every_figure_undefined_with_its_reason(
    distiller: Distiller, images: ImageSet
) -> None:
    result = evaluate(distiller, images, CPU, Scoring())
    assert set(result.metrics().values()) == {None}
    assert set(result.report.reasons) == set(result.report.values)


def test_an_unreadable_image_is_named(distiller: Distiller, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ValueError, match=r"broken\.png"):
        list(predict(distiller, ImageSet([Sample(broken, False, "good")], 64), CPU, Scoring()))


def test_image_figures_alone_say_that_the_others_were_not_asked_for(distiller: Distiller, images: ImageSet) -> None:
    samples = [replace(sample, anomalous=i < 3, defect="x") for i, sample in enumerate(images.samples)]
    result = evaluate(distiller, ImageSet(samples, 64), CPU, Scoring(), pixel_metrics=False)
    assert result.metrics()["image_auroc"] is not None
    assert result.report.reasons["aupro"] == "pixel metrics were not asked for"


def test_standardised_maps_know_the_training_images_alone(distiller: Distiller, images: ImageSet) -> None:
    scoring = fit_map_statistics(
        distiller, images, CPU, Scoring(levels=(1, 2), anomaly_map="standardized", batch_size=3)
    )
    maps = np.concatenate([maps for _, maps in predict(distiller, images, CPU, scoring)])
    assert maps.shape == (7, 64, 64)
    np.testing.assert_allclose(maps.mean(axis=0), 0, atol=1e-3)
    assert fit_map_statistics(distiller, images, CPU, Scoring()) == Scoring()


@pytest.mark.parametrize("cache", ["features", "images", "none"])
def test_every_cache_gives_the_same_damaged_view(distiller: Distiller, images: ImageSet, cache: str) -> None:
    paint = painter("copy_paste", 0, 64)
    found = []
    for kind in (cache, "none"):
        targets = FeatureCache(distiller.teacher, images, CachePolicy(kind), corrupt=paint)
        torch.manual_seed(3)
        found.append(list(targets.batches([2, 0, 1], 2)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.corrupted is not None and theirs.corrupted is not None
        assert ours.corruption_map is not None and ours.corruption_map.shape[1:] == (1, 64, 64)
        for a, b in zip([*ours.clean, *ours.corrupted], [*theirs.clean, *theirs.corrupted], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.corruption_map, theirs.corruption_map) and 0 < ours.corruption_map.mean() < 1


def test_damage_is_the_angle_between_the_colors_that_the_teacher_sees(distiller: Distiller, images: ImageSet) -> None:
    """Only the painted pixels are damaged; the levels are those of the painted images."""

    def paint(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        painted = images.clone()
        painted[:, :, 10:20, 30:50] = 1 - painted[:, :, 10:20, 30:50]
        return painted

    (seen,) = FeatureCache(distiller.teacher, images, corrupt=paint).batches([0, 4], 2)
    images = torch.from_numpy(np.stack([images.image(i) for i in (0, 4)])) / 255
    painted = paint(images, np.random.default_rng(0))
    seen_clean, seen_painted = ((x - distiller.teacher.mean) / distiller.teacher.std for x in (images, painted))
    expected = 1 - torch.nn.functional.cosine_similarity(seen_clean, seen_painted)
    assert seen.corruption_map is not None and seen.corrupted is not None
    torch.testing.assert_close(seen.corruption_map[:, 0], expected, rtol=1e-4, atol=1e-5)
    outside = seen.corruption_map.clone()
    outside[:, :, 10:20, 30:50] = 0
    assert outside.abs().max() < 1e-6
    for found, wanted in zip(seen.corrupted, distiller.teacher(painted), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_accumulated_gradients_make_one_step_and_what_is_left_makes_another(
    distiller: Distiller, images: ImageSet
) -> None:
    """Two batches a step: the gradients are summed, as RD++'s code does, not averaged."""

    class Counting(torch.optim.SGD):
        gradients: list[torch.Tensor] = []

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            self.gradients.append(torch.cat([p.grad.flatten() for p in distiller.trainable() if p.grad is not None]))

    batches = list(FeatureCache(distiller.teacher, images).batches(list(range(7)), 2))
    separate = Counting(distiller.trainable(), lr=0.0)
    train_one_epoch(distiller, batches, separate, Recipe())
    one_by_one, separate.gradients[:] = list(separate.gradients), []
    train_one_epoch(distiller, batches[:3], separate, Recipe(), accumulate=2)
    assert (len(one_by_one), len(separate.gradients)) == (4, 2)
    torch.testing.assert_close(separate.gradients[0], one_by_one[0] + one_by_one[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(separate.gradients[1], one_by_one[2], rtol=1e-4, atol=1e-6)


def test_the_held_out_loss_trains_nothing_and_is_the_loss_in_evaluation(distiller: Distiller, images: ImageSet) -> None:
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    batches = list(FeatureCache(distiller.teacher, images).batches(list(range(7)), 4))
    found = held_out_loss(distiller, batches, Recipe())
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    with torch.no_grad():
        parts = [float(cosine_loss(distiller.eval().rebuild(seen.clean))) for seen in batches]
    assert found == pytest.approx((4 * parts[0] + 3 * parts[1]) / 7, rel=1e-6)


def test_refined_scores_are_raised_and_their_maps_are_not(distiller: Distiller, images: ImageSet) -> None:
    plain = Scoring(batch_size=7, anomaly_map="mean")
    ((scores, maps),) = predict(distiller, images, CPU, plain)
    ((refined, same),) = predict(distiller, images, CPU, replace(plain, refine=True))
    assert np.array_equal(maps, same)
    assert (refined >= scores).all() and (refined > scores).any()
