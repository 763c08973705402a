"""The run folder: what decides a run, what a difference says, what is left after a kill."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from dataset import Sample
from runs import CHECKPOINT, CONFIG, METRICS, PREDICTIONS, Progress, Run
from scoring.metrics import Report


def opened(folder: Path, **identity: object) -> Run:
    run = Run(folder)
    run.open({"epochs": 3}, {"epochs": 3, **identity})
    return run


def finish(run: Run) -> None:
    run.finish(Config(classes=("bottle",)), Report({"image_auroc": 0.5}, {}), Progress(), {})


def test_the_same_run_opens_again_and_another_is_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path / "run", rate=0.05, width=(1, 2, 3))
    opened(tmp_path / "run", rate=0.05, width=(1, 2, 3))
    with pytest.raises(ValueError, match=r"rate is 0.05 there, 0.1 here.*--fresh") as problem:
        opened(tmp_path / "run", rate=0.1, width=(1, 2, 3))
    assert "epochs" not in str(problem.value)


def test_fresh_discards_and_begins_again(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.save_checkpoint({"epoch": 1})
    finish(run)
    assert run.finished
    run.open({}, {"epochs": 9}, fresh=True)
    assert not run.finished
    assert run.load_checkpoint() is None
    assert run.read(CONFIG)["identity"] == {"epochs": 9}


def test_without_resume_an_unfinished_run_starts_again_and_a_finished_one_stays(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.save_checkpoint({"epoch": 1})
    run.open({}, {"epochs": 3}, resume=False)
    assert run.load_checkpoint() is None
    finish(run)
    run.open({}, {"epochs": 3}, resume=False)
    assert run.finished


def test_leftovers_of_a_killed_write_are_swept(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    leftover = run.folder / f".{METRICS}.4711.partial"
    leftover.write_text("{")
    assert not run.finished
    run.open({}, {"epochs": 3})
    assert not leftover.exists()


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    (run.folder / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*--fresh"):
        run.load_checkpoint()


def test_checkpoints_hold_plain_values_only(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    state = {"epoch": 2, "trained": {"student": {"weight": torch.ones(2)}}, "color_scale": (0.1, 0.4)}
    run.save_checkpoint(state)
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded["epoch"] == 2
    assert loaded["color_scale"] == (0.1, 0.4)
    assert torch.equal(loaded["trained"]["student"]["weight"], torch.ones(2))


def test_the_oracle_is_the_best_of_several_evaluations_and_absent_for_one() -> None:
    progress = Progress(evaluations=[{"epoch": 10, "image_auroc": 0.9, "aupro": float("nan")}])
    assert progress.oracle() == {}
    progress.evaluations += [
        {"epoch": 20, "image_auroc": 0.95, "aupro": 0.7},
        {"epoch": 30, "image_auroc": 0.8, "aupro": 0.7},
    ]
    assert progress.oracle() == {"image_auroc": {"value": 0.95, "epoch": 20}, "aupro": {"value": 0.7, "epoch": 20}}


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
