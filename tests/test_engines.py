"""Every engine leaves the same runs: one process, workers, processes on one folder, shards. Crashes cost an attempt."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import ROOT, TINY, Command, MakeTree, make_mvtec, record_of, wait_for

from config import Config
from flags import parse
from report.results import collect
from run_files import ATTEMPTS, LOG, METRICS, Run
from run_files.csv_files import read_csv
from training import attempt, engines
from training.attempt import BUSY, CRASHED, FAILED, FINISHED, OUT_OF_MEMORY, Outcome
from training.shards import ARRAY, share
from training.sweep import Sweep
from training.terminal import first_line
from training.workers import describe_workers, list_workers

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SWEEP = ["--variants", "rd4ad", "sk_rd4ad", "--seeds", "1", "2", "--epochs", "2", "--print_loss", "0"]
RUNS = 12  # two variants, three classes, two seeds


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of three small classes."""
    return make_mvtec(tmp_path_factory.mktemp("data"), ("bottle", "cable", "zipper"), train=3, good=1, bad=1)


def begin(root: Path, folder: Path, *more: object) -> subprocess.Popen[str]:
    """Start main.py on the sweep in a process of its own."""
    words = [*TINY, "--data_path", root, "--save_path", folder, *SWEEP, *more]
    command = [sys.executable, "main.py", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)  # type: ignore[call-overload]


def end(*processes: subprocess.Popen[str], code: int = 0) -> list[str]:
    """What the processes print; each must end with this exit code."""
    texts = []
    for process in processes:
        out, problem = process.communicate(timeout=300)
        assert process.returncode == code, out + problem
        texts.append(out)
    return texts


def results(folder: Path) -> dict[str, Any]:
    """{run: its metrics} below a folder of runs, each of which has been finished once."""
    for path in folder.rglob(ATTEMPTS):
        assert [row["outcome"] for row in read_csv(path)].count("finished") == 1, path
    return {
        path.parent.relative_to(folder).as_posix(): json.loads(path.read_text())["metrics"]
        for path in folder.rglob(METRICS)
    }


def table(folder: Path) -> str:
    """comparison.md without what two sweeps may differ in: the time of training."""
    return re.sub(r"[\d.]+ (?:ms|s|min)\b", "", (folder / "mvtec/comparison.md").read_text())


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep by one process."""
    folder = tmp_path_factory.mktemp("one")
    end(begin(root, folder))
    assert len(results(folder)) == RUNS
    return folder


@pytest.mark.slow
def test_workers_make_the_same_runs_and_tables(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    (printed,) = end(begin(root, tmp_path, "--device", "cpu", "--jobs", 2))
    assert "12 runs, 0 finished, on cpu: 2 processes" in printed
    assert len(re.findall(r"^\[\d+/12\] \S+ \S+ seed \d +2 epochs .* image AUROC", printed, re.MULTILINE)) == RUNS
    assert results(tmp_path) == results(undisturbed)
    assert table(tmp_path) == table(undisturbed)
    processes = {row["pid"] for path in tmp_path.rglob(ATTEMPTS) for row in read_csv(path)}
    assert len(processes) == 2, "each worker makes many runs"


@pytest.mark.slow
def test_processes_on_one_folder_share_the_runs(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    printed = end(begin(root, tmp_path), begin(root, tmp_path))
    assert results(tmp_path) == results(undisturbed)
    assert table(tmp_path) == table(undisturbed)
    made = [len(re.findall(r" 2 epochs .* image AUROC", text)) for text in printed]
    assert sum(made) == RUNS and min(made) > 0
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
def test_shards_make_the_same_runs(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "5"}
    slurm |= {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "2"}
    first = begin(root, tmp_path, "--shard", "1/2")
    ENVIRONMENT.update(slurm)
    try:
        second = begin(root, tmp_path, "--shard", "auto")
    finally:
        for name in slurm:
            del ENVIRONMENT[name]
    printed = end(first, second)
    assert all("6 runs of 12, 0 finished" in text for text in printed)
    assert results(tmp_path) == results(undisturbed)
    end(begin(root, tmp_path))  # finds all of them finished
    assert table(tmp_path) == table(undisturbed)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_run_an_attempt(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = begin(root, tmp_path, "--jobs", 2, "--checkpoint_seconds", 0)
    run = wait_for(tmp_path, "checkpoint.pt").parent
    os.kill(int(read_csv(run / ATTEMPTS)[0]["pid"]), signal.SIGKILL)
    (printed,) = end(process)
    assert "its process was killed by SIGKILL: it goes on from its last resume point" in printed
    assert results(tmp_path) == results(undisturbed)
    attempts = [len(read_csv(path)) for path in tmp_path.rglob(ATTEMPTS)]
    assert sorted(attempts) == [1] * (RUNS - 1) + [2]


@pytest.mark.slow
def test_a_process_that_stops_loses_its_run_and_writes_nothing_when_it_wakes(
    root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    more = ("--lock_seconds", 2, "--checkpoint_seconds", 0)
    stopped = begin(root, tmp_path, *more)
    run = wait_for(tmp_path, "checkpoint.pt").parent
    stopped.send_signal(signal.SIGSTOP)
    end(begin(root, tmp_path, *more))
    kept = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert results(tmp_path) == results(undisturbed)
    stopped.send_signal(signal.SIGCONT)
    end(stopped)
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == kept
    assert results(tmp_path) == results(undisturbed)
    assert len(read_csv(run / ATTEMPTS)) == 2


@pytest.mark.slow
def test_ending_the_first_process_ends_its_workers(root: Path, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        process = begin(root, tmp_path, "--jobs", 2, "--epochs", 500)
        attempts = wait_for(tmp_path, ATTEMPTS)
        pid = int(read_csv(attempts)[0]["pid"])
        process.send_signal(number)
        end(process, code=130 if number == signal.SIGINT else -number)
        limit = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
        attempts.unlink()
    assert not list(tmp_path.rglob(METRICS))


def test_every_shard_has_its_own_runs_and_none_is_left_out() -> None:
    runs = list(range(11))
    for count in (1, 2, 3, 11, 12):
        parts = [share(runs, f"{number}/{count}") for number in range(1, count + 1)]
        assert sorted(itertools.chain(*parts)) == runs
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert share(runs, None) == runs
    assert share(runs, "auto", {"RANK": "2", "WORLD_SIZE": "4"}) == share(runs, "3/4")
    assert share(runs, "auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "5", "RANK": "3", "WORLD_SIZE": "4"}) == (
        share(runs, "1/5")
    )


def test_an_array_of_slurm_has_a_task_for_every_share_or_is_refused() -> None:
    def share_of(task: int, lowest: int, highest: int, step: int, count: int) -> list[int]:
        values = (task, lowest, highest, step, count)
        return share(list(range(11)), "auto", {n: str(v) for n, v in zip(ARRAY, values, strict=True)})

    for tasks in (range(1, 5), range(0, 9, 4), range(7, 8)):
        steps = (tasks[0], tasks[-1], tasks.step, len(tasks))
        assert sorted(itertools.chain(*(share_of(task, *steps) for task in tasks))) == list(range(11))
    for task in (3, 7):  # --array=3,7, for which Slurm sets a step of 1
        with pytest.raises(ValueError, match="--shard auto: an array of 2 from 3 to 7 has gaps"):
            share_of(task, 3, 7, 1, 2)


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "1", "a/b", "-1/2", "1/2/3", "１/２"])
def test_a_shard_that_is_none_is_one_line(wrong: str) -> None:
    with pytest.raises(ValueError, match="--shard .*: must be I/N with 1 <= I <= N"):
        share([1], wrong)
    with pytest.raises(ValueError, match="--shard auto: found none of SLURM_ARRAY_TASK_ID, SLURM_PROCID, RANK"):
        share([1], "auto", {})


def test_several_variants_are_runs_of_one_command(tmp_path: Path) -> None:
    config = parse(["--variants", "rd4ad", "drd", "--dataset", "demo", "--data_path", str(tmp_path), "--seeds", "0"])
    runs = config.runs()
    assert [run.variant for run in runs] == ["rd4ad"] * 3 + ["drd"] * 3
    assert runs[3].training.batch_size == 4, "each has its own settings"
    assert runs[0].identity() == Config(variant="rd4ad", dataset="demo", classes=("brick",), seeds=(0,)).identity()
    assert first_line(runs) == "rd4ad, drd on demo: 2 settings x 3 classes x 1 seed = 6 runs, 0 finished"
    for wrong, problem in (
        (["--variants", "rd4ad", "rd5"], "unknown --variants rd5: .*did you mean rdpp|rd4ad"),
        (["--variants", "rd4ad", "rd4ad"], "--variants rd4ad rd4ad: give one or more, each once"),
        (["--variants", "rd4ad", "--name", "x"], "--name: several --variants have folders of their own"),
        (["--variants", "rd4ad", "--variant", "drd"], "--variant and --variants: give one of them"),
        (["--devices", "cpu", "--device", "cpu"], "--device and --devices: give one of them"),
    ):
        with pytest.raises(ValueError, match=problem):
            parse(wrong)
    with pytest.raises(ValueError, match="--variants rd4ad: --mask_rate: no features are hidden"):
        parse(["--variants", "masked", "rd4ad", "--mask_rate", "0.3", "--dataset", "demo"]).runs()


def test_devices_and_jobs_make_workers() -> None:
    assert list_workers(Config(device="cpu")) == ["cpu"]
    assert list_workers(Config(devices=("cuda:0", "cuda:1"), jobs=2)) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert describe_workers(["cuda:0", "cuda:1"]) == "cuda:0, cuda:1"
    assert describe_workers(["cpu", "cpu"]) == "cpu: 2 processes"


# --- what a sweep does with what comes of a run ---


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three runs of which nothing is known yet."""
    return Sweep([Config(save_path=tmp_path, classes=("bottle",), seeds=(seed,)) for seed in (1, 2, 3)])


def test_a_run_that_runs_out_of_memory_gets_one_chance_alone(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert [sweep.next_run() for _ in range(4)] == [1, 2, 3, None]
    for _ in range(2):
        sweep.take(2, Outcome(OUT_OF_MEMORY, "out of memory: give less"))
        alone = sweep.next_alone()
    assert alone is None and sweep.failures == {2: "out of memory: give less"}
    assert "once more when nothing else runs" in capsys.readouterr().out


def test_a_run_whose_process_crashes_gets_three_the_last_one_alone(sweep: Sweep) -> None:
    assert [sweep.next_run() for _ in range(3)] == [1, 2, 3]
    crash = Outcome(CRASHED, "its process was killed by SIGKILL")
    sweep.take(1, crash)
    assert sweep.next_run() == 1
    sweep.take(1, crash)
    assert sweep.next_run() is None and sweep.next_alone() == 1
    sweep.take(1, crash)
    assert sweep.next_alone() is None
    assert sweep.failures == {1: "its process was killed by SIGKILL, 3 times"}


def test_a_run_of_another_process_is_asked_for_again_later(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pauses = []
    assert sweep.next_run() == 1
    for _ in range(8):
        sweep.take(1, Outcome(BUSY, "process 5 writes it now"))
        assert sweep.is_waiting and 1 not in sweep.busy
        pauses.append(sweep.seconds_left())
        now += pauses[-1]
        while (number := sweep.next_run()) in (2, 3):
            sweep.take(number, Outcome(FINISHED, epochs=1))
        assert number == 1
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert capsys.readouterr().out.count("put off: process 5 writes it now") == 1
    sweep.take(1, Outcome(FINISHED, epochs=1))
    assert not sweep.is_waiting and sweep.complete and sweep.made == 3


def test_a_failure_is_listed_and_with_stop_on_error_it_ends_everything(sweep: Sweep, tmp_path: Path) -> None:
    sweep.take(1, Outcome(FAILED, "bottle seed 1: the loss became nan"))
    assert sweep.failures == {1: "the loss became nan"} and not sweep.complete
    stopping = Sweep([Config(save_path=tmp_path, seeds=(seed,), stop_on_error=True) for seed in (1, 2)])
    with pytest.raises(ValueError, match="the loss became nan"):
        stopping.take(1, Outcome(FAILED, "the loss became nan"))


def test_a_run_that_runs_out_of_memory_is_run_again_after_the_others(
    mvtec_tree: MakeTree,
    tmp_path: Path,
    train_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, seen = attempt.train, []

    def train(experiment: Any, *rest: Any) -> None:
        seen.append(experiment.config.seeds[0])
        if seen == [1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        own(experiment, *rest)

    monkeypatch.setattr(attempt, "train", train)
    flags = ["--data_path", mvtec_tree(train=2, good=1, bad=1), "--save_path", tmp_path / "runs", "--epochs", 1]
    assert train_command(*flags, "--seeds", 1, 2) == 0
    assert seen == [1, 2, 1]
    rows = read_csv(tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed1" / ATTEMPTS)
    assert [row["outcome"][:13] for row in rows] == ["out of memory", "finished"]
    assert "out of memory: once more when nothing else runs" in capsys.readouterr().out


def test_fresh_discards_nothing_that_was_begun_since_the_command_began(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data_path", mvtec_tree(train=2, good=1, bad=1), "--save_path", tmp_path / "runs", "--epochs", 1]
    assert train_command(*flags) == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    first = (run / METRICS).stat().st_mtime_ns
    own = engines.attempt
    earlier = time.time() - 600
    with monkeypatch.context() as patched:
        patched.setattr(
            engines,
            "attempt",
            lambda config, device, lines, started, *rest, **more: own(config, device, lines, earlier),
        )
        assert train_command(*flags, "--fresh") == 0
    assert (run / METRICS).stat().st_mtime_ns == first
    assert train_command(*flags, "--fresh") == 0
    assert (run / METRICS).stat().st_mtime_ns > first
    assert len(Run(run).attempts()) == 1, "a fresh run has attempts of its own"
    assert "image AUROC" not in (run / LOG).read_text() and "loss" in (run / LOG).read_text()
    assert record_of(run)["epochs_trained"] == 1 and len(collect([run])) == 1
