"""The command line: published flags as they stand, modern names, errors of one line, a saved configuration."""

from __future__ import annotations

import dataclasses
import json
import re
from math import inf, nan
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from config import RANGES, Config, field_types, kind_of
from flags import parse
from methods import SKIPS, VARIANTS, Term
from utils import choose_device

PUBLISHED = (
    "--epochs 200 --res 3 --learning_rate 0.005 --batch_size 16 --seed 111 --class all --seg 1 --print_epoch 10 "
    "--data_path D --save_path S --print_loss 1 --net wide_res50 --L2 0"
)


def test_published_command_is_sk_rd4ad_as_published() -> None:
    config = parse(PUBLISHED.split())
    plain = Config(print_epoch=10, data_path=Path("D"), save_path=Path("S"), skips="both", loss="cosine")
    assert config.identity() == plain.identity()
    assert config.recipe == VARIANTS["sk_rd4ad"]


def test_every_published_flag_is_accepted() -> None:
    config = parse(
        "--class_ bottle --score_num 3 --layerloss 1 --vis 1 --img_path I --print_max 1 --print_canshu 1 --cut 0 "
        "--seed 111 250 444 --rate 0.1".split()
    )
    assert config.classes == ("bottle",)
    assert config.seeds == (111, 250, 444)
    assert (config.score_num, config.vis, config.print_max, config.print_scores) == (3, True, True, True)
    assert Term("consistency", 0.1) in config.recipe.losses


@pytest.mark.parametrize(("res", "skips"), [(0, "none"), (1, "none"), (2, "E3"), (3, "both")])
def test_res_follows_its_help_text(res: int, skips: str) -> None:
    assert parse(["--res", str(res)]).recipe.skips == SKIPS[skips]


@pytest.mark.parametrize(
    ("number", "losses"), [(0, [Term("cosine")]), (1, [Term("mse")]), (2, [Term("mse", 0.5), Term("cosine", 0.5)])]
)
def test_l2_chooses_the_loss(number: int, losses: list[Term]) -> None:
    assert parse(["--variant", "rd4ad", "--L2", str(number)]).recipe.losses == tuple(losses)


def test_layerloss_adds_and_removes_the_consistency_loss() -> None:
    assert parse(["--layerloss", "0"]).recipe.losses == (Term("cosine"),)
    assert parse(["--variant", "rd4ad", "--layerloss", "1"]).recipe.losses == (
        Term("cosine"),
        Term("consistency", 0.005),
    )
    with pytest.raises(ValueError, match="--rate.*--layerloss 1"):
        parse(["--variant", "rd4ad", "--rate", "0.1"])


def test_the_consistency_weight_is_that_of_the_published_tables() -> None:
    """The published `--class all` loop and the VAD script overwrite the flag with 0.005; 0.05 is the flag's default."""
    assert parse([]).recipe.losses == (Term("cosine"), Term("consistency", 0.005))
    assert parse(["--rate", "0.05"]).recipe.losses == (Term("cosine"), Term("consistency", 0.05))


def test_dashes_and_underscores_are_alike() -> None:
    assert parse(["--batch-size=4", "--image-size", "64"]) == parse(["--batch_size", "4", "--image_size=64"])


def test_abbreviations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(["--epoch", "3"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_problems_at_once() -> None:
    with pytest.raises(ValueError) as problem:
        parse("--variant rd5 --dataset mvtek --batch_size 0 --image_size 100 --net vgg --learning_rate -1".split())
    text = str(problem.value)
    assert "unknown --variant 'rd5': choose from rd4ad, sk_rd4ad" in text
    for flag in ("--dataset", "--batch_size", "--image_size", "--net", "--learning_rate"):
        assert flag in text


def test_cut_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="--cut") as problem:
        parse(["--cut", "1"])
    assert "\n" not in str(problem.value)


def test_res_and_skips_must_agree() -> None:
    assert parse(["--res", "2", "--skips", "E3"]).skips == "E3"
    with pytest.raises(ValueError, match="--res 2 means --skips E3"):
        parse(["--res", "2", "--skips", "none"])


def test_own_folders_belong_to_the_folder_benchmark() -> None:
    with pytest.raises(ValueError, match="--train_dir"):
        parse(["--train_dir", "x"])
    with pytest.raises(ValueError, match="needs --train_dir"):
        parse(["--dataset", "folder"])


def test_saved_configuration_comes_back(tmp_path: Path) -> None:
    config = parse("--student_width 64 128 256 --net efficientnet_lite0 --seeds 1 2 --data_path D --vis".split())
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"config": config.to_json()}))
    assert parse(["--config", str(saved)]) == config
    assert parse(["--config", str(saved), "--epochs", "3"]) == dataclasses.replace(config, epochs=3)


def test_saved_configuration_of_another_version_is_named(tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"config": {"color": "red"}}))
    with pytest.raises(ValueError, match="color"):
        parse(["--config", str(saved)])
    with pytest.raises(FileNotFoundError, match="--config"):
        parse(["--config", str(tmp_path / "none.json")])


COMMON = (
    "dataset classes data_path train_dir test_dir bad variant net epochs seeds holdout calibrate false_alarm".split()
)
COMMON += "save_path name fresh vis device".split()


def test_help_shows_the_common_flags_and_says_how_to_see_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(["--help"])
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert set(re.findall(r"^  (?:-h, )?--(\w+)", text, re.MULTILINE)) == {"help", *COMMON}
    assert f"{len(COMMON)} of {len(dataclasses.fields(Config))} flags: --help all shows every one" in text
    assert "--seeds, --seed N [N ...]" in text
    with pytest.raises(SystemExit) as exit_info:
        parse(["--help", "everything"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "main.py: error: --help everything: give --help or --help all\n"


def test_help_all_shows_every_field_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help", "all"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
    for group in ("what to train on", "method", "training", "scoring", "output", "machine", "published flags"):
        assert f"{group}" in text


def test_places_do_not_decide_a_run() -> None:
    settings = Config().settings()
    assert {"epochs", "variant", "seeds", "image_size", "learning_rate", "levels", "losses"} <= set(settings)
    assert not {"data_path", "save_path", "device", "workers", "cache", "vis", "print_epoch"} & set(settings)
    moved = Config(data_path=Path("elsewhere"), save_path=Path("other"), vis=True, workers=0, print_epoch=5)
    assert moved.identity() == Config().identity()


def test_the_identity_names_what_differs_from_the_defaults_and_nothing_else() -> None:
    assert parse(["--variant", "rd4ad"]).identity() == {"variant": "rd4ad"}
    assert parse("--variant rd4ad --epochs 7 --levels 1 2".split()).identity() == {
        "variant": "rd4ad",
        "epochs": 7,
        "levels": [1, 2],
    }
    assert parse("--variant rd4ad --epochs 200 --batch_size 16".split()).identity() == {"variant": "rd4ad"}


def test_a_variant_brings_its_own_training_and_flags_go_before_it() -> None:
    drd, masked = parse(["--variant", "drd"]).training, parse(["--variant", "masked"]).training
    assert (drd.batch_size, drd.weight_decay, drd.epochs) == (4, 1e-5, 200)
    assert (masked.learning_rate, masked.betas, masked.patience) == (0.001, (0.9, 0.999), 20)
    given = parse("--variant masked --lr 0.01 --patience 0 --weight_decay 0 --batch_size 2 --epochs 3".split()).training
    assert (given.learning_rate, given.patience, given.weight_decay, given.batch_size) == (0.01, 0, 0, 2)
    assert given.epochs == 3


def test_rdpp_s_epochs_follow_the_class() -> None:
    sweep = parse(["--variant", "rdpp", "--class", "carpet", "screw", "mine"])
    assert [sweep.of_run(name, 1).training.epochs for name in sweep.classes] == [10, 280, 200]
    assert parse("--variant rdpp --class carpet --epochs 5".split()).training.epochs == 5


def test_what_the_variant_settles_is_part_of_the_identity() -> None:
    identity = parse(["--variant", "drd"]).identity()
    assert (identity["batch_size"], identity["refine"], identity["anomaly_map"]) == (4, True, "mean")
    assert identity == parse("--variant drd --batch_size 4 --anomaly_map mean --refine 1".split()).identity()
    assert identity["fusion"] == "mfcf" and ["absolute", 0.1, "segmentation"] in identity["losses"]
    assert json.loads(json.dumps(identity)) == identity


def test_a_loss_flag_takes_the_place_of_the_distilling_terms_alone() -> None:
    losses = parse("--variant drd --loss mse".split()).recipe.losses
    assert losses == (Term("mse"), *VARIANTS["drd"].losses[2:])
    assert parse("--variant mrkd --loss mse".split()).recipe.losses == (Term("mse", pairs="denoising"),)


def test_parts_are_switches_for_any_variant() -> None:
    recipe = parse("--variant rd4ad --simam --scconv 1 --fmm 1 --mask_rate 0.4 --train_levels 1 2".split()).recipe
    assert (recipe.simam, recipe.scconv, recipe.fmm, recipe.mask_rate) == (True, True, True, 0.4)
    assert recipe.train_levels == (1, 2)
    off = parse("--variant masked --simam 0 --scconv 0 --fmm 0".split()).recipe
    assert not (off.simam or off.scconv or off.fmm)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mask_rate 0.3", "--mask_rate: no features are hidden here; add --fmm 1"),
        ("--variant masked --mask_rate 1", "--mask_rate 1.0: must be at least 0 and below 1"),
        ("--patience -1", "--patience -1: must be at least 0"),
        ("--holdout 1", "--holdout 1.0"),
        ("--train_levels 2 1", "--train_levels 2 1"),
        ("--train_levels 2", "two --train_levels, or --layerloss 0"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(flags.split())


@pytest.mark.parametrize("variant", VARIANTS)
def test_teachers_other_than_resnets_standardize_the_map_unless_told_otherwise(variant: str) -> None:
    own = VARIANTS[variant].scoring.anomaly_map
    for net, expected in (("wide_res50", own), ("res18", own), ("efficientnet_lite0", "standardized")):
        assert parse(["--variant", variant, "--net", net]).scoring.anomaly_map == expected
    given = parse(["--variant", variant, "--net", "efficientnet_lite0", "--anomaly_map", "add"])
    assert given.scoring.anomaly_map == "add"
    assert parse(["--variant", variant, "--net", "timm/resnet50"]).scoring.anomaly_map == "standardized"


# --- every field, with values that would fail later ---

NUMBERS = {name for name, hint in field_types().items() if {int, float} & {kind_of(hint), *get_args(kind_of(hint))}}
TEXTS = {name for name, hint in field_types().items() if {str, Path} & {kind_of(hint), *get_args(kind_of(hint))}}
BEYOND: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {  # values just beyond each range, and values within it
    "shots": ((0, 2**31), (1, 2**31 - 1)),
    "image_size": ((0, 31, 33, 16416), (32, 16384)),
    "tiles": ((0.0, -0.5, 1.01), (1e-9, 0.5, 1.0)),
    "tile_overlap": ((-0.1, 0.91), (0.0, 0.9)),
    "max_pixels": ((0, 2**63), (1, 2**63 - 1)),
    "student_width": (((1, 2), (0, 1, 1), (1, 1, 2**16 + 1)), ((1, 1, 2**16),)),
    "student_blocks": ((0, 1001), (1, 1000)),
    "rate": ((-0.1,), (0.0, 1e9)),
    "mask_rate": ((-0.1, 1.0), (0.0, 0.99)),
    "dropout": ((-0.1, 1.0), (0.0, 0.99)),
    "train_levels": (((), (3,), (1, 0), (-1, 0), (0, 0)), ((0, 2), (0, 1, 2))),
    "epochs": ((-1, 2**31), (0, 2**31 - 1)),
    "steps": ((0, 2**31), (1, 2**31 - 1)),
    "batch_size": ((0, 2**31), (1, 2**31 - 1)),
    "learning_rate": ((0.0, -1.0), (1e-9, 10.0)),
    "weight_decay": ((-1e-9,), (0.0, 1.0)),
    "final_rate": ((-0.1, 1.1), (0.0, 1.0)),
    "average": ((-0.1, 1.0), (0.0, 0.999)),
    "patience": ((-1, 2**31), (0, 20)),
    "patience_holdout": ((0.0, 1.0), (0.01, 0.99)),
    "holdout": ((-0.1, 1.0), (0.0, 0.99)),
    "false_alarm": ((0.0, 1.0), (1e-9, 0.99)),
    "seeds": (((), (1, 1), (2**63,), (-(2**63) - 1,)), ((2**63 - 1, -(2**63)), (0,))),
    "levels": (((), (3,), (0, 0), (-1,)), ((2,), (2, 0))),
    "score_num": ((0, 256**2 + 1), (1, 256**2)),
    "print_epoch": ((-1, 2**31), (0, 5)),
    "workers": ((-1, 1025, 100_000), (0, 1024)),
    "cache_gb": ((-0.5,), (0.0, 1e6)),
    "checkpoint_seconds": ((-1.0,), (0.0, 1e6)),
    "jobs": ((0, -1, 1025), (1, 1024)),
    "lock_seconds": ((0.5, -1.0), (1.0, 1e6)),
    "gpus_per_run": ((-0.5, 1025.0), (0.0, 0.5, 1024.0)),
}


def fields(name: str, value: object) -> dict[str, Any]:
    """The fields of a Config in which this one has a part to play."""
    beside: dict[str, dict[str, Any]] = {"mask_rate": {"fmm": True}, "rate": {"layerloss": True}}
    beside |= {"final_rate": {"schedule": "cosine"}, "tile_overlap": {"tiles": 0.5}}
    return beside.get(name, {}) | {name: value}


def refusal(name: str, value: object) -> str:
    """The first line of the error of a Config with this value; each line names the flag."""
    with pytest.raises(ValueError) as problem:
        Config(**fields(name, value))
    lines = str(problem.value).splitlines()
    assert lines and all(f"--{name}" in line for line in lines)
    return lines[0]


def test_every_number_has_its_range_in_these_tests() -> None:
    assert set(BEYOND) == NUMBERS
    assert set(RANGES) == NUMBERS - {"levels", "train_levels"}


@pytest.mark.parametrize("name", BEYOND)
def test_a_number_is_taken_within_its_range_only(name: str) -> None:
    beyond, within = BEYOND[name]
    for value in within:
        assert getattr(Config(**fields(name, value)), name) == value
    for value in beyond:
        refusal(name, value)


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_no_number_is_infinite_not_a_number_or_huge(name: str) -> None:
    for value in (nan, inf, -inf, 10**400, -(10**400), True, "1"):
        refusal(name, (value,) * 3 if get_origin(kind_of(field_types()[name])) is tuple else value)


@pytest.mark.parametrize("name", field_types())
def test_a_value_of_another_type_names_the_flag_and_what_was_wanted(name: str) -> None:
    for value in (object(), {"a": 1}, [[]], b"x"):
        assert f"--{name}: must be " in refusal(name, value)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_text_is_empty_or_holds_a_null_character(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, SystemExit)) as problem:
        parse([f"--{name}", ""])
    assert f"--{name}" in (str(problem.value) if problem.type is ValueError else capsys.readouterr().err)
    refusal(name, ["a\0b"] if name == "classes" else "a\0b")


def test_a_saved_value_of_another_type_names_field_and_file(tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    for name, value in {
        "epochs": "3",
        "layerloss": 1,
        "patience": True,
        "seeds": 1,
        "data_path": "",
        "net": None,
    }.items():
        saved.write_text(json.dumps({"config": {name: value}}))
        with pytest.raises(ValueError, match=rf"--config .*config\.json: {name} must be ") as problem:
            parse(["--config", str(saved)])
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "tpu", "", "cuda:x"])
def test_a_device_that_cannot_compute_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"--device {device}: not available on this machine.*use auto or cpu"):
        choose_device(device)


@pytest.mark.parametrize(
    ("images", "batch_size", "image_size", "remedy"),
    [
        (9, 4, 32, "--image_size 64 or --batch_size 5"),
        (8, 1, 32, "--image_size 64 or --batch_size 2"),
        (3, 2, 32, "--image_size 64 or --batch_size 3"),
        (1, 4, 32, "--image_size 64$"),
        (9, 4, 64, None),
        (8, 4, 32, None),
        (10, 4, 32, None),
        (9, 16, 32, None),
    ],
)
def test_a_last_batch_that_batch_norm_cannot_take_is_refused(
    images: int, batch_size: int, image_size: int, remedy: str | None
) -> None:
    config = Config(batch_size=batch_size, image_size=image_size)
    dataclasses.replace(config, epochs=0).check_last_batch(images)  # nothing is trained
    if remedy is None:
        config.check_last_batch(images)
        return
    with pytest.raises(ValueError, match=rf"--image_size 32: .* of {images} training images .*; give {remedy}"):
        config.check_last_batch(images)
