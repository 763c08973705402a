"""Several processes on one machine, each with a device: a crew that takes the runs of a sweep one by one.

A worker is `python -m training.worker`. It reads a line of JSON per run and writes lines of JSON: what is to be
printed, and what came of the run. A worker that crashes costs its run an attempt, and another one takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from config import Config
from run_files.lock import LOCK, is_void
from training.attempt import CRASHED, Outcome, import_path
from training.sweep import Sweep

GRACE = 20.0  # seconds in which a worker that was asked to end does so
LOOKS = 5.0  # seconds between two looks at runs that wait and workers that hang


def list_workers(config: Config) -> list[str]:
    """The device of each worker: --jobs of them for each of --devices; one for --device alone."""
    return [device for device in config.devices or (config.device,) for _ in range(config.jobs)]


def describe_workers(devices: Sequence[str]) -> str:
    """cuda:0, cuda:1; cpu: 2 processes."""
    counts = {device: devices.count(device) for device in devices}
    return ", ".join(f"{device}: {n} processes" if n > 1 else device for device, n in counts.items())


class Worker:
    """A process with a device. `number` is that of the run at work, None while it has none."""

    def __init__(self, device: str, messages: queue.Queue[tuple[Worker, dict[str, Any] | None]], threads: int) -> None:
        self.device = device
        self.number: int | None = None
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": import_path()}
        command = [sys.executable, "-m", "training.worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def _listen(self, messages: queue.Queue[tuple[Worker, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # half a line of a process that was killed
                messages.put((self, json.loads(line)))
        messages.put((self, None))

    def start(self, number: int, task: dict[str, Any]) -> None:
        """Give it a run."""
        assert self.process.stdin is not None
        self.number = number
        with contextlib.suppress(OSError):  # it has ended, which its last message says
            self.process.stdin.write((json.dumps(task) + "\n").encode())
            self.process.stdin.flush()

    def leave(self) -> None:
        """Tell it that there is no run left."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def how_it_ended(self) -> str:
        """its process was killed by SIGKILL"""
        code = self.process.wait()
        if code >= 0:
            return f"its process ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process was killed by signal {-code}"


class Crew:
    """Workers for the runs of a sweep. Leaving the context ends all of them: their runs keep their resume points."""

    def __init__(self, sweep: Sweep, devices: Sequence[str]) -> None:
        self.sweep, self.idle = sweep, list(devices)
        self.size = len(devices)
        self.threads = max(1, (os.cpu_count() or 1) // len(devices))
        self.workers: list[Worker] = []
        self.messages: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.leave()
            if worker.number is not None:
                worker.process.terminate()
        end = time.monotonic() + GRACE
        for worker in self.workers:
            try:
                worker.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()

    def run(self) -> None:
        """All runs of the sweep, then those that nothing may run beside. Raises as `Sweep.take`."""
        while True:
            self._hand_out()
            if not self._at_work and not self.sweep.is_waiting:
                number = self.sweep.next_alone()
                if number is None:
                    return
                self._dismiss_all()
                self._give(number)
            self._hear()

    @property
    def _at_work(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.number is not None]

    def _hand_out(self) -> None:
        """A run for every worker that has none, as far as there are runs."""
        while len(self._at_work) < self.size and (number := self.sweep.next_run()) is not None:
            self._give(number)

    def _give(self, number: int) -> None:
        free = [worker for worker in self.workers if worker.number is None]
        if free:
            worker = free[0]
        else:
            worker = Worker(self.idle.pop(0), self.messages, self.threads)
            self.workers.append(worker)
        worker.start(number, self._task(number, worker.device))

    def _task(self, number: int, device: str) -> dict[str, Any]:
        quiet = self.sweep.runs[number - 1].print_loss is None and sys.stderr.isatty()
        return self.sweep.task(number, device=device, **({"print_loss": False} if quiet else {}))

    def _hear(self) -> None:
        """The next message of a worker, or after some seconds a look at what waits and what hangs."""
        try:
            worker, message = self.messages.get(timeout=LOOKS)
        except queue.Empty:
            self._end_what_hangs()
            return
        if message is None:
            self._bury(worker)
        elif "line" in message:
            tqdm.write(message["line"])
            sys.stdout.flush()
        else:
            number, worker.number = worker.number, None
            assert number is not None
            self.sweep.take(number, Outcome(**message["outcome"]), self.size)

    def _bury(self, worker: Worker) -> None:
        """A worker has ended, and was not asked to: its run goes to another one."""
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        self.idle.append(worker.device)
        if worker.number is not None:
            self.sweep.take(worker.number, Outcome(CRASHED, worker.how_it_ended()), self.size)

    def _dismiss_all(self) -> None:
        """End the workers, which hold memory even when they have no run."""
        for worker in self.workers:
            worker.leave()
            worker.process.wait()
            self.idle.append(worker.device)
        self.workers.clear()

    def _end_what_hangs(self) -> None:
        """Kill the workers whose runs have shown no sign of life for too long; their runs go to others."""
        for worker in self._at_work:
            assert worker.number is not None
            lock = self.sweep.runs[worker.number - 1].run_folder / LOCK
            if lock.is_file() and is_void(lock):
                worker.process.kill()
