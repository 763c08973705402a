"""All runs of a command by the engine that its flags ask for: in this process, by several, or on a Ray cluster."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from config import Config
from training.attempt import OUT_OF_MEMORY, attempt, prepare_process
from training.on_ray import LOCAL, run_on_ray
from training.sweep import Sweep
from training.workers import Crew, describe_workers, list_workers
from utils import choose_device, describe_device


def describe_engine(config: Config) -> str:
    """cpu (2 threads); cuda:0, cuda:1; cpu: 2 processes; Ray at 10.0.0.5:6379."""
    if config.ray is not None:
        return "Ray" if config.ray == LOCAL else f"Ray at {config.ray}"
    workers = list_workers(config)
    if len(workers) == 1:
        return describe_device(choose_device(workers[0]))
    return describe_workers([str(choose_device(device)) for device in workers])


def train_all(runs: Sequence[Config]) -> Sweep:
    """Train and score all runs that are not finished; the first one says how (--devices, --jobs, --ray).

    Raises ValueError or OSError where no run is possible, and for the first failure with a single run or with
    --stop_on_error.
    """
    sweep = Sweep(runs)
    workers = list_workers(runs[0])
    device = prepare_process(replace(runs[0], device=workers[0]))
    sweep.check(device if len(workers) == 1 and runs[0].ray is None else torch.device("cpu"))
    if runs[0].ray is not None:
        run_on_ray(sweep)
    elif len(workers) == 1:
        run_here(sweep, device)
    else:
        with Crew(sweep, workers) as crew:
            crew.run()
    return sweep


def run_here(sweep: Sweep, device: torch.device) -> None:
    """One run after the other in this process."""
    while True:
        number = sweep.next_run()
        if number is None and sweep.is_waiting:
            time.sleep(sweep.seconds_left())
            continue
        if number is None:
            number = sweep.next_alone()
        if number is None:
            return
        lines, config = sweep.lines(number), sweep.runs[number - 1]
        outcome = attempt(config, device, lines, sweep.started, sweep.is_checked(number), raises=sweep.stops)
        if outcome.kind == OUT_OF_MEMORY:
            _free_memory()
        sweep.take(number, outcome)


def _free_memory() -> None:
    """Give back what a run that failed held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
