"""A sweep on Ray: each run is a task, which Ray places, and starts again where its worker or its host is lost.

The hosts share the folders of the command, under the same paths. Needs requirements-ray.txt.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.attempt import CRASHED, FAILED, Outcome, import_path, perform
from training.sweep import Sweep

LOCAL = "local"
RETRIES = 3  # of a run whose worker or host is lost, by Ray itself
LOOKS = 1.0  # seconds between two looks at what is done


def run_on_ray(sweep: Sweep) -> None:
    """All runs of the sweep. Raises ValueError or OSError where Ray cannot be used, and as `Sweep.take`.

    When this process ends, Ray ends its tasks: the runs keep their resume points.
    """
    ray = _import_ray()
    config = sweep.runs[0]
    _connect(ray, config.ray or LOCAL)
    try:
        gpus = config.gpus_per_run
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(perform_there)
        _follow(ray, task, sweep)
    finally:
        ray.shutdown()


def perform_there(task: dict[str, Any], folder: str) -> dict[str, Any]:
    """`perform` in a worker of Ray. Paths are relative to `folder`."""
    try:
        os.chdir(folder)
    except OSError as problem:
        return asdict(
            Outcome(FAILED, f"{folder}: {problem.strerror} on {os.uname().nodename}; all hosts must share it")
        )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return perform(task)


def _import_ray() -> Any:
    """Ray with its access token on. Raises ValueError where Ray is missing, or its token was turned off."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ValueError("RAY_AUTH_MODE must be token: without it anybody in the network may run code on these hosts")
    os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it when it is imported
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("--ray needs Ray: pip install -r requirements-ray.txt") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Start Ray here, or join the cluster at the address. Raises ValueError where that fails."""
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": import_path()}},
        "log_to_driver": False,
        "logging_level": "error",
    }
    if address == LOCAL:
        known = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
        if not any(name in os.environ for name in known) and not (Path.home() / ".ray/auth_token").is_file():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray.init(include_dashboard=False, **options)
        return
    try:
        ray.init(address=address, **options)
    except Exception as problem:  # ConnectionError, AuthenticationError, RuntimeError: it has many
        reason = " ".join(str(problem).split())[:200]
        raise ValueError(
            f"--ray {address}: no connection ({type(problem).__name__}: {reason}); is the cluster up, and its token "
            "here (RAY_AUTH_TOKEN, or ~/.ray/auth_token)?"
        ) from None


def _follow(ray: Any, task: Any, sweep: Sweep) -> None:
    """Give all runs to Ray, and take what comes of them, until nothing is left."""
    folder, numbers = os.getcwd(), {}
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def give(number: int) -> None:
        numbers[task.remote(sweep.task(number), folder)] = number

    while True:
        while (number := sweep.next_run()) is not None:
            give(number)
        if not numbers and not sweep.is_waiting:
            alone = sweep.next_alone()
            if alone is None:
                return
            give(alone)
        done, _ = ray.wait(list(numbers), timeout=LOOKS) if numbers else ([], [])
        for reference in done:
            number = numbers.pop(reference)
            sweep.take(number, _outcome(ray, reference), min(slots, len(numbers) + 1))


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        return Outcome(**ray.get(reference))
    except ray.exceptions.RayTaskError as problem:  # an error that `attempt` does not tell: ours
        return Outcome(FAILED, str(problem.cause).split("\n")[0], mistake=True)
    except ray.exceptions.RayError as problem:  # its worker or host was lost, more often than Ray tries
        print(f"Ray: {' '.join(str(problem).split())[:300]}", file=sys.stderr)
        return Outcome(CRASHED, f"its process on Ray was lost ({type(problem).__name__})")
