"""Every variant by its command: trained, interrupted, scored again; early stopping, normalized scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from toys import Command, MakeTree, record_of, rows_of, score_again, train_with_a_break

from methods import VARIANTS
from training import loop


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_finished_run_of_every_variant_is_scored_again_identically(
    variant: str, mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_path", mvtec_tree(), "--class", "bottle", "--save_path", tmp_path / "runs", "--variant", variant]
    assert train_command(*flags, "--epochs", 2) == 0
    run = tmp_path / f"runs/mvtec/{variant}/bottle/seed111"
    record = record_of(run)
    assert all(value is not None for value in record["metrics"].values())
    assert record["batch_size"] == 4 and record["epochs_trained"] == 2
    capsys.readouterr()
    assert score_again(run, "--device", "cpu", "--workers", 0) == 0
    assert "identical to the recorded metrics" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--variant drd", "--variant rdpp --cache images", "--variant masked --patience 9"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    flags: str, mvtec_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a variant draws (corruptions, noise, hidden cells, held-out images) is the same in an epoch done again."""
    common = ["--data_path", mvtec_tree(), "--class", "bottle", "--epochs", 4, "--checkpoint_seconds", 0]
    common += flags.split()
    _, cut = train_with_a_break(common, tmp_path, monkeypatch)
    assert len(rows_of(cut / "train.csv")) == 4


@pytest.mark.slow
def test_training_stops_when_held_out_normal_images_gain_nothing(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = iter([5.0, 3.0, 4.0, 2.5, 2.5, 2.6, 1.0])  # the lowest is the fourth; two epochs later nothing is lower
    held_out_sizes: list[int] = []

    def scripted(distiller: Any, batches: Iterable[Any], recipe: Any) -> float:
        held_out_sizes.append(sum(len(batch.clean[0]) for batch in batches))
        return next(course)

    monkeypatch.setattr(loop, "held_out_loss", scripted)
    flags = ["--data_path", mvtec_tree(train=20), "--class", "bottle", "--save_path", tmp_path / "runs"]
    flags += ["--variant", "rd4ad", "--epochs", 7, "--patience", 2, "--patience_holdout", 0.25, "--print_epoch", 6]
    assert train_command(*flags) == 0
    run = tmp_path / "runs/mvtec/rd4ad/bottle/seed111"
    record = record_of(run)
    assert (record["epochs"], record["epochs_trained"]) == (7, 6)
    assert (record["n_train"], record["n_held_out"]) == (15, 5) and set(held_out_sizes) == {5}
    assert [float(row["held_out"]) for row in rows_of(run / "train.csv")] == [5.0, 3.0, 4.0, 2.5, 2.5, 2.6]
    assert [row["epoch"] for row in rows_of(run / "evaluations.csv")] == ["6"]
    (run / "metrics.json").unlink()  # as if the process had died at the very end: nothing is trained on
    assert train_command(*flags) == 0
    assert record_of(run)["epochs_trained"] == 6


def test_held_out_images_are_never_trained_on(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer held-out images than one is one, and at least one is left to train on."""
    for count, flags in ((2, ["--patience_holdout", 0.9]), (8, ["--patience_holdout", 0.01])):
        common = ["--data_path", mvtec_tree(train=count, root=f"tree{count}"), "--class", "bottle", "--epochs", 1]
        place = tmp_path / f"runs{count}"
        assert train_command(*common, "--save_path", place, "--variant", "rd4ad", "--patience", 1, *flags) == 0
        record = record_of(next(place.rglob("seed111")))
        assert (record["n_train"], record["n_held_out"]) == (count - 1, 1)
    one = ["--data_path", mvtec_tree(train=1, root="one"), "--class", "bottle", "--save_path", tmp_path / "none"]
    assert train_command(*one, "--patience", 3) == 2
    assert "--patience needs training images to hold out; found 1" in capsys.readouterr().err


def test_normalized_scores_are_written_with_their_threshold(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command
) -> None:
    root = mvtec_tree()
    flags = ["--data_path", root, "--class", "bottle", "--save_path", tmp_path / "runs", "--variant", "rd_anomalib"]
    assert train_command(*flags, "--epochs", 1, "--anomalib_scores", "--anomaly_map", "multiply") == 0
    run = tmp_path / "runs/mvtec/rd_anomalib/bottle/seed111"
    record = record_of(run)
    normalized, rows = record["normalized"], rows_of(run / "predictions.csv")
    assert normalized["chosen_on"] == "the test set"
    assert normalized["image_f1"] == pytest.approx(record["metrics"]["image_f1max"])
    assert normalized["pixel_f1"] == pytest.approx(record["metrics"]["pixel_f1max"])
    image = normalized["image"]
    for row in rows:
        expected = (float(row["score"]) - image["threshold"]) / (image["high"] - image["low"]) + 0.5
        assert float(row["normalized"]) == pytest.approx(min(max(expected, 0), 1), abs=1e-6)
        assert row["predicted"] == str(int(float(row["score"]) >= image["threshold"] * (1 - 1e-7)))
