"""scripts/slurm_array.sh: by bash with the variables that Slurm sets, and through sbatch where a Slurm answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toys import ROOT, TINY, make_mvtec, wait_for

from report.results import collect
from run_files import ATTEMPTS, CHECKPOINT, METRICS
from run_files.csv_files import read_csv

SCRIPT = "scripts/slurm_array.sh"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
SWEEP = "--variant rd4ad --class all --seeds 1 2 --epochs 2 --print_loss 0".split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of two small classes, which make four runs with two seeds."""
    return make_mvtec(tmp_path_factory.mktemp("data"), ("bottle", "cable"), train=3, good=1, bad=1)


def flags(root: Path, folder: Path, *more: object) -> list[str]:
    return list(map(str, [*TINY, "--data_path", root, "--save_path", folder, *SWEEP, *more]))


def task(number: int, count: int, restarts: int = 0) -> dict[str, str]:
    """What Slurm sets for a task of an array from 1 to count."""
    values = {"ID": number, "MIN": 1, "MAX": count, "STEP": 1, "COUNT": count}
    return (
        {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}
        | {"SLURM_JOB_ID": "77"}
        | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})
    )


def stand_in(folder: Path, name: str, body: str) -> dict[str, str]:
    """A command of this name in front of all others, as a change of the environment."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return {"PATH": os.pathsep.join((str(path.parent), os.environ["PATH"]))}


def begin(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(
        ["bash", SCRIPT, *words],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        text=True,
        start_new_session=True,
        **pipes,  # type: ignore[call-overload]
    )


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    """What the task printed; it must end with this exit code."""
    out, problem = process.communicate(timeout=300)
    assert process.returncode == code, out + problem
    return out + problem


def metrics(folder: Path) -> dict[str, Any]:
    """{run: its metrics} below a folder of runs."""
    return {
        path.parent.relative_to(folder).as_posix(): json.loads(path.read_text())["metrics"]
        for path in folder.rglob(METRICS)
    }


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The metrics of the sweep by one task of an array of one, which is what main.py does without --shard."""
    folder = tmp_path_factory.mktemp("one")
    assert "4 runs of 4, 0 finished" in end(begin(task(1, 1), *flags(root, folder)))
    return metrics(folder)


@pytest.mark.slow
def test_two_tasks_at_once_make_all_runs(root: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    tasks = [begin(task(number, 2), *flags(root, tmp_path)) for number in (1, 2)]
    assert all("2 runs of 4, 0 finished" in end(process) for process in tasks)
    assert len(undisturbed) == 4 and metrics(tmp_path) == undisturbed
    assert all(len(read_csv(path)) == 1 for path in tmp_path.rglob(ATTEMPTS))
    assert len(collect([tmp_path])) == 4


@pytest.mark.slow
def test_a_task_that_is_warned_ends_queues_itself_again_and_goes_on(root: Path, tmp_path: Path) -> None:
    """--fresh, given when the array was submitted, then discards nothing. SIGTERM, which all processes get, ends it."""
    words = flags(root, tmp_path, "--class", "bottle", "--epochs", 40, "--checkpoint_seconds", 0, "--fresh")
    called = stand_in(tmp_path, "scontrol", f'echo "$@" >> {tmp_path}/called')
    for restarts in range(3):
        process = begin(called | task(1, 2, restarts), *words)
        run = wait_for(tmp_path, CHECKPOINT if restarts == 0 else ATTEMPTS).parent
        while restarts < 2 and len(read_csv(run / ATTEMPTS)) <= restarts:
            time.sleep(0.02)
        if restarts == 0:
            process.send_signal(signal.SIGUSR1)
            assert "out of time, or preempted: queued again" in end(process, code=143)
        elif restarts == 1:
            os.killpg(process.pid, signal.SIGTERM)
            end(process, code=143)
    end(process)
    first, second, third = read_csv(run / ATTEMPTS)
    assert [row["outcome"] for row in (first, second, third)] == ["Terminated", "Terminated", "finished"]
    assert 0 < int(second["epoch"]) <= int(third["epoch"])
    assert (tmp_path / "called").read_text() == "requeue 77\n", "Slurm itself queues again what it preempts"


def test_a_task_does_not_queue_itself_again_for_ever(tmp_path: Path) -> None:
    python = stand_in(tmp_path, "python", "exec sleep 60")
    called = python | stand_in(tmp_path, "scontrol", f"touch {tmp_path}/called") | {"PYTHON": "python"}
    process = begin(called | task(1, 2, restarts=20))
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    assert "error: not queued again after 20 restarts" in end(process, code=143)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_that_of_main(code: int, tmp_path: Path) -> None:
    python = stand_in(tmp_path, "python", f'echo "$OMP_NUM_THREADS $@"\nexit {code}')
    environment = python | task(2, 2) | {"PYTHON": "python", "SLURM_CPUS_PER_TASK": "3"}
    assert end(begin(environment, "--class", "all"), code) == "1 main.py --class all --shard auto\n"
    environment |= {"SLURM_RESTART_COUNT": "1"}
    assert end(begin(environment, "--fresh"), code) == (
        "1 main.py --fresh --shard auto --fresh 0 --resume 1 --wait 1\n"
    )


@pytest.mark.parametrize(
    ("folder", "environment", "problem"),
    [
        (ROOT, {}, "error: no task of an array: give sbatch --array=1-N, for N tasks"),
        (Path("/"), task(1, 2), "error: /: no main.py there: sbatch from its folder, or with --chdir"),
    ],
)
def test_a_job_that_cannot_work_says_why_in_one_line(
    folder: Path, environment: dict[str, str], problem: str, tmp_path: Path
) -> None:
    spooled = shutil.copy(ROOT / SCRIPT, tmp_path / "slurm_script")  # what Slurm runs is a copy
    done = subprocess.run(
        ["bash", spooled], cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", problem + "\n")


def test_slurm_starts_it() -> None:
    assert os.access(ROOT / SCRIPT, os.X_OK)
    given = [line for line in (ROOT / SCRIPT).read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120"} <= {*given}


# --- a Slurm that answers ---


def slurm(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


@pytest.fixture
def cluster() -> None:
    """A Slurm whose controller answers and has a node that is up; the test is skipped otherwise."""
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch here")
    try:
        slurm("scontrol", "ping")
        nodes = slurm("sinfo", "--noheader", "--states=idle,mixed,allocated", "--format=%D")
    except (subprocess.SubprocessError, OSError):
        pytest.skip("no slurmctld answers")
    if not nodes:
        pytest.skip("no node of Slurm is up")


def wait_until_done(job: str) -> None:
    limit = time.monotonic() + 280
    while slurm("squeue", "--noheader", f"--jobs={job}"):
        assert time.monotonic() < limit, slurm("scontrol", "show", "job", job)
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_array_of_a_real_slurm(root: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    options = ["--parsable", "--array=1-3", f"--output={tmp_path}/%a.out"]
    job = slurm("sbatch", *options, SCRIPT, *flags(root, tmp_path / "runs"))
    wait_until_done(job)
    printed = {path.name: path.read_text() for path in sorted(tmp_path.glob("*.out"))}
    assert list(printed) == ["1.out", "2.out", "3.out"]
    assert metrics(tmp_path / "runs") == undisturbed, printed


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_task_that_slurm_queues_again_goes_on(root: Path, tmp_path: Path) -> None:
    words = flags(root, tmp_path, "--class", "bottle", "--seeds", 1, "--epochs", 60, "--checkpoint_seconds", 0)
    job = slurm("sbatch", "--parsable", "--array=1-1", f"--output={tmp_path}/%a.out", SCRIPT, *words, "--fresh")
    run = wait_for(tmp_path, CHECKPOINT).parent
    slurm("scontrol", "requeue", f"{job}_1")
    wait_until_done(job)
    rows = read_csv(run / ATTEMPTS)
    assert len(rows) == 2 and rows[1]["outcome"] == "finished" and int(rows[1]["epoch"]) > 0
    assert (tmp_path / "1.out").read_text().count("0 finished") == 2, "what it prints is appended"
