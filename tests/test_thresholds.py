"""Thresholds from normal images: the rank rule and what it promises, and that images that were used are refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, kstest
from toys import ROOT, MakeTree, paint, record_of, score_again, train

from run_files import THRESHOLD, Run
from scoring.thresholds import (
    CalibrationSettings,
    Threshold,
    choose_k,
    clopper_pearson,
    decision_metrics,
    images_needed,
    percent,
    pixel_threshold,
)
from scripts import coverage

ORIGIN = {"checkpoint_sha256": "0" * 64, "data": {"images": 0}}
MAPS = np.random.default_rng(0).random((10, 8, 8)).astype(np.float32)


def threshold_of(scores: Any, **settings: Any) -> Threshold:
    maps = np.zeros((len(scores), 2, 2))
    return Threshold.of(scores, maps, CalibrationSettings(**settings), "calibrate", ORIGIN)


# --- the rule ---


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.1, 0.2, 1 / 3, 0.5, 0.07, 0.001, 0.9])
def test_the_images_needed_are_the_least_that_some_k_is_chosen_for(rate: float) -> None:
    n = images_needed(rate)
    k = choose_k(n, rate)
    assert k >= 1 and k / (n + 1) <= rate * (1 + 1e-9)
    if n > 1:
        with pytest.raises(ValueError, match=f"--false_alarm {rate:g}: needs {n} normal images.*found {n - 1}"):
            choose_k(n - 1, rate)


@pytest.mark.parametrize("n", [1, 6, 19, 24, 60, 99, 200])
@pytest.mark.parametrize("rate", [0.05, 0.01, 0.3])
def test_k_is_the_largest_that_keeps_the_rate(n: int, rate: float) -> None:
    if n < images_needed(rate):
        return
    k = choose_k(n, rate)
    assert k / (n + 1) <= rate + 1e-12 < (k + 1) / (n + 1)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (60, 0.05), (99, 0.05), (99, 0.01), (200, 0.1), (24, None)])
def test_coverage_over_redraws_of_synthetic_scores(n: int, rate: float | None) -> None:
    """2,000 thresholds: their mean rate is k / (n + 1), at or under what was asked for; its spread is the Beta's."""
    rng = np.random.default_rng(n)
    k = choose_k(n, rate)
    # the true rate of a threshold t on uniform scores is 1 - t
    rates = [1 - threshold_of(rng.random(n), false_alarm=rate).value for _ in range(2000)]
    error = beta.std(k, n - k + 1) / math.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(k / (n + 1), abs=4 * error)
    assert rate is None or k / (n + 1) <= rate
    assert kstest(rates, beta(k, n - k + 1).cdf).pvalue > 1e-3
    low, high = threshold_of(rng.random(n), false_alarm=rate).rate_interval(0.9)
    assert np.mean([low <= found <= high for found in rates]) == pytest.approx(0.9, abs=0.03)


def test_ties_and_equal_scores_give_no_more_false_alarms() -> None:
    threshold = threshold_of([2.0, 2.0, 2.0, 1.0])
    assert not threshold.decide(2.0) and threshold.decide(np.nextafter(2.0, 3))
    assert threshold.p_value(2.0) == 4 / 5 and threshold.p_value(2.1) == 1 / 5 and threshold.p_value(0) == 1


def test_p_values_of_new_normal_images_are_at_most_uniform() -> None:
    rng = np.random.default_rng(1)
    found = [threshold_of(rng.random(39)).p_value(rng.random()) for _ in range(4000)]
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.03)


def test_an_interval_of_a_rate_is_that_of_clopper_and_pearson() -> None:
    assert clopper_pearson(4, 5, 0.95) == pytest.approx((0.2836, 0.9949), abs=1e-4)
    assert clopper_pearson(0, 5, 0.9)[0] == 0 and clopper_pearson(5, 5, 0.9)[1] == 1


def test_pixel_rules() -> None:
    highest = np.sort(MAPS.reshape(10, -1).max(axis=1))
    assert pixel_threshold(MAPS, "max", 1) == highest[-1] and pixel_threshold(MAPS, "max", 3) == highest[-3]
    assert (pixel_threshold(MAPS, "max", 3) < MAPS).any(axis=(1, 2)).sum() == 2
    assert pixel_threshold(MAPS, "sigma:3") == pytest.approx(MAPS.mean() + 3 * MAPS.std(), rel=1e-5)
    assert pixel_threshold(MAPS, "percentile:95x1.421") == pytest.approx(np.percentile(MAPS, 95) * 1.421)
    for wrong in ("sigma", "sigma:x", "percentile:95", "percentile:101x1", "max:1", "otsu", "sigma:nan"):
        with pytest.raises(ValueError, match=r"--pixel_threshold .*want max, sigma:X or percentile:PxF"):
            pixel_threshold(MAPS, wrong)


def test_metrics_at_the_threshold_count_decisions() -> None:
    threshold = Threshold(1.0, 0.5, "max", (0.5, 1.0), 1, "holdout", "0")
    labels, scores = [False, False, True, True, True], [0.9, 1.1, 1.2, 1.0, 3.0]
    maps = np.zeros((5, 2, 2))
    maps[2, 0], maps[1, 0, 0] = 0.6, 0.51
    masks = [None, None, np.array([[1, 1], [1, 0]]), np.zeros((2, 2)), np.ones((2, 2))]
    found = decision_metrics(threshold, labels, scores, maps, masks)
    assert found == {
        "image_f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)),
        "false_alarm_rate": 0.5,
        "miss_rate": pytest.approx(1 / 3),
        "seg_f1": pytest.approx(2 * 2 / (3 + 7)),
    }
    assert decision_metrics(threshold, [False], [2.0]) == {
        "image_f1": None, "false_alarm_rate": 1.0, "miss_rate": None,
    }  # fmt: skip


def test_a_threshold_comes_back_from_json_and_damaged_ones_are_refused() -> None:
    threshold = threshold_of([1.0, 3.0, 2.0], false_alarm=0.5)
    saved = json.loads(json.dumps(threshold.to_json()))
    assert Threshold.from_json(saved) == threshold and threshold.k == 2 and threshold.value == 2.0
    changes = {"value": 1.5, "k": 4, "source": "test", "scores": [3.0, 1.0], "pixel": math.nan, "pixel_rule": "x"}
    for name, value in changes.items():
        with pytest.raises(ValueError):
            Threshold.from_json(saved | {name: value})


def test_the_table_for_inspectors_is_that_of_the_rule() -> None:
    text = (ROOT / "docs/inspectors.md").read_text()
    rows = re.findall(r"^\| (\d+) +\| ([\d.]+|not given) +\| ([\d.]+) % +\| ([\d.]+) % +\|$", text, re.MULTILINE)
    assert len(rows) == 6
    for n, rate, mean, under in rows:
        k = choose_k(int(n), None if rate == "not given" else float(rate))
        assert float(mean) == pytest.approx(100 * k / (int(n) + 1), abs=0.5 if "." not in mean else 0.05)
        quantile = 100 * beta.ppf(0.9, k, int(n) - k + 1)
        assert float(under) == pytest.approx(quantile, abs=0.5 if "." not in under else 0.05)


def test_words_for_rates() -> None:
    assert [percent(rate) for rate in (0.142, 0.0085, 0.01, 0.0004, 0, 1)] == [
        "14 %", "0.9 %", "1 %", "0.04 %", "0 %", "100 %",
    ]  # fmt: skip


# --- of runs ---

FLAGS = "--dataset folder --variant rd4ad --net efficientnet_lite0 --weights random".split()
FLAGS += "--image_size 64 --batch_size 4".split()
RUN = "runs/folder/rd4ad/bottle/seed111"


@pytest.fixture
def own(mvtec_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Trains on own images for an epoch, with further flags; the tree is `mvtec` in the current folder."""
    mvtec_tree(train=10)
    monkeypatch.chdir(tmp_path)
    return lambda *flags: train(*FLAGS, "--train_dir", "mvtec/bottle/train/good", "--epochs", "1", *map(str, flags))


def normal_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        paint(folder / f"{number:03}.png", np.random.default_rng(100 + number), defect=False)
    return folder


def test_a_fifth_of_own_images_is_held_out_and_gives_the_threshold(
    own: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert own("--bad", "mvtec/bottle/test/disc") == 0
    printed = capsys.readouterr().out
    record, threshold = record_of(Path(RUN)), Run(Path(RUN)).threshold()
    assert threshold is not None and threshold.source == "holdout"
    assert (record["n_train"], record["n_calibration"], threshold.n, threshold.k) == (8, 2, 2, 1)
    assert threshold.checkpoint_sha256 == record["checkpoint_sha256"]
    assert "the highest of 2 held-out normal images" in printed
    assert "A new normal image like these exceeds it in about 33 % of cases" in printed
    assert "2 images cannot promise less: 5 % needs 19, 1 % needs 99" in printed
    assert re.search(r"of 3 bad images [0-3] lie above it \(90 % interval", printed)
    assert "only 8 images to learn from" in printed
    test = json.loads((Path(RUN) / THRESHOLD).read_text())["test"]
    assert (test["n_bad"], test["n_normal"]) == (3, 0)
    assert test["found"] == round(3 * (1 - test["miss_rate"]))


def test_held_out_images_are_the_last_by_name_and_not_trained_on(own: Callable[..., int]) -> None:
    """Their scores are those of the detector on the last two files."""
    from detector import Detector

    assert own() == 0
    detector = Detector.load(RUN)
    assert detector.threshold is not None
    last = sorted(Path("mvtec/bottle/train/good").iterdir())[-2:]
    scores = sorted(found.score for found in detector.predict(last))
    assert scores == pytest.approx(list(detector.threshold.scores), rel=1e-5)
    assert detector.predict(last[0]).decision == "OK"


def test_benchmarks_train_on_all_and_have_no_threshold(mvtec_tree: MakeTree, tmp_path: Path) -> None:
    flags = ["--data_path", mvtec_tree(), "--class", "bottle", "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train(*flags) == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    assert not (run / THRESHOLD).exists() and record_of(run)["n_train"] == 8
    validation = tmp_path / "mvtec/bottle/validation/good"
    validation.mkdir(parents=True)
    for number in range(3):
        paint(validation / f"{number}.png", np.random.default_rng(number), defect=False)
    assert train(*flags, "--name", "validated") == 0
    threshold = Run(tmp_path / "runs/mvtec/validated/bottle/seed111").threshold()
    assert threshold is not None and (threshold.source, threshold.n) == ("validation", 3)


def test_too_few_images_for_the_rate_are_refused_before_training(
    own: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert own("--false_alarm", 0.05) == 2
    error = capsys.readouterr().err
    assert "--false_alarm 0.05: needs 19 normal images" in error and "found 2" in error and error.count("\n") == 1
    assert own("--holdout", 0, "--false_alarm", 0.5) == 2
    assert "no normal image to take a threshold from" in capsys.readouterr().err
    assert not list(Path("runs").rglob("checkpoint.pt"))


def test_images_that_were_trained_on_or_tested_give_no_threshold(
    own: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("mvtec/bottle/train/good", "copies")
    Path("copies/000.png").rename("copies/renamed.png")
    assert own("--calibrate", "copies") == 2
    assert "10 of 10 images are among the run's own training or test images" in capsys.readouterr().err
    assert own("--holdout", 0, "--test_dir", "mvtec/bottle/test") == 0
    for used in ("copies", "mvtec/bottle/test/good"):
        capsys.readouterr()
        assert score_again(Path(RUN), "--calibrate", used) == 2
        assert "are among the run's own training or test images" in capsys.readouterr().err
    assert not (Path(RUN) / THRESHOLD).exists()


def test_held_out_copies_of_training_images_do_not_count(own: Callable[..., int]) -> None:
    good = Path("mvtec/bottle/train/good")
    shutil.copy(good / "000.png", good / "zzz.png")  # held out with 009.png: 2 of 11
    assert own() == 0
    threshold = Run(Path(RUN)).threshold()
    assert threshold is not None and threshold.n == 1


def test_a_finished_run_is_calibrated_without_training(
    own: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own("--holdout", 0, "--test_dir", "mvtec/bottle/test", "--mask_dir", "mvtec/bottle/ground_truth") == 0
    weights = (Path(RUN) / "checkpoint.pt").read_bytes()
    other = normal_folder(tmp_path / "other", 5)
    assert score_again(Path(RUN), "--calibrate", other, "--false_alarm", 0.01) == 2
    assert "needs 99" in capsys.readouterr().err
    assert score_again(Path(RUN), "--calibrate", other, "--false_alarm", 0.4, "--pixel_threshold", "sigma:3") == 0
    printed = capsys.readouterr().out
    assert "the 2nd highest of 5 calibration normal images" in printed and "of 3 normal test images" in printed
    saved = json.loads((Path(RUN) / THRESHOLD).read_text())
    image, pixel = saved["test"]["image_f1"], saved["test"]["seg_f1"]
    assert f"image F1 {image:.3f} at the threshold; F1-max, chosen on the test set, is" in printed
    assert f"pixel F1 {pixel:.3f} at the threshold" in printed
    assert saved["k"] == 2 and saved["pixel_rule"] == "sigma:3" and 0 <= saved["test"]["seg_f1"] <= 1
    assert (Path(RUN) / "checkpoint.pt").read_bytes() == weights
    shutil.rmtree("mvtec/bottle/test")  # the recorded scores of the test images still tell
    assert score_again(Path(RUN), "--calibrate", other, "--false_alarm", 0.4) == 0
    again = json.loads((Path(RUN) / THRESHOLD).read_text())["test"]
    assert "seg_f1" not in again and again["miss_rate"] == saved["test"]["miss_rate"]


def test_verification_scores_the_normal_images_again(
    own: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own("--test_dir", "mvtec/bottle/test") == 0
    assert score_again(Path(RUN), "--verify") == 0
    assert "ok            threshold.json: the highest of 2 held-out normal images" in capsys.readouterr().out
    path = Path(RUN) / THRESHOLD
    saved = json.loads(path.read_text())
    low, high = saved["scores"]
    path.write_text(json.dumps(saved | {"scores": [low, high + 1e-3], "value": high + 1e-3}))
    assert score_again(Path(RUN), "--verify") == 1
    assert capsys.readouterr().out.endswith("DIFFERENT: threshold.json\n")
    assert score_again(Path(RUN), "--calibrate", normal_folder(tmp_path / "other", 3)) == 0
    assert score_again(Path(RUN), "--verify") == 0
    assert "not compared  threshold.json" in capsys.readouterr().out


def test_a_threshold_of_another_checkpoint_is_not_used(
    own: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert own() == 0
    path = Path(RUN) / THRESHOLD
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"checkpoint_sha256": "f" * 64}))
    assert Run(Path(RUN)).threshold() is None
    assert "belongs to another checkpoint" in capsys.readouterr().err
    path.write_text(json.dumps(saved | {"value": 0.0}))
    with pytest.raises(ValueError, match=r"threshold\.json: value must be the 1st highest of the scores"):
        Run(Path(RUN)).threshold()


def test_bad_images_lie_flat_or_in_folders_and_good_ones_are_refused_among_them(
    own: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert own("--bad", "mvtec/bottle/test") == 2
    assert "holds the folder good of normal images" in capsys.readouterr().err
    shutil.copytree("mvtec/bottle/test/good", "flat")
    assert own("--bad", "mvtec/bottle/test/disc", "--test_dir", "flat") == 0
    record = record_of(Path(RUN))
    assert (record["n_test"], record["n_anomalous"]) == (6, 3)
    assert record["metrics"]["image_auroc"] is not None


def test_the_coverage_of_a_run_is_told_and_a_broken_promise_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"{i}.png,good,0,{score}\n" for i, score in enumerate(rng.gamma(2, size=300)))
    (tmp_path / "predictions.csv").write_text(f"path,defect,anomalous,score\n{rows}x.png,bad,1,99\n")
    assert coverage.main([str(tmp_path), "--count", "60", "--false_alarm", "0.05"]) == 0
    _, _, line, _ = capsys.readouterr().out.splitlines()
    normal, mean, promised, spread, expected = map(float, line.split()[1:])
    assert normal == 300 and promised == 4.92
    assert mean == pytest.approx(promised, abs=1) and spread == pytest.approx(expected, rel=0.2)
    monkeypatch.setattr(coverage, "false_alarm_rates", lambda *_: np.full(200, 0.08))
    assert coverage.main([str(tmp_path)]) == 1
    assert coverage.exit_code(lambda: coverage.main([str(tmp_path), "--count", "200"])) == 2
