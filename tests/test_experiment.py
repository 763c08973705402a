"""An Experiment's parts: its optimizer is Adam as defined, its split is a partition, its weights depend on its key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import CPU, MakeTree

from config import Config
from dataset import ImageSet
from experiment import Experiment


def experiment(**changes: Any) -> Experiment:
    """One of 64 pixels around a narrow teacher."""
    settings: dict[str, Any] = {"classes": ("bottle",), "net": "efficientnet_lite0", "image_size": 64, "workers": 0}
    return Experiment(Config(**settings | changes), CPU)


def names(images: ImageSet | None) -> list[str]:
    assert images is not None
    return [sample.image.name for sample in images.samples]


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


# --- the optimizer ---


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "sk_rd4ad"},
        {"variant": "sk_rd4ad", "weight_decay": 0.01, "learning_rate": 0.02},
        {"variant": "masked"},  # weight decay and running means of its own
        {"variant": "drd"},
        {"variant": "rdpp", "weight_decay": 0.01},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_two_steps_are_those_of_adam_by_its_definition(settings: dict[str, Any]) -> None:
    """The gradients are so small that even a weight decay of 1e-5 decides where a step goes."""
    one = experiment(**settings)
    training, draw = one.config.training, torch.Generator().manual_seed(0)
    projection = one.distiller.projection
    slow = {id(parameter) for parameter in projection.parameters()} if projection else set()
    parameters = one.distiller.trainable()
    expected = [parameter.detach().clone().double() for parameter in parameters]
    first, second = ([torch.zeros_like(value) for value in expected] for _ in range(2))
    (beta1, beta2) = training.betas
    for step in (1, 2):
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.empty_like(parameter).normal_(std=1e-6, generator=draw)
            gradient = parameter.grad.double() + training.weight_decay * expected[place]
            first[place] = beta1 * first[place] + (1 - beta1) * gradient
            second[place] = beta2 * second[place] + (1 - beta2) * gradient**2
            mean, square = first[place] / (1 - beta1**step), second[place] / (1 - beta2**step)
            rate = training.projection_rate if id(parameter) in slow else training.learning_rate
            expected[place] = expected[place] - rate * mean / (square.sqrt() + 1e-8)
        one.optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_the_optimizer_holds_every_trainable_parameter_once() -> None:
    for variant in ("rd4ad", "masked", "rdpp"):
        one = experiment(variant=variant)
        held = [id(parameter) for group in one.optimizer.param_groups for parameter in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == {id(parameter) for parameter in one.distiller.trainable()}


# --- the held-out images ---


def split(root: Path, **changes: Any) -> Experiment:
    return experiment(**{"data_path": root, "patience": 3, "patience_holdout": 0.25} | changes)


def test_held_out_and_training_images_are_a_partition_of_the_normal_images(mvtec_tree: MakeTree) -> None:
    one = split(mvtec_tree(train=20))
    train, held_out, everything = map(names, (one.train_images, one.held_out_images, one.normal_images))
    assert len(held_out) == 5
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(everything) and len(train) + len(held_out) == len(everything) == 20
    assert train == sorted(train) and held_out == sorted(held_out), "in the benchmark's order"
    # what training and stopping early compute with is made of them
    assert one.held_out_features is not None
    assert (names(one.features.images), names(one.held_out_features.images)) == (train, held_out)


def test_held_out_images_are_drawn_by_class_and_seed_and_by_nothing_else(mvtec_tree: MakeTree) -> None:
    root = mvtec_tree(["bottle", "cable"], train=20)
    first = names(split(root).held_out_images)
    torch.rand(3), np.random.rand(3)
    assert names(split(root, variant="masked", epochs=7, batch_size=3).held_out_images) == first
    others = [split(root, seeds=(2,)), split(root, classes=("cable",)), split(root, seeds=(2,), classes=("cable",))]
    drawn = [first, *(names(other.held_out_images) for other in others)]
    assert len({tuple(sorted(images)) for images in drawn}) == 4


def test_without_patience_all_normal_images_are_trained_on(mvtec_tree: MakeTree) -> None:
    one = split(mvtec_tree(), patience=0)
    assert names(one.train_images) == names(one.normal_images) and len(one.train_images) == 8
    assert one.held_out_images is None and one.held_out_features is None


def test_color_scale_and_brightness_come_from_one_reading_of_a_sample(
    mvtec_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = split(mvtec_tree(), patience=0)
    assert names(one.sampled_images) == names(one.train_images), "no more than SAMPLE"
    monkeypatch.setattr("experiment.SAMPLE", 3)
    sampled = one.sampled_images
    assert names(sampled) == names(one.train_images)[::3]
    one.detector().fit_color_scale(sampled)
    means = [one.train_images.image(number).mean() for number in (0, 3, 6)]
    assert sampled.brightness_range == [round(min(means), 2), round(max(means), 2)]


# --- seeds ---


@pytest.mark.parametrize("variant", ["sk_rd4ad", "masked", "rdpp"])
@pytest.mark.parametrize("weights", ["auto", "random"])
def test_initial_weights_do_not_depend_on_what_was_drawn_or_built_before(variant: str, weights: str) -> None:
    first = experiment(variant=variant, weights=weights)
    assert first.distiller is first.distiller, "built once"
    torch.rand(5), np.random.rand(5)
    experiment(variant="drd", weights=weights, seeds=(5,)).distiller.train()
    second = experiment(variant=variant, weights=weights)
    second.teacher, torch.rand(7)
    assert same_state(first.distiller, second.distiller)


def test_initial_weights_are_those_of_class_and_seed() -> None:
    first = experiment().distiller.student
    for other in ({"seeds": (2,)}, {"classes": ("cable",)}):
        assert not same_state(first, experiment(**other).distiller.student)


def test_the_title_of_a_run_influences_nothing(mvtec_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    root, images = mvtec_tree(train=20), torch.rand(2, 3, 64, 64)
    one = split(root, variant="drd")
    monkeypatch.setattr(Config, "title", property(lambda config: "another title"))
    other = split(root, variant="drd")
    assert other.config.title == "another title"
    assert same_state(one.distiller, other.distiller)
    assert names(one.held_out_images) == names(other.held_out_images)
    assert one.corruption is not None and other.corruption is not None
    corrupted = [each.corruption(images, np.random.default_rng(0)) for each in (one, other) if each.corruption]
    assert torch.equal(*corrupted)
    assert one.identity == other.identity
    assert one.config.run_folder == replace(one.config).run_folder == other.config.run_folder
