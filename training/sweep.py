"""The runs of one command, one after the other: what was done, what failed, how long the rest takes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

import torch

from commandline import explain
from config import Config
from experiment import Experiment, score
from report.rendering import count
from report.results import split_classes
from run_files import MAPS, METRICS, Busy, Run
from training.loop import train
from training.terminal import Lines, Pace, epochs_done, headline, is_finished, joined, roughly
from utils import file_sha256


class Sweep:
    """Trains and scores the runs; a failed one is listed in `failures` and the others go on, unless --stop_on_error.

    failures  {run's title: its error in one line}
    busy      titles of the runs that other processes write
    """

    def __init__(self, runs: Sequence[Config], device: torch.device) -> None:
        self.runs, self.device = tuple(runs), device
        self.failures: dict[str, str] = {}
        self.busy: list[str] = []
        self._stops = len(runs) == 1 or runs[0].stop_on_error
        self._images: dict[str, tuple[int, int]] = {}  # of the classes whose files were looked at: (training, test)
        self._finished = {run.title for run in runs if is_finished(run)}  # before the first one
        self._pace = Pace()

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return not self.failures and not self.busy

    def run(self) -> None:
        """All runs in order. Before the first epoch, the files of all classes are looked at.

        Raises ValueError or OSError where no run is possible, and for the first failure with a single run or with
        --stop_on_error.
        """
        self._check_all()
        for number, config in enumerate(self.runs, 1):
            if config.title in self.failures:
                continue
            try:
                self._run_one(Experiment(config, self.device), self._lines(number))
            except Busy as problem:
                self._lines(number).say(f"left out: {problem}")
                self.busy.append(config.title)
            except Exception as problem:
                self._fail(number, problem)

    def _check_all(self) -> None:
        """Look at what all runs need, teacher and checkpoint, then at the files of each class that is not finished."""
        first = Experiment(self.runs[0], self.device)
        first.teacher  # noqa: B018 - weights that are missing show now
        if first.config.checkpoint is not None:
            file_sha256(first.config.checkpoint)
        for number, config in enumerate(self.runs, 1):
            if config.classes[0] in self._images or config.title in self._finished:
                continue
            try:
                self._check(Experiment(config, self.device))
            except Exception as problem:
                for other, run in enumerate(self.runs[number - 1 :], number):
                    if run.classes == config.classes and run.title not in self._finished:
                        self._fail(other, problem)
                self._images[config.classes[0]] = (0, 0)
        if len(self.failures) == len(self.runs):
            raise ValueError("\n".join(dict.fromkeys(self.failures.values())))

    def _check(self, experiment: Experiment) -> None:
        """The files of a class, once: a line for each warning. Raises as `readers.checks.check_data`."""
        (class_name,) = experiment.config.classes
        if class_name not in self._images:
            experiment.check_data()
            self._images[class_name] = len(experiment.train_images), len(experiment.test_images)

    def _run_one(self, experiment: Experiment, lines: Lines) -> None:
        """Train on one class with one seed and score it once; a finished run stays as it is, an unfinished one goes on.

        Raises Busy, having done nothing, where another process writes the run.
        """
        config, folder = experiment.config, Run(experiment.config.run_folder)
        identity, data = experiment.identity, experiment.data
        if not config.fresh and folder.holds(identity, data):
            folder.tidy()
            lines.say(f"finished already, in {folder}")
            say_late_flags(config, folder, lines)
            return
        self._check(experiment)
        started = time.perf_counter()
        with folder.lock():
            folder.open(config.to_json(), identity, data, fresh=config.fresh, resume=config.resume)
            if folder.finished:  # another process has finished it just now
                return
            progress = folder.restore(experiment.distiller, experiment.optimizer, config.training)
            begun = progress.epoch
            if begun:
                lines.say(f"resumed after epoch {begun}")
            train(experiment, folder, progress, lines)
            score(experiment, folder, progress)
        seconds = time.perf_counter() - started
        self._pace.add(self._work(config, begun), seconds)
        done = f"{count(progress.epoch, 'epoch')} {roughly(seconds)}"
        left = self._pace.left(sum(map(self._work, self.runs[lines.number :])))
        lines.say(joined((joined((done, headline(folder.read(METRICS)["metrics"])), "   "), left), "     "))

    def _work(self, config: Config, begun: int | None = None) -> int:
        """Passes of an image that a run takes after so many epochs: those of training, and a test; 0 without a run."""
        begun = epochs_done(config) if begun is None else begun
        if config.title in self.failures or config.title in self._finished or config.classes[0] not in self._images:
            return 0
        train_images, test_images = self._images[config.classes[0]]
        return max(0, config.training.epochs - begun) * train_images + test_images

    def _fail(self, number: int, problem: Exception) -> None:
        """Note what a user can mend and say so. Raises what is none, and everything where nothing is to go on."""
        explained = explain(problem)
        if explained is None or self._stops:
            raise
        title = self.runs[number - 1].title
        text = "; ".join(explained).removeprefix(f"{title}: ")
        same = next((other for other, known in self.failures.items() if known == text), None)
        self.failures[title] = text
        self._lines(number).say(f"failed: {text}" if same is None else f"failed as {same}")

    def _lines(self, number: int) -> Lines:
        return Lines(number, [config.title for config in self.runs])


def say_late_flags(config: Config, folder: Run, lines: Lines) -> None:
    """Say how a finished run gets what the flags ask for and only a run that is being scored leaves behind."""
    late = ["--vis"] * (config.vis and not config.overlay_folder.is_dir())
    late += ["--save_maps"] * (config.save_maps and not (folder.folder / MAPS).is_file())
    recorded = split_classes(folder.read(METRICS))
    late += ["--intervals"] * (config.intervals and not all("intervals" in part for part in recorded))
    if late:
        command = f"python test.py {shlex.quote(str(folder))} {' '.join(late)}"
        lines.say(f"{' and '.join(late)} of a finished run: {command}")
