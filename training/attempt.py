"""One attempt at one run, the same under every engine: train what is left, score it, tell what came of it."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from commandline import is_out_of_memory, one_line_of
from config import Config
from experiment import Experiment, score
from report.results import split_classes
from run_files import LOG, MAPS, METRICS, Busy, Run
from training.loop import train
from training.terminal import Lines, headline
from utils import choose_device, set_up_libraries

ROOT = Path(__file__).resolve().parent.parent
FINISHED, ALREADY, BUSY, FAILED, OUT_OF_MEMORY, CRASHED = (
    "finished",
    "finished already",
    "busy",
    "failed",
    "out of memory",
    "crashed",
)


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt, in plain values that go from process to process.

    kind      one of the words above; crashed: its process has ended without a word, and another one says so
    text      finished: its metrics; busy: who has the run; failed: the error in one line
    epochs    that are trained now
    work      passes of an image that were done
    seconds   that it took
    mistake   failed by a mistake of the program, not of the user
    """

    kind: str
    text: str = ""
    epochs: int = 0
    work: int = 0
    seconds: float = 0.0
    mistake: bool = False


def prepare_process(config: Config) -> torch.device:
    """What holds for all runs of a process: determinism and memory; the device of the first one."""
    device = choose_device(config.device)
    set_up_libraries(config.deterministic, config.fast)
    return device


def attempt(
    config: Config, device: torch.device, lines: Lines, started: float, checked: bool = True, raises: bool = False
) -> Outcome:
    """Train on one class with one seed and score it once; a finished run stays as it is, an unfinished one goes on.

    `started` is when the command began, in seconds since 1970: --fresh discards nothing that was begun since then.
    `checked`: the files of the class were looked at. With `raises` an error is raised instead of told.
    """
    if config.fresh and _begun_since(config, started):
        config = replace(config, fresh=False, resume=True)
    try:
        return _attempt(Experiment(config, device), lines, checked)
    except Busy as problem:
        return Outcome(BUSY, str(problem))
    except Exception as problem:
        if raises:
            raise
        text = one_line_of(problem)
        if is_out_of_memory(problem):
            return Outcome(OUT_OF_MEMORY, text or str(problem))
        if text is None:
            return Outcome(FAILED, f"{type(problem).__name__}: {problem}".split("\n")[0], mistake=True)
        return Outcome(FAILED, text)


def perform(task: Mapping[str, Any]) -> dict[str, Any]:
    """`attempt` in another process: a task of `Sweep.task` -> the outcome, both in plain values."""
    config = Config(**Config.from_json(task["config"]))
    lines = Lines(task["number"], task["titles"])
    return asdict(attempt(config, prepare_process(config), lines, task["started"], task["checked"]))


def import_path() -> str:
    """The PYTHONPATH of a process that imports this project from wherever it is started."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _attempt(experiment: Experiment, lines: Lines, checked: bool) -> Outcome:
    config, folder = experiment.config, Run(experiment.config.run_folder)
    identity, data = experiment.identity, experiment.data
    if not config.fresh and folder.holds(identity, data):
        folder.tidy()
        lines.say(f"finished already, in {folder}")
        _say_late_flags(config, folder, lines)
        return Outcome(ALREADY)
    if not checked:
        experiment.check_data()
    started = time.perf_counter()
    with folder.lock(config.lock_seconds):
        folder.open(config.to_json(), identity, data, fresh=config.fresh, resume=config.resume)
        if folder.finished:  # another process has finished it just now
            lines.say(f"finished already, in {folder}")
            return Outcome(ALREADY)
        with _logged(folder.folder / LOG):
            epochs = _train_and_score(experiment, folder, lines)
    done = (epochs.stop - epochs.start) * len(experiment.train_images) + len(experiment.test_images)
    metrics = headline(folder.read(METRICS)["metrics"])
    return Outcome(FINISHED, metrics, epochs.stop, done, time.perf_counter() - started)


def _train_and_score(experiment: Experiment, folder: Run, lines: Lines) -> range:
    """The epochs of this attempt, counted from 0; how it began and ended is in attempts.csv."""
    progress = folder.restore(experiment.distiller, experiment.optimizer, experiment.training, experiment.average)
    begun = progress.epoch
    with folder.attempt(str(experiment.device), begun):
        if begun:
            lines.say(f"resumed after epoch {begun}")
        train(experiment, folder, progress, lines)
        score(experiment, folder, progress)
    return range(begun, progress.epoch)


def _begun_since(config: Config, started: float) -> bool:
    """Whether another process of this command, or of one that was started beside it, has worked on the run."""
    try:
        attempts = Run(config.run_folder).attempts()
        return any(datetime.datetime.fromisoformat(row["started"]).timestamp() >= started for row in attempts)
    except (OSError, ValueError, KeyError):
        return False


def _say_late_flags(config: Config, folder: Run, lines: Lines) -> None:
    """Say how a finished run gets what the flags ask for and only a run that is being scored leaves behind."""
    late = ["--vis"] * (config.vis and not config.overlay_folder.is_dir())
    late += ["--save_maps"] * (config.save_maps and not (folder.folder / MAPS).is_file())
    recorded = split_classes(folder.read(METRICS))
    late += ["--intervals"] * (config.intervals and not all("intervals" in part for part in recorded))
    if late:
        command = f"python test.py {shlex.quote(str(folder))} {' '.join(late)}"
        lines.say(f"{' and '.join(late)} of a finished run: {command}")


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is printed meanwhile also goes to the end of a file, and so does the traceback of what is raised."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        with (
            contextlib.redirect_stdout(_Both(sys.stdout, log)),
            contextlib.redirect_stderr(_Both(sys.stderr, log)),
        ):
            try:
                yield
            except Busy:
                raise
            except BaseException:
                log.write(traceback.format_exc())
                raise


class _Both:
    """A stream whose text also goes to a file; a bar that redraws itself only goes to the stream."""

    def __init__(self, stream: Any, file: IO[str]) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        if "\r" not in text:
            self._file.write(text)
            self._file.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
