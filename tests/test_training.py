"""A sweep on the screen: a line for each run, what is left, failures that stop nothing, a bar on a terminal alone."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toys import ROOT, TINY, Command, MakeTree, record_of

from config import Config
from readers import headers
from training import attempt, loop
from training.terminal import Lines, Pace, epochs_done, first_line, headline, roughly

SECONDS = r"(?:\d+\.)?\d+ s"


def test_times_are_rounded_as_one_says_them() -> None:
    said = {0.42: "0.4 s", 0.99: "1 s", 9.3: "9 s", 59.7: "1 min", 90: "1 min 30 s", 754: "13 min", 7325: "2 h 2 min"}
    assert {seconds: roughly(seconds) for seconds in said} == said


def test_the_rest_takes_as_long_as_what_was_done_by_its_share_of_the_work() -> None:
    pace = Pace()
    assert pace.left(100) == ""
    pace.add(100, 20.0)
    pace.add(300, 60.0)
    assert pace.left(200) == "about 40 s left"
    assert pace.left(0) == ""


def test_a_finished_runs_line_leaves_out_what_is_undefined() -> None:
    assert headline({"image_auroc": 0.98765, "aupro": 0.5, "pixel_ap": 0.1}) == "image AUROC 98.8  AUPRO 50.0"
    assert headline({"image_auroc": 0.98765, "aupro": None}) == "image AUROC 98.8"
    assert headline({}) == ""


def test_the_first_line_counts_runs_and_what_is_finished(tmp_path: Path) -> None:
    config = Config(dataset="demo", variant="rd4ad", seeds=(0, 1), save_path=tmp_path)
    runs = [config.of_run(name, seed) for name in ("brick", "denim", "gear") for seed in config.seeds]
    assert first_line(runs) == "RD4AD on demo: 3 classes x 2 seeds = 6 runs, 0 finished"
    one = Config(dataset="demo", name="trial", save_path=tmp_path)
    assert first_line([one]) == "trial on demo: 1 run, 0 finished"


def test_a_sweep_has_a_line_for_each_run_and_says_what_is_left(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mvtec_tree(classes=("bottle", "cable"), train=4, good=1, bad=1)
    flags = ["--data_path", root, "--variant", "rd4ad", "--save_path", tmp_path / "runs", "--seeds", 1, 2]
    assert train_command(*flags, "--epochs", 2) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    expected = [r"RD4AD on mvtec: 2 classes x 2 seeds = 4 runs, 0 finished, on cpu \(\d+ threads?\)"]
    for number, (name, seed) in enumerate((("bottle", 1), ("bottle", 2), ("cable ", 1), ("cable ", 2)), 1):
        start = rf"\[{number}/4\] {name.strip()} seed {seed}{' ' * name.count(' ')}   "
        left = rf"     about {SECONDS} left" if number < 4 else ""
        expected += [
            rf"{start}extracting teacher features of 4 images \.\.\. {SECONDS}",
            *(rf"{start}epoch {epoch}/2  loss \d\.\d{{4}}  \d+ images/s" for epoch in (1, 2)),
            rf"{start}2 epochs {SECONDS}   image AUROC \d+\.\d  AUPRO \d+\.\d{left}",
        ]
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert re.fullmatch(wanted, line)

    assert train_command(*flags, "--epochs", 2, "--print_loss", 0) == 0
    first, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert "4 runs, 4 finished, on " in first
    assert sum("   finished already, in " in line for line in lines) == len(lines) == 4
    assert train_command(*flags, "--epochs", 3, "--print_loss", 0) == 0
    first, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert "4 runs, 0 finished, on " in first, "they are to have more epochs"
    assert sum("resumed after epoch 2" in line for line in lines) == 4
    assert epochs_done(Config(save_path=tmp_path / "runs", variant="rd4ad").of_run("cable", 2)) == 3
    assert epochs_done(Config(save_path=tmp_path / "runs", variant="rd4ad", fresh=True).of_run("cable", 2)) == 0
    assert not any("loss" in line for line in lines)


def test_after_the_first_epoch_a_long_run_says_how_long_the_rest_takes(
    mvtec_tree: MakeTree,
    tmp_path: Path,
    train_command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "WORTH_SAYING", 0)
    assert train_command("--data_path", mvtec_tree(train=2), "--save_path", tmp_path / "runs", "--epochs", 3) == 0
    epochs = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert [bool(re.search(rf"  this run: about {SECONDS} left$", line)) for line in epochs] == [True, False, False]


@pytest.fixture
def three(mvtec_tree: MakeTree, tmp_path: Path) -> Callable[[], list[object]]:
    """The flags of three short runs, of which that of cable cannot be made: an image is no image."""
    root = mvtec_tree(classes=("bottle", "cable", "zipper"), train=2, good=1, bad=1)
    (root / "cable/test/good/000.png").write_bytes(b"no image")
    return lambda: ["--data_path", root, "--variant", "rd4ad", "--save_path", tmp_path / "runs", "--epochs", 1]


def test_a_class_with_a_bad_file_is_told_before_the_first_epoch_and_the_others_are_run(
    three: Callable[[], list[object]], tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(*three(), "--seeds", 1, 2) == 1
    printed = capsys.readouterr()
    _, failed, again, *others = printed.out.splitlines()
    assert re.fullmatch(r"\[3/6\] cable seed 1    failed: \S+000\.png: .*", failed)
    assert again == "[4/6] cable seed 2    failed as cable seed 1"
    finished = [line[:5] for line in others if "   1 epoch " in line and line[:1] == "["]
    assert finished == ["[1/6]", "[2/6]", "[5/6]", "[6/6]"]
    first, last = printed.err.splitlines()
    assert re.fullmatch(r"error: cable seed 1, cable seed 2: \S+000\.png: .*", first)
    assert last == "2 of 6 runs failed: run the same command again once that is mended"
    assert {path.parent.parent.name for path in (tmp_path / "runs").rglob("metrics.json")} == {"bottle", "zipper"}


def test_stop_on_error_ends_a_sweep_at_the_first_failure(
    three: Callable[[], list[object]], tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(*three(), "--stop_on_error") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "000.png" in error
    assert not list((tmp_path / "runs").rglob("metrics.json"))


def test_a_run_that_fails_on_the_way_is_listed_and_so_is_a_mistake_of_the_program(
    three: Callable[[], list[object]],
    tmp_path: Path,
    train_command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems: Iterator[Exception | None] = iter((ValueError("bottle seed 111: the loss became nan"), None))
    flags = [*three(), "--class", "bottle", "zipper"]
    own = attempt.score

    def score(*arguments: object) -> None:
        if problem := next(problems):
            raise problem
        own(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attempt, "score", score)
    assert train_command(*flags) == 1
    printed = capsys.readouterr()
    log = tmp_path / "runs/mvtec/rd4ad/bottle/seed111/log.txt"
    assert f"[1/2] bottle seed 111   failed: the loss became nan; log: {log}\n" in printed.out
    assert "loss" in log.read_text()
    assert "error: bottle seed 111: the loss became nan\n1 of 2 runs failed" in printed.err
    assert record_of(tmp_path / "runs/mvtec/rd4ad/zipper/seed111")["epochs_trained"] == 1

    problems = iter((AssertionError("ours"), None))
    assert train_command(*flags, "--name", "again") == 1
    log = tmp_path / "runs/mvtec/again/bottle/seed111/log.txt"
    assert f"failed: AssertionError: ours (a mistake of the program, not yours: please report it with {log})" in (
        capsys.readouterr().out
    )
    assert "Traceback" in log.read_text() and log.read_text().endswith("AssertionError: ours\n")
    assert record_of(tmp_path / "runs/mvtec/again/zipper/seed111")["epochs_trained"] == 1


def test_what_concerns_all_runs_is_an_error_at_once(
    three: Callable[[], list[object]], tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (("--weights", "/nowhere.pth"), ("--checkpoint", "/nowhere.pth"), ("--class", "bottle", "zip")):
        assert train_command(*three(), *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("config.json"))


def test_the_header_of_a_file_is_read_once_for_all_seeds(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, read = headers.read_header, []

    def counted(path: Path, upright: bool = False) -> headers.Header:
        read.append(path)
        return own(path, upright)

    monkeypatch.setattr(headers, "read_header", counted)
    root = mvtec_tree(train=2, good=1, bad=1)
    assert train_command("--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1, "--seeds", 1, 2) == 0
    assert sorted(read) == sorted(root.rglob("*.png"))


def test_a_line_is_whole_when_its_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), Lines(1, ["bottle seed 1"]).timed("reading"):
        raise ValueError
    assert capsys.readouterr().out == "[1/1] bottle seed 1   reading ... \n"


TERMINAL = """
import os, pty, sys
code = pty.spawn(sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(code))
"""


@pytest.mark.slow
@pytest.mark.parametrize("print_loss", [None, "1"])
def test_on_a_terminal_a_bar_is_for_the_run_at_work_and_its_lines_stay(
    print_loss: str | None, mvtec_tree: MakeTree, tmp_path: Path
) -> None:
    words = [*TINY, "--data_path", str(mvtec_tree(train=2, good=1, bad=1)), "--save_path", str(tmp_path / "runs")]
    words += ["--epochs", "2", *(["--print_loss", print_loss] if print_loss else [])]
    script = f"stty cols 100 rows 40; exec {shlex.join([sys.executable, 'main.py', *words])}"
    command = [sys.executable, "-c", TERMINAL, "sh", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 0/2 [" in done.stdout, "the bar"
    stay = [line.rpartition("\r")[2] for line in done.stdout.replace("\r\n", "\n").splitlines()]
    assert any(re.match(r"\[1/1\] bottle seed 111   2 epochs ", line) for line in stay)
    assert sum("loss" in line and "images/s" in line for line in stay) == (2 if print_loss else 0)
