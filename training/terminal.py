"""What a sweep prints: its first line, the lines of each run, a bar for the run at work, how long the rest takes.

Nothing here needs torch, whose import takes seconds: the first line is there before.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from tqdm import tqdm

from config import Config
from dataset import BENCHMARKS
from readers.base import is_vacant
from report import METRIC_TITLES
from report.published import METHODS
from report.rendering import count
from run_files import METRICS, TRAIN, Run

HEADLINE = ("image_auroc", "aupro")  # the metrics on a finished run's line


def first_line(runs: Sequence[Config], of: int | None = None) -> str:
    """RD4AD on demo: 3 classes x 2 seeds = 6 runs, 0 finished. `of`: how many runs the shard is a part of."""
    names = list(dict.fromkeys(run.folder_name for run in runs))
    title = ", ".join(names) if len(names) < 5 else count(len(names), "setting")
    if len(names) == 1 and runs[0].name is None and runs[0].variant in METHODS:
        title = METHODS[runs[0].variant].title
    parts = {"setting": len(names)} if len(names) > 1 else {}
    parts |= {"class": len({run.classes for run in runs}), "seed": len({run.seeds for run in runs})}
    finished = sum(map(is_finished, runs))
    is_product = len(runs) > 1 and len(runs) == math.prod(parts.values())
    counts = [count(number, noun) for noun, number in parts.items()]
    if all(run.unified for run in runs):
        counts = [text.replace("1 class", "one model over all classes") for text in counts]
    product = f"{' x '.join(counts)} = " if is_product else ""
    share = "" if of is None else f" of {of}"
    return f"{title} on {runs[0].dataset}: {product}{count(len(runs), 'run')}{share}, {finished} finished"


def titles_of(runs: Sequence[Config]) -> list[str]:
    """The name of each run in the lines of a sweep; of several settings the setting's name comes first."""
    several = len({run.folder_name for run in runs}) > 1
    return [f"{run.folder_name} {run.title}" if several else run.title for run in runs]


def is_finished(run: Config) -> bool:
    """Whether the run's folder has metrics of all epochs, by a look at one file; `Run.holds` decides."""
    folder = Run(run.run_folder)
    try:
        length = "steps" if run.training.steps else "epochs"
        return not run.fresh and folder.finished and folder.read(METRICS).get(length) == getattr(run.training, length)
    except (OSError, ValueError):
        return False


def epochs_done(run: Config) -> int:
    """The epochs in the run's table of losses, which a run that goes on does not train again, but for a few."""
    try:
        lines = (run.run_folder / TRAIN).read_text(encoding="utf-8").count("\n") - 1
    except (OSError, ValueError):
        return 0
    return 0 if run.fresh or not run.resume else max(0, lines)


@contextlib.contextmanager
def in_one_line(beginning: str) -> Iterator[list[str]]:
    """Print the beginning of a line at once, and at the end what was put into the list meanwhile."""
    ending: list[str] = []
    print(beginning, end="", flush=True)
    try:
        yield ending
    finally:
        print("".join(ending), flush=True)


@contextlib.contextmanager
def timed(text: str) -> Iterator[None]:
    """Print a line whose end says how long what is done inside took."""
    started = time.perf_counter()
    with in_one_line(f"{text} ... ") as ending:
        yield
        ending.append(roughly(time.perf_counter() - started))


def list_runs(config: Config) -> list[Config]:
    """`Config.runs`, with a line where a benchmark makes its images first, which takes seconds."""
    benchmark = BENCHMARKS[config.dataset]
    if benchmark.prepare is None or benchmark.default_root is None:
        return config.runs()
    root = config.data_path or benchmark.default_root()
    with timed(f"making the images of --dataset {config.dataset} in {root}") if is_vacant(root) else nullcontext():
        return config.runs()


class Lines:
    """The lines of one run, `[2/6] brick seed 1   text`, and below them, on a terminal only, the bar of its epochs."""

    def __init__(self, number: int, titles: Sequence[str]) -> None:
        self.number = number
        width = max(map(len, titles))
        self.title = f"[{number}/{len(titles)}] {titles[number - 1]:<{width}}"

    def say(self, text: str) -> None:
        """Print a line."""
        tqdm.write(f"{self.title}   {text}")
        sys.stdout.flush()  # tqdm does not

    def timed(self, text: str) -> AbstractContextManager[None]:
        """Print a line whose end says how long what is done inside took."""
        return timed(f"{self.title}   {text}")

    def bar(self, epochs: range) -> tqdm[int]:
        """The epochs, counted from 1, with a bar on a terminal that vanishes at the end."""
        return tqdm(
            epochs,
            desc=self.title,
            unit=" epochs",
            initial=epochs.start - 1,
            total=epochs.stop - 1,
            disable=not sys.stderr.isatty(),
            leave=False,
        )


class Pace:
    """How long the rest takes, by what was done so far. Work is counted in passes of an image."""

    def __init__(self) -> None:
        self.seconds, self.work = 0.0, 0

    def add(self, work: int, seconds: float) -> None:
        """So much work was done in so many seconds."""
        self.work += work
        self.seconds += seconds

    def left(self, work: float) -> str:
        """About 55 s left; empty where nothing is left, or nothing was done."""
        return f"about {roughly(self.seconds / self.work * work)} left" if work and self.work else ""


def headline(metrics: Mapping[str, float | None]) -> str:
    """image AUROC 98.7  AUPRO 98.1, in percent; without those that are undefined."""
    return "  ".join(
        f"{METRIC_TITLES[name]} {100 * value:.1f}" for name in HEADLINE if (value := metrics.get(name)) is not None
    )


def joined(parts: Iterable[str], gap: str) -> str:
    """The parts that are not empty, with a gap between them."""
    return gap.join(part for part in parts if part)


def roughly(seconds: float) -> str:
    """0.42 -> 0.4 s; 9.3 -> 9 s; 90 -> 1 min 30 s; 754 -> 13 min; 7325 -> 2 h 2 min."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 0.95 else f"{seconds:.0f} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
