"""Sweeps on Ray: the same runs as by one process, also where a worker or a whole node is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import ROOT, TINY, make_mvtec, wait_for

from run_files import ATTEMPTS, METRICS, Run
from run_files.csv_files import read_csv
from training import on_ray

SWEEP = ["--variants", "rd4ad", "sk_rd4ad", "--seeds", "1", "2", "--epochs", "3", "--checkpoint_seconds", "0"]
RUNS = 8
TOKEN = "0123456789abcdef" * 4


def ray_or_skip() -> Any:
    return pytest.importorskip("ray", reason="pip install -r requirements-ray.txt")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mvtec(tmp_path_factory.mktemp("data"), ("bottle", "cable"), train=3, good=1, bad=1)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return os.environ | own


Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def begin(root: Path, environment: dict[str, str]) -> Begin:
    """Start a command on the sweep in a process of its own."""

    def start(folder: Path, *command: str) -> subprocess.Popen[str]:
        words = [*TINY, "--data_path", str(root), "--save_path", str(folder), *SWEEP]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        line = [sys.executable, *command, *words]
        return subprocess.Popen(line, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]

    return start


def metrics_of(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """{run: its metrics} once the command has ended well; each run was finished once."""
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    for path in folder.rglob(ATTEMPTS):
        assert [row["outcome"] for row in read_csv(path)].count("finished") == 1, path
    runs = {path.parent.relative_to(folder).as_posix(): Run(path.parent) for path in folder.rglob(METRICS)}
    assert len(runs) == RUNS
    return {name: run.read(METRICS)["metrics"] for name, run in runs.items()}


@pytest.fixture(scope="module")
def undisturbed(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    return metrics_of(begin(folder, "main.py"), folder)


@pytest.mark.slow
def test_ray_on_this_machine_makes_the_same_runs(begin: Begin, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    ray_or_skip()
    process = begin(tmp_path, "-m", "scripts.ray_sweep")
    os.kill(int(read_csv(wait_for(tmp_path, "checkpoint.pt").parent / ATTEMPTS)[0]["pid"]), signal.SIGKILL)
    assert metrics_of(process, tmp_path) == undisturbed
    assert sum(len(read_csv(path)) for path in tmp_path.rglob(ATTEMPTS)) == RUNS + 1


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
cluster.add_node(num_cpus=1)
other = cluster.add_node(num_cpus=1)
print("address", cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(other, allow_graceful=False)
print("lost", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Two nodes of Ray beside its head, which ask for the token; a line makes the second one die, the next one ends."""
    ray_or_skip()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process
        process.communicate("\n\n", timeout=60)


def told(cluster: subprocess.Popen[str], word: str) -> str:
    """What the cluster's process prints behind this word."""
    assert cluster.stdout is not None
    return next(line.removeprefix(word).strip() for line in cluster.stdout if line.startswith(word))


@pytest.mark.slow
def test_a_node_that_is_lost_in_mid_run_costs_an_attempt(
    begin: Begin, undisturbed: dict[str, Any], cluster: subprocess.Popen[str], tmp_path: Path
) -> None:
    process = begin(tmp_path, "-m", "scripts.ray_sweep", "--address", told(cluster, "address"))
    while len({row["pid"] for path in tmp_path.rglob(ATTEMPTS) for row in read_csv(path)}) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    assert cluster.stdin is not None
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    told(cluster, "lost")
    assert metrics_of(process, tmp_path) == undisturbed
    assert sum(len(read_csv(path)) for path in tmp_path.rglob(ATTEMPTS)) == RUNS + 1


def test_ray_without_its_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE must be token"):
        on_ray._import_ray()


def test_a_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="--ray needs Ray: pip install -r requirements-ray.txt"):
        on_ray._import_ray()
    monkeypatch.delenv("RAY_AUTH_MODE")
