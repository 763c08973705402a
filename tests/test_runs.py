"""The run folder: what decides a run, what a difference says, what is left after a kill."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from dataset import Sample
from run_files import CHECKPOINT, CONFIG, METRICS, PREDICTIONS, DataRecord, Progress, Run, oracle_rule
from scoring.metrics import Report

NOTHING = DataRecord([])
NONE_DONE = asdict(Progress())


def opened(folder: Path, data: DataRecord = NOTHING, **identity: object) -> Run:
    run = Run(folder)
    run.open({"epochs": 3}, {"epochs": 3, "data": data.digests(), **identity}, data)
    return run


def checkpointed(run: Run) -> Run:
    run.save_checkpoint({"trained": {}, "progress": NONE_DONE})
    return run


def finish(run: Run) -> None:
    checkpointed(run)
    run.finish(Config(classes=("bottle",)), Report({"image_auroc": 0.5}, {}), Progress(), {})


def test_the_same_run_opens_again_and_another_is_refused_by_name(tmp_path: Path) -> None:
    checkpointed(opened(tmp_path / "run", rate=0.05, width=(1, 2, 3)))
    opened(tmp_path / "run", rate=0.05, width=(1, 2, 3))
    with pytest.raises(ValueError, match=r"rate is 0.05 there, 0.1 here.*--fresh") as problem:
        opened(tmp_path / "run", rate=0.1, width=(1, 2, 3))
    assert "epochs" not in str(problem.value)


def test_fresh_discards_and_begins_again(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    finish(run)
    assert run.finished
    run.open({}, {"epochs": 9}, NOTHING, fresh=True)
    assert not run.finished
    assert run.load_checkpoint() is None
    assert run.read(CONFIG)["identity"] == {"epochs": 9}


def test_without_resume_an_unfinished_run_starts_again_and_a_finished_one_stays(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    checkpointed(run)
    run.open({}, {"epochs": 3, "data": {}}, NOTHING, resume=False)
    assert run.load_checkpoint() is None
    finish(run)
    run.open({}, {"epochs": 3, "data": {}}, NOTHING, resume=False)
    assert run.finished


def test_leftovers_of_a_killed_write_are_swept(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    leftover = run.folder / f".{METRICS}.4194305.partial"
    leftover.write_text("{")
    assert not run.finished
    run.open({}, {"epochs": 3, "data": {}}, NOTHING)
    assert not leftover.exists()


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    (run.folder / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*--fresh"):
        run.load_checkpoint()


def test_checkpoints_hold_plain_values_only(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    progress = Progress()
    progress.add(1, {"loss": 0.5}, images=8, seconds=2.0)
    state = {
        "progress": asdict(progress),
        "trained": {"student": {"weight": torch.ones(2)}},
        "color_scale": (0.1, 0.4),
    }
    run.save_checkpoint(state)
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert Progress(**loaded["progress"]) == progress
    assert loaded["color_scale"] == (0.1, 0.4)
    assert torch.equal(loaded["trained"]["student"]["weight"], torch.ones(2))


def evaluated(image: float, pixel: float, aupro: float, epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "image_auroc": image, "pixel_auroc": pixel, "aupro_per_image": aupro}


@pytest.mark.parametrize(
    ("variant", "benchmark", "epoch", "rule"),
    [
        ("sk_rd4ad", "mvtec", 30, "mean of pixel_auroc, aupro_per_image"),
        ("sk_rd4ad", "visa", 20, "mean of image_auroc, pixel_auroc"),
        ("sk_rd4ad", "vad", 10, "image_auroc"),
        ("rdpp", "mvtec", 40, "mean of image_auroc, pixel_auroc, aupro_per_image"),
        ("drd", "mvtec", 20, "mean of image_auroc, pixel_auroc"),
        ("rd4ad", "mvtec", 20, "mean of image_auroc, pixel_auroc"),
    ],
)
def test_the_oracle_is_one_epoch_chosen_as_the_published_code_does(
    variant: str, benchmark: str, epoch: int, rule: str
) -> None:
    rows = [(0.90, 0.60, 0.50), (0.89, 0.70, 0.50), (0.50, 0.68, 0.68), (0.80, 0.69, 0.65)]
    progress = Progress(evaluations=[evaluated(*row, 10 * number) for number, row in enumerate(rows, 1)])
    oracle = progress.oracle(oracle_rule(variant, benchmark))
    assert (oracle["epoch"], oracle["rule"]) == (epoch, rule)
    assert {"epoch": epoch, **oracle["metrics"]} == progress.evaluations[epoch // 10 - 1]


def test_there_is_no_oracle_for_one_evaluation_and_the_first_of_equal_epochs_is_taken() -> None:
    progress = Progress(evaluations=[evaluated(0.9, 0.8, 0.7, 10)])
    assert progress.oracle(["image_auroc"]) == {}
    progress.evaluations.append(evaluated(0.9, 0.9, 0.9, 20))
    assert progress.oracle(["image_auroc"])["epoch"] == 10


def test_the_oracle_leaves_out_undefined_metrics_and_says_so() -> None:
    nan = float("nan")
    progress = Progress(evaluations=[evaluated(0.8, nan, nan, 10), evaluated(0.9, nan, nan, 20)])
    assert progress.oracle(["image_auroc", "pixel_auroc"]) == {
        "epoch": 20,
        "rule": "image_auroc (undefined and left out: pixel_auroc)",
        "metrics": {"image_auroc": 0.9, "pixel_auroc": None, "aupro_per_image": None},
    }
    only_pixels = progress.oracle(["pixel_auroc", "aupro_per_image"])
    assert (only_pixels["epoch"], only_pixels["rule"].split()[0]) == (20, "image_auroc")
    without_labels = Progress(evaluations=[evaluated(nan, nan, nan, 10), evaluated(nan, nan, nan, 20)])
    assert without_labels.oracle(["image_auroc"]) == {}


def test_predictions_keep_every_digit_of_a_float32_score(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    scores = np.array([1 / 3, 2e-8], np.float32)
    run.write_predictions([Sample(Path("a b,c.png"), True, "hole"), Sample(Path("d.png"), False, "good")], scores)
    rows = list(csv.DictReader((run.folder / PREDICTIONS).open()))
    assert [row["path"] for row in rows] == ["a b,c.png", "d.png"]
    assert [row["anomalous"] for row in rows] == ["1", "0"]
    assert np.array_equal(np.array([row["score"] for row in rows], np.float32), scores)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        Run(tmp_path).read(CONFIG)


def test_no_flipped_bit_of_a_resume_point_is_used(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    weights = torch.arange(4096, dtype=torch.float32)
    run.save_checkpoint({"trained": {"student": {"weight": weights}}, "progress": NONE_DONE})
    content = (run.folder / CHECKPOINT).read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for place in rng.integers(len(content), size=200):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        (run.folder / CHECKPOINT).write_bytes(changed)
        try:
            state = run.load_checkpoint()
        except ValueError:
            noticed += 1
        else:  # a bit that carries nothing
            assert state is not None and torch.equal(state["trained"]["student"]["weight"], weights)
            assert state["progress"] == NONE_DONE
    assert noticed > 150


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1, 2], "the content must be a table"),
        ({"trained": {}, "progress": {"epochs": 1}}, "progress.epochs is unknown"),
        ({"trained": {}, "progress": {**NONE_DONE, "epoch": -1}}, "progress.epoch must be"),
        ({"trained": {"student": {"weight": 3}}, "progress": {}}, "trained.student must be a table of tensors"),
    ],
)
def test_a_checkpoint_of_other_content_names_the_field(tmp_path: Path, state: object, words: str) -> None:
    run = opened(tmp_path / "run")
    torch.save(state, run.folder / CHECKPOINT)
    with pytest.raises(ValueError, match=words) as problem:
        run.load_checkpoint()
    assert "\n" not in str(problem.value)
