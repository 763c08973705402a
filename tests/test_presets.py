"""Presets: what they change, which one holds by default, and that a run folder keeps its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from config import Config
from flags import parse
from methods import NARROW, PRESETS, PUBLISHED, VARIANTS, Recipe, Term

LITE = ("--net", "efficientnet_lite0")
AS_PUBLISHED = ("--preset", PUBLISHED)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_is_the_row_itself(variant: str) -> None:
    assert PRESETS[PUBLISHED](VARIANTS[variant]) is VARIANTS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_narrow_changes_these_settings_and_no_others(variant: str) -> None:
    row, changed = VARIANTS[variant], PRESETS[NARROW](VARIANTS[variant])
    assert (changed.dropout, changed.training.steps, changed.training.average) == (0.2, 500, 0.999)
    assert changed.training.batch_size == min(row.training.batch_size, 8)
    assert changed.scoring.anomaly_map == "standardized"
    expected = ["cosine_hard" if term.name == "cosine" else term.name for term in row.losses]
    assert [term.name for term in changed.losses] == expected
    training = replace(changed.training, steps=0, average=0.0, batch_size=row.training.batch_size)
    scoring = replace(changed.scoring, anomaly_map=row.scoring.anomaly_map)
    assert replace(changed, dropout=0.0, losses=row.losses, training=training, scoring=scoring) == row


def test_narrow_weighs_the_mined_loss_as_the_row_weighs_its_own() -> None:
    row = Recipe(losses=(Term("cosine", 0.7, "denoising"), Term("cosine_pixel", 0.3)))
    assert PRESETS[NARROW](row).losses == (Term("cosine_hard", 0.7, "denoising"), Term("cosine_pixel", 0.3))


@pytest.mark.parametrize("net", ["wide_res50", "res18"])
def test_resnets_train_as_published(net: str) -> None:
    config = parse(["--net", net])
    assert config.preset == PUBLISHED
    assert config.recipe == VARIANTS["sk_rd4ad"]


@pytest.mark.parametrize("net", ["efficientnet_lite0", "efficientnet_lite2", "timm/resnet50"])
def test_other_teachers_have_the_narrow_preset_by_default(net: str) -> None:
    config = parse(["--net", net])
    assert config.preset == NARROW
    assert config.identity() == parse(["--net", net, "--preset", NARROW]).identity()


@pytest.mark.parametrize("variant", ["rd4ad", "sk_rd4ad", "mrkd"])
def test_a_preset_is_the_same_run_as_its_flags(variant: str) -> None:
    flags = "--steps 500 --batch_size 8 --average 0.999 --dropout 0.2 --loss cosine_hard --anomaly_map standardized"
    by_flags = parse([*LITE, "--variant", variant, *AS_PUBLISHED, *flags.split()])
    assert by_flags.identity() == parse([*LITE, "--variant", variant]).identity()


def test_flags_come_after_the_preset() -> None:
    config = parse([*LITE, *"--epochs 12 --batch_size 4 --dropout 0 --loss cosine --anomaly_map add".split()])
    assert (config.training.epochs, config.training.steps, config.training.batch_size) == (12, 0, 4)
    assert (config.recipe.dropout, config.recipe.losses[0]) == (0.0, Term("cosine"))
    assert (config.scoring.anomaly_map, config.training.average) == ("add", 0.999)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown --preset 'narow': choose from published, narrow; did you mean narrow"
    ):
        parse(["--preset", "narow"])


def test_a_run_folder_keeps_its_preset() -> None:
    config = parse(list(LITE))
    assert config.to_json()["preset"] == NARROW
    assert Config(**Config.from_json(config.to_json())) == config


@pytest.mark.parametrize(
    ("saved", "anomaly_map"),
    [
        ({"net": "efficientnet_lite0"}, "standardized"),
        ({"net": "efficientnet_lite0", "anomaly_map": "add"}, "add"),
        ({"net": "res18"}, "add"),
        ({"variant": "rd4ad"}, "add"),
    ],
)
def test_a_run_folder_from_before_presets_is_read_as_it_was_made(saved: dict[str, Any], anomaly_map: str) -> None:
    config = Config(**Config.from_json(saved))
    assert config.preset == PUBLISHED
    assert config.recipe.training == VARIANTS[config.variant].training
    assert config.recipe.dropout == 0 and config.recipe.losses == VARIANTS[config.variant].losses
    assert config.scoring.anomaly_map == anomaly_map
