"""The laws of `scripts.check_variant` hold for every variant around every teacher; each notices what it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detector
import experiment
from commandline import exit_code
from methods import VARIANTS, Recipe, Term, Training, losses
from methods.losses import LOSSES, cosine_loss
from model import TEACHERS, Distiller, Teacher, is_resnet
from scripts import check_variant, variant_laws
from scripts.variant_laws import LAWS, Trial, verdict

NARROW = "efficientnet_lite0"
RESNETS = [*filter(is_resnet, TEACHERS)]

Levels = list[Tensor]
Break = Callable[[Callable[[Distiller], object]], None]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """RD4AD around a narrow teacher."""
    return Trial("rd4ad", NARROW, tmp_path)


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Break:
    """A function that has another one change every network, just after it is built."""

    def apply(spoil: Callable[[Distiller], object]) -> None:
        def built(recipe: Recipe, teacher: Teacher) -> Distiller:
            distiller = build(recipe, teacher)
            spoil(distiller)
            return distiller

        build = experiment.build_distiller
        monkeypatch.setattr(experiment, "build_distiller", built)

    return apply


def on_output(function: Callable[[nn.Module, Levels], Levels]) -> Callable[[Distiller], object]:
    """A change of a network: its student's levels pass through the function."""
    return lambda distiller: distiller.student.register_forward_hook(
        lambda student, _, levels: function(student, levels)
    )


def broken(trial: Trial, *names: str) -> dict[str, str]:
    """The verdicts of the named laws, or of all, that are not ok, without 'not checked'."""
    found = {name: verdict(law, trial) for name, law in LAWS.items() if name in (names or LAWS)}
    return {name: text for name, text in found.items() if text.startswith("FAILED")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_every_law(variant: str, tmp_path: Path) -> None:
    assert broken(Trial(variant, NARROW, tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_every_law_around_a_resnet(variant: str, tmp_path: Path) -> None:
    assert broken(Trial(variant, "res18", tmp_path)) == {}


@pytest.mark.parametrize(
    "net", [net if net == "res18" else pytest.param(net, marks=pytest.mark.slow) for net in RESNETS]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_around_every_resnet(variant: str, net: str, tmp_path: Path) -> None:
    assert broken(Trial(variant, net, tmp_path), "shapes", "gradients") == {}


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (
            lambda student, levels: levels[::-1],
            "teacher [(2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4)], student [(2,",
        ),
        (lambda student, levels: levels[:2], "student [(2, 24, 16, 16), (2, 40, 8, 8)]"),
        (lambda student, levels: [levels[0].log(), *levels[1:]], "NaN or infinity in level 0 of the student"),
        (lambda student, levels: levels if student.training else [x[:, :3] for x in levels], "student [(1, 3, 16, 16)"),
    ],
)
def test_pairs_of_other_shapes_or_values_are_noticed(
    function: Callable[[nn.Module, Levels], Levels], found: str, trial: Trial, change: Break
) -> None:
    change(on_output(function))
    assert found in broken(trial, "shapes")["shapes"]


def test_an_error_inside_a_variant_names_its_place(trial: Trial, change: Break) -> None:
    def fails(student: nn.Module, levels: Levels) -> Levels:
        return [levels[0] @ levels[1]]

    change(on_output(fails))
    text = broken(trial, "shapes")["shapes"]
    assert text.startswith("FAILED: RuntimeError: ") and "look at tests/test_check_variant.py, line " in text


def test_gradients_that_leak_into_the_teacher_are_noticed(trial: Trial, change: Break) -> None:
    def leak(distiller: Distiller) -> None:
        weight = next(distiller.teacher.net.parameters()).requires_grad_()
        on_output(lambda student, levels: [level + 1e-9 * weight.sum() for level in levels])(distiller)

    change(leak)
    assert "a gradient reaches net." in broken(trial, "teacher")["teacher"]


def test_a_teacher_that_changes_is_noticed(trial: Trial, change: Break) -> None:
    def drifting(distiller: Distiller) -> None:
        def add(*_: object) -> None:
            distiller.teacher.mean.add_(1e-6)

        distiller.student.register_forward_hook(add)

    change(drifting)
    assert "training changes mean of the teacher" in broken(trial, "teacher")["teacher"]


def test_a_teacher_in_training_mode_is_noticed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "train", nn.Module.train)
    assert "is in training mode" in broken(trial, "teacher")["teacher"]


def test_a_loss_that_detaches_is_noticed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(pairs: Any) -> Tensor:
        (teacher, student), *others = pairs
        return cosine_loss([(teacher, student.detach()), *others])

    monkeypatch.setitem(LOSSES, "cosine", half)
    assert broken(trial, "gradients")["gradients"].startswith("FAILED: no gradient in student.stages.")
    monkeypatch.setitem(LOSSES, "cosine", lambda pairs: cosine_loss([(t, s.detach()) for t, s in pairs]))
    assert "does not require grad" in broken(trial, "gradients")["gradients"]


def test_a_parameter_that_the_optimizer_lacks_is_noticed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = Distiller.trainable
    monkeypatch.setattr(Distiller, "trainable", lambda self: trainable(self)[1:])
    assert "a gradient, but no step in bottleneck." in broken(trial, "gradients")["gradients"]


def test_only_a_bias_before_an_instance_norm_needs_no_gradient() -> None:
    parts = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert variant_laws._without_effect(nn.ModuleDict({"a": parts})) == {"a.0.bias"}


@pytest.mark.parametrize(
    "loss", [lambda pairs: -cosine_loss(pairs), lambda pairs: 1 + 1e-6 * cosine_loss(pairs)], ids=["negative", "flat"]
)
def test_a_loss_that_does_not_fall_is_noticed(
    loss: Callable[[Any], Tensor], trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "cosine", loss)
    assert "the loss of one batch goes from " in broken(trial, "learning")["learning"]


def test_a_map_that_is_not_zero_for_equal_features_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = detector.anomaly_map
    monkeypatch.setattr(detector, "anomaly_map", lambda *arguments, **options: made(*arguments, **options) + 0.1)
    assert "reaches 0.1" in broken(Trial("rd4ad", "res18", tmp_path), "zero map")["zero map"]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (
            lambda student, levels: [x - x.mean(dim=0, keepdim=True) / 9 for x in levels],
            "alone, an image's score differs",
        ),
        (lambda student, levels: [x + 0.1 * torch.rand_like(x) for x in levels], "other scores a second time"),
    ],
    ids=["batch statistics", "random draws"],
)
def test_scores_that_depend_on_the_batch_are_noticed(
    function: Callable[[nn.Module, Levels], Levels], found: str, trial: Trial, change: Break
) -> None:
    change(on_output(lambda student, levels: levels if student.training else function(student, levels)))
    assert set(broken(trial, "batch", "gradients")) == {"batch"}
    assert found in verdict(LAWS["batch"], trial)


def test_a_part_that_the_checkpoint_lacks_is_noticed(trial: Trial, change: Break) -> None:
    def add_parameter(distiller: Distiller) -> None:
        offset = nn.Parameter(torch.zeros(24, 1, 1))
        distiller.register_parameter("offset", offset)  # in no part, so `trained_state` lacks it
        on_output(lambda student, levels: [levels[0] + offset, *levels[1:]])(distiller)

    change(add_parameter)
    found = broken(trial, "gradients", "resume", "determinism")
    assert set(found) == {"resume"} and "after loading, other values in offset" in found["resume"]


def test_a_random_generator_of_its_own_is_noticed(trial: Trial, change: Break) -> None:
    def add_generator(distiller: Distiller) -> None:
        draw = torch.Generator().manual_seed(0)

        def noisy(student: nn.Module, levels: Levels) -> Levels:
            return [x + 0.1 * torch.randn(x.shape, generator=draw) if student.training else x for x in levels]

        on_output(noisy)(distiller)

    change(add_generator)
    found = broken(trial, "resume", "determinism")
    assert set(found) == {"resume"} and "a resumed training gives other values in bottleneck." in found["resume"]


def test_a_draw_that_no_seed_sets_is_noticed(trial: Trial, change: Break) -> None:
    draw = np.random.default_rng()
    change(on_output(lambda student, levels: [x + float(draw.random()) if student.training else x for x in levels]))
    assert "a second training gives other values in " in broken(trial, "determinism")["determinism"]


def test_scoring_that_a_repetition_changes_is_noticed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = detector.image_score, [0]

    def scored(*arguments: Any) -> Tensor:
        calls[0] += 1
        return made(*arguments) + calls[0]

    monkeypatch.setattr(detector, "image_score", scored)
    assert "gives equal parameters but other scores" in broken(trial, "determinism")["determinism"]


def test_levels_and_losses_that_bf16_spoils_are_noticed(
    trial: Trial, change: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_half(level: Tensor) -> bool:
        return level.dtype == torch.bfloat16

    monkeypatch.setattr(variant_laws, "resolve_precision", lambda *_: "bf16")  # fast here or not
    assert broken(trial, "bf16") == {}
    with monkeypatch.context() as patch:
        patch.setitem(LOSSES, "cosine", lambda pairs: cosine_loss(pairs) * (1 + is_half(pairs[0][1])))
        assert " in fp32" in broken(trial, "bf16")["bf16"]
        patch.setitem(LOSSES, "cosine", lambda pairs: cosine_loss(pairs).to(pairs[0][1].dtype))
        assert "cosine is computed in torch.bfloat16" in broken(trial, "bf16")["bf16"]
    change(on_output(lambda student, levels: [x * 1.5 if is_half(x) else x for x in levels]))
    assert "level 0 of the student differs by 5" in broken(trial, "bf16")["bf16"]


def test_without_bf16_the_law_is_not_checked(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_laws, "resolve_precision", lambda *_: "fp32")
    assert verdict(LAWS["bf16"], trial) == "not checked: no bf16 here"


def test_the_command_prints_a_line_for_each_law(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resume", "determinism", "learning"):
        monkeypatch.delitem(LAWS, name)  # the others are enough, and quick
    assert exit_code(lambda: check_variant.main(["rd4ad", "--net", NARROW])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [law.title for law in LAWS.values()]
    assert lines[-1] == f"rd4ad around {NARROW}: 0 of 6 laws broken"
    monkeypatch.setattr(Teacher, "train", nn.Module.train)
    assert exit_code(lambda: check_variant.main(["rd4ad", "--net", NARROW])) == 1
    assert "the teacher stays as it is: FAILED: " in capsys.readouterr().out


def test_a_wrong_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (("rd5", "unknown variant 'rd5': choose from rd4ad, "), ("rd4ad --net x", "--net 'x'")):
        assert exit_code(partial(check_variant.main, arguments.split())) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_variant_with_every_training_option_keeps_every_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(steps=20, schedule="cosine", average=0.9)
    row = replace(VARIANTS["rdpp"], dropout=0.2, recenter=True, training=training)
    row = replace(row, losses=(Term("cosine_hard"), *row.losses[1:]))
    monkeypatch.setitem(VARIANTS, "rdpp", row)
    monkeypatch.setattr(losses, "MINING_STEPS", 2)
    assert broken(Trial("rdpp", NARROW, tmp_path)) == {}
