"""What a run records beside its main metrics, and runs of earlier versions, which lack it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Command, make_mvtec, make_second_kind, record_of, rows_of, score_again, train

from commandline import exit_code
from report.results import NOT_IN_ALL_RUNS
from run_files.csv_files import to_csv
from scripts import report as report_command
from scripts import summarize
from utils import file_sha256

RUN = "runs/mvtec/rd4ad/bottle/seed111"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder with a finished run of two kinds of defects, with intervals and a threshold, and the flags of it."""
    root = tmp_path_factory.mktemp("recorded")
    data = make_mvtec(root / "mvtec", bad=5)
    make_second_kind(data / "bottle", 3, 4)
    flags = ["--data_path", data, "--class", "bottle", "--variant", "rd4ad", "--epochs", 1]
    flags += ["--intervals", "--holdout", 0.25, "--save_maps"]
    assert train(*flags, "--save_path", root / "runs") == 0
    return root, flags


@pytest.fixture
def copied(made: tuple[Path, list[Any]], tmp_path: Path) -> Path:
    """A copy of the run for one test."""
    shutil.copytree(made[0] / "runs", tmp_path / "runs")
    return tmp_path / RUN


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = record_of(run)
    change(record)
    (run / "metrics.json").write_text(json.dumps(record))


def make_earlier(run: Path) -> None:
    """Leave of a run what an earlier version would have written."""
    rows = rows_of(run / "predictions.csv")
    kept = [name for name in rows[0] if name != "aupimo"]
    (run / "predictions.csv").write_text(to_csv(kept, [[row[name] for name in kept] for row in rows]))

    def change(record: dict[str, Any]) -> None:
        del record["groups"]
        for metrics in (record["metrics"], record["intervals"]["metrics"]):
            for name in NOT_IN_ALL_RUNS:
                metrics.pop(name, None)
        record["predictions_sha256"] = file_sha256(run / "predictions.csv")

    rewrite(run, change)


def test_a_run_records_each_image_each_kind_and_is_verified(
    made: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made[0] / RUN
    record, rows = record_of(run), rows_of(run / "predictions.csv")
    values = [float(row["aupimo"]) for row in rows if row["aupimo"]]
    assert [bool(row["aupimo"]) for row in rows] == [row["anomalous"] == "1" for row in rows]
    assert np.mean(values) == pytest.approx(record["metrics"]["aupimo"], abs=1e-9)
    kinds = record["groups"]["defect"]
    counts = {name: (own["n_test"], own["n_anomalous"]) for name, own in kinds.items()}
    assert counts == {"disc": (6, 3), "dot": (5, 2)} and list(record["groups"]) == ["defect"]
    of_dot = [float(row["aupimo"]) for row in rows if row["defect"] == "dot"]
    assert kinds["dot"]["metrics"]["aupimo"] == pytest.approx(np.mean(of_dot), abs=1e-9)
    assert set(kinds["dot"]["metrics"]) == set(record["metrics"])
    assert {"aupro_0.05"} < set(record["intervals"]["metrics"])
    assert score_again(run, "--verify") == 0
    out = capsys.readouterr().out
    assert "groups: " in out and "AUPIMO of each image: 5 images" in out


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("groups", lambda record: record["groups"]["defect"]["dot"]["metrics"].update(image_auroc=0.123)),
        ("groups", lambda record: record["groups"]["defect"].pop("dot")),
        ("metrics.json", lambda record: record["groups"]["defect"]["dot"]["metrics"].update(image_auroc=1.5)),
        ("metrics.json", lambda record: record["groups"].update(defect=[])),
        ("metrics", lambda record: record["metrics"].update(aupimo=0.987)),
        ("AUPIMO of each image", None),
    ],
)
def test_an_edit_is_found(
    copied: Path, check: str, change: Callable[[dict[str, Any]], None] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if change is None:
        rows = rows_of(copied / "predictions.csv")
        rows[-1]["aupimo"] = "0.987"
        (copied / "predictions.csv").write_text(to_csv(list(rows[0]), [list(row.values()) for row in rows]))
    else:
        rewrite(copied, change)
    assert score_again(copied, "--verify") == 1
    assert check in capsys.readouterr().out.splitlines()[-1].removeprefix("DIFFERENT: ").split(", ")


def test_a_run_of_an_earlier_version_is_the_run_it_was(
    made: tuple[Path, list[Any]], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_earlier(copied)
    runs = copied.parents[3]
    before = (copied / "metrics.json").read_bytes()
    assert score_again(copied) == 0
    assert "identical to the recorded metrics" in capsys.readouterr().out
    assert score_again(copied, "--verify") == 0
    out = capsys.readouterr().out
    assert "DIFFERENT" not in out and "AUPIMO" not in out and "groups" not in out
    assert train(*made[1], "--save_path", runs) == 0
    out = capsys.readouterr().out
    assert "finished already" in out and "AUPIMO" not in out and "AUPRO 0.05" not in out
    assert (copied / "metrics.json").read_bytes() == before
    assert exit_code(lambda: report_command.main([str(runs)])) == 0
    page = (runs / "report.html").read_text()
    assert "AUPIMO" not in page and "By kind of defect" in page
    assert "AUPIMO" not in (runs / "mvtec/rd4ad/summary.md").read_text()
    capsys.readouterr()
    assert exit_code(lambda: summarize.main([str(runs), "--by", "defect"])) == 2
    assert "no run has metrics by that; the runs have: none" in capsys.readouterr().err
    rewrite(copied, lambda record: record["metrics"].update(aupro=0.987))
    assert score_again(copied, "--verify") == 1, "what was recorded is compared as before"


def test_tables_by_kind_of_defect_and_decisions(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, record = copied.parents[3], record_of(copied)
    threshold = json.loads((copied / "threshold.json").read_text())["test"]
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code(lambda: summarize.main([str(runs)])) == 0
    out = capsys.readouterr().out
    assert "by defect" not in out and max(map(len, out.splitlines())) <= 80
    own = out[out.index("decisions at the threshold") :].splitlines()
    wanted = [threshold[name] for name in ("image_f1", "seg_f1", "false_alarm_rate", "miss_rate")]
    header = next(line for line in own if line.startswith("class"))
    assert header.split() == ["class", "n", "image", "F1", "SegF1", "false", "alarms", "missed"]
    line = next(line for line in own if line.startswith("bottle"))
    assert line.split() == ["bottle", "1", *(f"{100 * value:.2f}" for value in wanted)]
    summary = (runs / "summary.md").read_text()
    assert summary.index("decisions at the threshold") < summary.index("by defect") and "AUPIMO is the mean" in summary

    assert exit_code(lambda: summarize.main([str(runs), "--by", "defect"])) == 0
    out = capsys.readouterr().out
    assert "by defect" in out and "AUPRO" in out and max(map(len, out.splitlines())) <= 80
    cells = next(line.split() for line in out.splitlines() if " dot " in line)
    auroc = record["groups"]["defect"]["dot"]["metrics"]["image_auroc"]
    assert cells[:5] == ["bottle", "dot", "3+2", "1", f"{100 * auroc:.2f}"]
    assert exit_code(lambda: summarize.main([str(runs), "--by", "light"])) == 2
    assert "--by light: no run has metrics by that; the runs have: defect" in capsys.readouterr().err


def test_a_threshold_of_another_checkpoint_is_in_no_table(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threshold = json.loads((copied / "threshold.json").read_text())
    (copied / "threshold.json").write_text(json.dumps(threshold | {"checkpoint_sha256": "0" * 64}))
    assert exit_code(lambda: summarize.main([str(copied)])) == 0
    assert "decisions at the threshold" not in capsys.readouterr().out
    threshold["test"]["miss_rate"] = 7
    (copied / "threshold.json").write_text(json.dumps(threshold))
    assert exit_code(lambda: summarize.main([str(copied)])) == 2
    error = capsys.readouterr().err
    assert "threshold.json: test.miss_rate must be a fraction in 0..1 or null, found 7" in error


def test_an_unfinished_run_of_an_earlier_version_goes_on(
    made: tuple[Path, list[Any]], tmp_path: Path, train_command: Command
) -> None:
    """Its evaluations lack the new metrics: the table has empty cells there."""
    from run_files import Progress, Run

    progress = Progress(2)
    progress.evaluated(1, {"image_auroc": 0.5, "aupro": 0.5})
    progress.evaluated(2, {"image_auroc": 0.5, "aupro": 0.5, "aupimo": 0.25})
    Run(tmp_path).write_progress(progress)
    assert [row["aupimo"] for row in rows_of(tmp_path / "evaluations.csv")] == ["", "0.25"]
    assert progress.oracle(["aupro"])["metrics"] == {"image_auroc": 0.5, "aupro": 0.5}


@pytest.mark.slow
def test_a_model_over_several_classes_has_kinds_within_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_mvtec(tmp_path / "mvtec", ("bottle", "cable"), bad=4)
    make_second_kind(data / "cable", 3)
    flags = ["--data_path", data, "--class", "unified", "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train(*flags, "--holdout", 0.25) == 0
    run = next((tmp_path / "runs").rglob("metrics.json")).parent
    record, rows = record_of(run), rows_of(run / "predictions.csv")
    assert "groups" not in record and "groups" not in record["classes"]["bottle"], "bottle has one kind"
    assert list(record["classes"]["cable"]["groups"]["defect"]) == ["disc", "dot"]
    assert sum(bool(row["aupimo"]) for row in rows) == 8
    assert score_again(run, "--verify") == 0
    capsys.readouterr()
    assert exit_code(lambda: summarize.main([str(tmp_path / "runs"), "--by", "defect"])) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines() if "3+" in line] == [["cable", "disc"], ["cable", "dot"]]
    assert "decisions at the threshold" in (tmp_path / "runs/summary.md").read_text()
