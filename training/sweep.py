"""The runs of a command: which is next, what came of each, what failed, how long the rest takes. No engine is here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from commandline import one_line_of
from config import Config
from experiment import Experiment
from report.rendering import count
from run_files import LOG
from training.attempt import ALREADY, BUSY, CRASHED, FAILED, FINISHED, OUT_OF_MEMORY, Outcome
from training.terminal import Lines, Pace, epochs_done, is_finished, joined, roughly, titles_of
from utils import file_sha256

CRASHES = 3  # attempts at a run whose process crashes, the last of them alone
PAUSES = 1.0, 30.0  # seconds until a run that another process has is asked for again: at first, and at most


@dataclass
class Sweep:
    """The runs of a command, numbered from 1. An engine takes `next_run`, attempts it, and `take`s the outcome.

    A failed run is listed in `failures` and the others go on, unless --stop_on_error. Where a run is another process's,
    it is asked for again later, with --wait. What ran out of memory, and what crashed twice, is attempted once more
    when nothing else runs (`next_alone`).

    failures  {number: the error in one line}
    busy      numbers of the runs that other processes have, which were left to them
    started   when the command began, in seconds since 1970
    """

    runs: Sequence[Config]
    failures: dict[int, str] = field(default_factory=dict)
    busy: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.titles = titles_of(self.runs)
        self._ready = deque(range(1, len(self.runs) + 1))
        self._alone: deque[int] = deque()
        self._waiting: dict[int, float] = {}  # when each is asked for again, by time.monotonic
        self._pauses: dict[int, float] = {}
        self._crashes: dict[int, int] = {}
        self._had_their_chance: set[int] = set()  # of running alone
        self._done: set[int] = set()
        self._samples: dict[Path, tuple[int, int]] = {}  # by folder of a class: (training, test)
        self._pace = Pace()

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return not self.failures and not self.busy

    @property
    def stops(self) -> bool:
        """Whether the first failure ends everything."""
        return len(self.runs) == 1 or self.runs[0].stop_on_error

    @property
    def made(self) -> int:
        """How many runs are finished."""
        return len(self.runs) - len(self.failures) - len(self.busy)

    def lines(self, number: int) -> Lines:
        """What prints the lines of a run."""
        return Lines(number, self.titles)

    def task(self, number: int, **changes: Any) -> dict[str, Any]:
        """A run as `training.attempt.perform` takes it in another process; `changes` replace fields of its Config."""
        alone: dict[str, Any] = {"devices": None, "jobs": 1, "ray": None, "gpus_per_run": None}
        return {
            "number": number,
            "titles": self.titles,
            "config": replace(self.runs[number - 1], **(alone | changes)).to_json(),
            "started": self.started,
            "checked": self.is_checked(number),
        }

    # --- what is next ---

    def next_run(self) -> int | None:
        """The number of the next run; None where there is none right now."""
        if self._ready:
            return self._ready.popleft()
        now = time.monotonic()
        due = next((number for number, when in self._waiting.items() if when <= now), None)
        if due is not None:
            del self._waiting[due]
        return due

    def next_alone(self) -> int | None:
        """The number of the next run that nothing may run beside; None where there is none."""
        if not self._alone:
            return None
        number = self._alone.popleft()
        self._had_their_chance.add(number)
        return number

    @property
    def is_waiting(self) -> bool:
        """Whether runs are left that other processes have."""
        return bool(self._waiting)

    def seconds_left(self) -> float:
        """How long until one of them is asked for again."""
        return max(0.0, min(self._waiting.values(), default=0.0) - time.monotonic())

    # --- before the first epoch ---

    def check(self, device: torch.device) -> None:
        """Look at what all runs need, teacher and checkpoint, then at the files of each class that is not finished.

        Raises ValueError or OSError where no run is possible, and for the first failure with a single run or with
        --stop_on_error.
        """
        teachers = {(run.net, run.weights): run for run in reversed(self.runs)}
        for run in teachers.values():
            Experiment(run, device).teacher  # noqa: B018 - weights that are missing show now
        for checkpoint in {run.checkpoint for run in self.runs if run.checkpoint is not None}:
            file_sha256(checkpoint)
        problems: dict[Path, Exception] = {}
        looked_at: set[tuple[str, str]] = set()
        for number, run in enumerate(self.runs, 1):
            if is_finished(run):
                continue
            folder, files = run.run_folder.parent, (run.dataset, run.classes[0])
            if folder not in problems and folder not in self._samples:
                try:
                    experiment = Experiment(run, device)
                    if files in looked_at:  # for another variant
                        experiment.check_split()
                    else:
                        experiment.check_data()
                        looked_at.add(files)
                    self._samples[folder] = samples_of(experiment)
                except Exception as problem:
                    problems[folder] = problem
            if folder in problems:
                self._refuse(number, problems[folder])
        if len(self.failures) == len(self.runs):
            raise ValueError("\n".join(dict.fromkeys(self.failures.values())))

    def is_checked(self, number: int) -> bool:
        """Whether the files of the run's class were looked at."""
        return self.runs[number - 1].run_folder.parent in self._samples

    def _refuse(self, number: int, problem: Exception) -> None:
        """List a run whose files cannot be used. Raises what is a mistake of ours, and everything where `stops`."""
        text = one_line_of(problem)
        if text is None or self.stops:
            raise problem
        self._ready.remove(number)
        self._fail(number, text)

    # --- what came of it ---

    def take(self, number: int, outcome: Outcome, workers: int = 1) -> None:
        """Note what came of an attempt and say so. Raises ValueError for a failure where `stops`.

        `workers` attempt runs side by side, which decides how long the rest takes.
        """
        handle = {
            FINISHED: self._finish,
            ALREADY: self._finish,
            BUSY: self._put_off,
            OUT_OF_MEMORY: self._once_more_alone,
            CRASHED: self._go_on_after_a_crash,
            FAILED: lambda number, outcome: self._fail(number, outcome.text, outcome.mistake),
        }[outcome.kind]
        handle(number, outcome)
        if outcome.kind == FINISHED:
            self._pace.add(outcome.work, outcome.seconds)
            done = joined((f"{count(outcome.epochs, 'epoch')} {roughly(outcome.seconds)}", outcome.text), "   ")
            self.lines(number).say(joined((done, self._pace.left(self._work_left() / workers)), "     "))

    def _finish(self, number: int, _: Outcome) -> None:
        self._done.add(number)

    def _put_off(self, number: int, outcome: Outcome) -> None:
        if not self.runs[0].wait:
            self.busy.append(number)
            self.lines(number).say(f"left out: {outcome.text}")
            return
        if number not in self._pauses:
            self.lines(number).say(f"put off: {outcome.text}")
        pause = min(2 * self._pauses.get(number, PAUSES[0] / 2), PAUSES[1])
        self._pauses[number] = pause
        self._waiting[number] = time.monotonic() + pause

    def _once_more_alone(self, number: int, outcome: Outcome) -> None:
        if number in self._had_their_chance:
            self._fail(number, outcome.text)
            return
        self._alone.append(number)
        self.lines(number).say("out of memory: once more when nothing else runs")

    def _go_on_after_a_crash(self, number: int, outcome: Outcome) -> None:
        self._crashes[number] = self._crashes.get(number, 0) + 1
        if self._crashes[number] == CRASHES:
            self._fail(number, f"{outcome.text}, {CRASHES} times")
            return
        later = self._alone if self._crashes[number] == CRASHES - 1 else self._ready
        later.append(number)
        self.lines(number).say(f"{outcome.text}: it goes on from its last resume point")

    def _fail(self, number: int, text: str, mistake: bool = False) -> None:
        text = text.removeprefix(f"{self.runs[number - 1].title}: ")
        log = self.runs[number - 1].run_folder / LOG
        if mistake:
            text += f" (a mistake of the program, not yours: please report it with {log})"
        same = next((other for other, known in self.failures.items() if known == text), None)
        self.failures[number] = text
        said = f"failed: {text}" if same is None else f"failed as {self.titles[same - 1]}"
        self.lines(number).say(said + (f"; log: {log}" if not mistake and log.is_file() else ""))
        if self.stops:
            raise ValueError(text)

    def _work_left(self) -> float:
        """Passes of a sample that are left, by what the runs' tables of losses say now."""
        return sum(
            self._work(run) for number, run in enumerate(self.runs, 1) if number not in {*self._done, *self.failures}
        )

    def _work(self, run: Config) -> int:
        """Passes of a sample that a run still takes: those of training, and a test; 0 where that is not known."""
        train, test = self._samples.get(run.run_folder.parent, (0, 0))
        return max(0, run.training.epochs_for(train) - epochs_done(run)) * train + test


def samples_of(experiment: Experiment) -> tuple[int, int]:
    """How many samples of a class train and are tested: images, or windows, as many of each test image on average."""
    images, samples = len(experiment.train_images), len(experiment.train_images.training_samples)
    return samples, len(experiment.test_images) * samples // max(1, images)
