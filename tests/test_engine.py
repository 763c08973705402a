"""One epoch of training: it learns, its means are over images, gradients are accumulated as published."""

from __future__ import annotations

import pytest
import torch

from dataset import ImageSet
from engine import held_out_loss, train_one_epoch
from feature_cache import FeatureCache
from methods import VARIANTS, Recipe
from methods.losses import cosine_loss
from model import Distiller


def test_an_epoch_lowers_the_loss_and_reports_its_terms(distiller: Distiller, images: ImageSet) -> None:
    features = FeatureCache(distiller.teacher, images)
    recipe = VARIANTS["sk_rd4ad"]
    optimizer = torch.optim.Adam(distiller.trainable(), lr=0.002)
    order = list(range(len(images)))
    epochs = [train_one_epoch(distiller, features.batches(order, 4), optimizer, recipe) for _ in range(5)]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    for epoch in epochs:
        assert epoch["loss"] == pytest.approx(sum(term.weight * epoch[term.label] for term in recipe.losses), rel=1e-5)


def test_a_short_last_batch_weighs_by_its_images(distiller: Distiller, images: ImageSet) -> None:
    """With a step size of 0 the mean over batches of 4 and 3 is the mean over images."""
    features = FeatureCache(distiller.teacher, images)
    optimizer = torch.optim.SGD(distiller.trainable(), lr=0.0)
    batches = list(features.batches(list(range(7)), 4))
    parts = [train_one_epoch(distiller, iter([batch]), optimizer, Recipe())["loss"] for batch in batches]
    whole = train_one_epoch(distiller, iter(batches), optimizer, Recipe())["loss"]
    assert whole == pytest.approx((4 * parts[0] + 3 * parts[1]) / 7, rel=1e-6)


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
        parts = [
            float(cosine_loss(list(zip(batch.clean, distiller.eval().student_features(batch.clean), strict=True))))
            for batch in batches
        ]
    assert found == pytest.approx((4 * parts[0] + 3 * parts[1]) / 7, rel=1e-6)
