"""What is timed against what: each section is a function of the settings that returns its rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import implementations as sides
from benchmarks.implementations import Settings
from benchmarks.processes import InProcess, Make, Subprocess
from benchmarks.timing import Quartiles, alternate

Kind = dict[str, Any]  # changes of a Config


def kinds(settings: Settings, compiled: bool = False) -> dict[str, tuple[str, Kind]]:
    """The ways ours is run, by name: (precision, changes of the Config); compiled ones only where asked for."""
    found: dict[str, tuple[str, Kind]] = {f"ours {name}": (name, {"precision": name}) for name in settings.precisions}
    if compiled:
        found |= {f"{name}, compiled": (kind, {**changes, "compile": True}) for name, (kind, changes) in found.items()}
    return found


@dataclass(frozen=True)
class Implementation:
    """What is timed: `make` gives the call. Its operations are counted, or those of `counts_as`, or none ("").

    `tuned`: the allocator keeps freed memory, as in main.py. Only one that is `warm` is called before it is timed.
    """

    make: Make
    precision: str = "fp32"
    counts_as: str | None = None
    tuned: bool = True
    warm: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table.

    gflop       products and convolutions of a call
    against     the implementation that it is compared with: `ratio` is that one's seconds over its own, `difference`
                the largest error of its first answer, as a share of that one's range (of a number: of the number)
    peak_gib    the most memory its process has held, libraries and all; on a GPU what torch has taken there
    """

    section: str
    name: str
    precision: str
    seconds: Quartiles
    gflop: float | None = None
    against: str = ""
    ratio: Quartiles | None = None
    difference: float | None = None
    peak_gib: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """By which it finds its floor."""
        return self.section, self.name, self.against

    def share_of(self, peak: Mapping[str, Mapping[str, float]]) -> float | None:
        """The fraction of the precision's measured peak, the larger of the two; None where nothing was counted."""
        if self.gflop is None:
            return None
        return self.gflop / self.seconds.median / max(peak[self.precision].values())


def compare(
    section: str, implementations: Mapping[str, Implementation], settings: Settings, repeats: int = 0
) -> list[Row]:
    """Time the implementations in turn, after a round that counts and warms up; the first is the reference."""
    first = next(iter(implementations))
    running: dict[str, InProcess] = {}
    counted: dict[str, float | None] = {}
    answers: dict[str, Any] = {}
    try:
        for name, implementation in implementations.items():
            if settings.apart:
                running[name] = Subprocess(implementation.make, settings.device, implementation.tuned)
            else:
                running[name] = InProcess(implementation.make, settings.device)
            counted[name] = None if implementation.counts_as is None else counted.get(implementation.counts_as)
            if implementation.warm:
                gflop, answers[name] = running[name].first()
                counted[name] = gflop if implementation.counts_as is None else counted[name]
        seconds = alternate({name: it.seconds for name, it in running.items()}, repeats or settings.repeats)
        rows = []
        for name, taken in seconds.items():
            row = Row(section, name, implementations[name].precision, Quartiles.of(taken), counted[name])
            rows.append(replace(row, peak_gib=running[name].peak_gib()))
    finally:
        for it in running.values():
            it.close()
    return rows[:1] + [
        replace(
            row,
            against=first,
            ratio=Quartiles.of(seconds[first] / seconds[row.name]),
            difference=difference(answers.get(row.name), answers.get(first)),
        )
        for row in rows[1:]
    ]


def difference(found: Any, wanted: Any) -> float | None:
    """The largest distance between two answers, over the range of the second, or over a single number itself."""
    if found is None or wanted is None:
        return None
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    scale = np.ptp(wanted) if wanted.ndim > 1 else np.abs(wanted).max()
    return float(np.abs(found - wanted).max() / scale)


def training(section: str, settings: Settings, count: int) -> list[Row]:
    """A pass over `count` images, everything cached that ours caches."""
    implementations = {"plain": Implementation(partial(sides.plain_training, settings, count), tuned=False)}
    for name, (precision, changes) in kinds(settings).items():
        implementations[name] = Implementation(partial(sides.our_training, settings, changes, count), precision)
    return compare(section, implementations, settings)


def step(settings: Settings) -> list[Row]:
    """One training step."""
    return training("step", settings, settings.batch_size)


def epoch(settings: Settings) -> list[Row]:
    """One pass over all training images, from the second epoch on; and what filling the cache takes, once."""
    rows = training("epoch", settings, settings.images)
    for name, (precision, changes) in kinds(settings).items():
        filling = Implementation(partial(sides.our_filling, settings, changes), precision)
        rows += compare("epoch", {f"{name}, filling its cache": filling}, settings, repeats=1)
    return rows


def evaluation(settings: Settings) -> list[Row]:
    """Scoring the test set, from files to metrics; then the same with the networks' answers known beforehand."""
    implementations = {"plain": Implementation(partial(sides.plain_evaluation, settings), tuned=False)}
    for name, (precision, changes) in kinds(settings).items():
        implementations[name] = Implementation(partial(sides.our_evaluation, settings, changes), precision)
    known = {
        "plain, all but the network": Implementation(
            partial(sides.plain_evaluation, settings, known=True), counts_as="", tuned=False
        ),
        "ours, all but the network": Implementation(
            partial(sides.our_evaluation, settings, {}, known=True), counts_as=""
        ),
    }
    return compare("evaluation", implementations, settings) + compare("evaluation", known, settings)


def metrics(settings: Settings) -> list[Row]:
    """Metrics of given maps, five times as many as there are images and twice as wide; ours makes all seven."""
    size = (5 * settings.images, 2 * settings.image_size)
    ours = Implementation(partial(sides.our_metrics, *size), counts_as="")
    # the published function takes minutes
    published = Implementation(partial(sides.plain_metrics, *size), counts_as="", tuned=False, warm=False)
    rows = compare("metrics", {"published AUPRO": published, "ours": ours}, settings, (settings.repeats + 1) // 2)
    if find_spec("adeval") is None:
        print("adeval is not installed and is left out: pip install adeval==1.1.0")
        return rows
    theirs = Implementation(partial(sides.adeval_metrics, *size), counts_as="", tuned=False)
    return rows + compare("metrics", {"adeval": theirs, "ours": ours}, settings)


def inference(settings: Settings) -> list[Row]:
    """One decoded image to its map, everything loaded; then a batch, which the published loop scores one by one."""
    rows: list[Row] = []
    for count in (1, settings.batch_size):
        many = f", {count} images" if count > 1 else ""
        published = Implementation(partial(sides.plain_inference, settings, count), tuned=False)
        implementations = {f"plain{many}": published}
        for name, (precision, changes) in kinds(settings, compiled=True).items():
            eager = f"ours {precision}{many}"
            implementations[name + many] = Implementation(
                partial(sides.our_inference, settings, changes, count),
                precision,
                counts_as=None if name + many == eager else eager,
            )
        rows += compare("inference", implementations, settings)
    return rows


def growth(settings: Settings) -> list[Row]:
    """Runs of ours (caching, an epoch, scoring) on fewer images and on more, at a larger size, over more classes."""
    half, few = (replace(settings, images=settings.images // part) for part in (2, 4))
    larger = sides.enlarged(few, 2)
    runs = {
        f"{settings.images} images": (settings, 1),
        f"{half.images} images": (half, 1),
        f"{few.images} images": (few, 1),
        f"{few.images} images of {larger.image_size} pixels": (larger, 1),
        f"{few.images} images, 2 classes": (few, 2),
    }
    rows = []
    for name, (changed, classes) in runs.items():  # one at a time: each is given the machine's memory
        whole = Implementation(partial(sides.whole_run, changed, {}, classes), warm=False, counts_as="")
        rows += compare("growth", {name: whole}, settings, repeats=1)
    return rows


def memory(settings: Settings) -> list[Row]:
    """Scoring the test images as large as they are."""
    full = sides.enlarged(settings, 4)
    scoring = Implementation(partial(sides.our_evaluation, full, {}), warm=False, counts_as="")
    return compare("memory", {f"scoring {settings.images} images of {full.image_size} pixels": scoring}, full, 1)


SECTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    "step": step,
    "epoch": epoch,
    "evaluation": evaluation,
    "metrics": metrics,
    "inference": inference,
    "growth": growth,
    "memory": memory,
}
DEFAULT = ("step", "epoch", "evaluation", "metrics", "inference")  # against the published loop
