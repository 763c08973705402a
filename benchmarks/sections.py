"""What is timed against what: each section is a function of the settings that returns its rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.processes import InProcess, Make, Subprocess
from benchmarks.timing import Quartiles, alternate

if TYPE_CHECKING:  # with torch: a section imports it when it runs, so that flags need none of it
    from benchmarks.implementations import Settings

Changes = dict[str, Any]  # of a Config


def configurations(settings: Settings, compiled: bool = False) -> dict[str, tuple[str, Changes]]:
    """How this project is run, by name: (precision, changes of the Config); also compiled where asked for."""
    eager: dict[str, tuple[str, Changes]] = {
        f"ours {name}": (name, {"precision": name}) for name in settings.precisions
    }
    if not compiled:
        return eager
    return eager | {
        f"{name}, compiled": (precision, {**changes, "compile": True}) for name, (precision, changes) in eager.items()
    }


@dataclass(frozen=True)
class Implementation:
    """Something to time.

    make          builds it and returns the call
    counts_as     None: its operations are counted; otherwise those of the implementation of this name are taken, and
                  none for ""
    keeps_memory  its process keeps freed memory, as main.py does with --fast 1
    warm          it is called once before it is timed
    """

    make: Make
    precision: str = "fp32"
    counts_as: str | None = None
    keeps_memory: bool = True
    warm: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table.

    gflop       matrix products and convolutions of a call
    against     the implementation that it is compared with: `ratio` is that one's seconds over its own, `difference`
                the largest error of its first result, relative to that one's range (of a number: to the number)
    peak_gib    the peak memory of its process, libraries included; on a GPU what torch has allocated there
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
        """Names the row in the table of floors."""
        return self.section, self.name, self.against

    def share_of(self, peaks: Mapping[str, Mapping[str, float]]) -> float | None:
        """The fraction of its precision's measured peak, the larger of the two; None where nothing was counted."""
        if self.gflop is None:
            return None
        return self.gflop / self.seconds.median / max(peaks[self.precision].values())


def compare(section: str, compared: Mapping[str, Implementation], settings: Settings, repeats: int = 0) -> list[Row]:
    """Time implementations in turn, after a round that counts and warms up; the first one is the reference."""
    reference = next(iter(compared))
    running: dict[str, InProcess] = {}
    gflop: dict[str, float | None] = {}
    results: dict[str, Any] = {}
    try:
        for name, implementation in compared.items():
            if settings.subprocesses:
                running[name] = Subprocess(implementation.make, settings.device, implementation.keeps_memory)
            else:
                running[name] = InProcess(implementation.make, settings.device)
            gflop[name] = None if implementation.counts_as is None else gflop.get(implementation.counts_as)
            if implementation.warm:
                counted, results[name] = running[name].first()
                gflop[name] = counted if implementation.counts_as is None else gflop[name]
        seconds = alternate({name: process.seconds for name, process in running.items()}, repeats or settings.repeats)
        rows = []
        for name, values in seconds.items():
            row = Row(section, name, compared[name].precision, Quartiles.of(values), gflop[name])
            rows.append(replace(row, peak_gib=running[name].peak_gib()))
    finally:
        for process in running.values():
            process.close()
    return rows[:1] + [
        replace(
            row,
            against=reference,
            ratio=Quartiles.of(seconds[reference] / seconds[row.name]),
            difference=max_relative_error(results.get(row.name), results.get(reference)),
        )
        for row in rows[1:]
    ]


def max_relative_error(found: Any, expected: Any) -> float | None:
    """The largest difference, relative to the range of an expected array, or to an expected number or vector itself."""
    if found is None or expected is None:
        return None
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    scale = np.ptp(expected) if expected.ndim > 1 else np.abs(expected).max()
    return float(np.abs(found - expected).max() / scale)


def training(section: str, settings: Settings, count: int) -> list[Row]:
    """A pass over `count` images; this project's teacher features are cached already."""
    from benchmarks import implementations

    compared = {
        "plain": Implementation(partial(implementations.plain_training, settings, count), keeps_memory=False),
    }
    for name, (precision, changes) in configurations(settings).items():
        compared[name] = Implementation(partial(implementations.our_training, settings, changes, count), precision)
    return compare(section, compared, settings)


def step(settings: Settings) -> list[Row]:
    """One training step."""
    return training("step", settings, settings.batch_size)


def tricks(settings: Settings) -> list[Row]:
    """One training step in fp32 against the same without each of the tricks of --fast, and without all of them."""
    from benchmarks import implementations

    training_step = partial(implementations.our_training, settings, count=settings.batch_size)
    complete = Implementation(partial(training_step, {}))
    without = {
        "ours fp32, --fast 0": Implementation(partial(training_step, {"fast": False}), keeps_memory=False),
        "ours fp32, torch's weight gradients": Implementation(
            partial(training_step, {}, project=implementations.WithoutFastGradients)
        ),
        "ours fp32, not channels last": Implementation(
            partial(training_step, {}, project=implementations.WithoutChannelsLast)
        ),
    }
    if settings.subprocesses:
        without["ours fp32, default allocator"] = Implementation(partial(training_step, {}), keeps_memory=False)
    else:
        print("in one process everything keeps freed memory, so the row of the allocator is left out")
    rows = []
    for name, implementation in without.items():  # in pairs: five steps at once would need 20 GiB
        rows += compare("tricks", {name: implementation, "ours fp32": complete}, settings)
    return rows


def epoch(settings: Settings) -> list[Row]:
    """One pass over all training images, from the second epoch on; and filling the cache, which happens once."""
    from benchmarks import implementations

    rows = training("epoch", settings, settings.images)
    for name, (precision, changes) in configurations(settings).items():
        filling = Implementation(partial(implementations.our_cache_filling, settings, changes), precision)
        rows += compare("epoch", {f"{name}, filling its cache": filling}, settings, repeats=1)
    return rows


def evaluation(settings: Settings) -> list[Row]:
    """Scoring the test set, from files to metrics; then the same with network outputs computed beforehand."""
    from benchmarks import implementations

    compared = {"plain": Implementation(partial(implementations.plain_evaluation, settings), keeps_memory=False)}
    for name, (precision, changes) in configurations(settings).items():
        compared[name] = Implementation(partial(implementations.our_evaluation, settings, changes), precision)
    precomputed = {
        "plain, all but the network": Implementation(
            partial(implementations.plain_evaluation, settings, precomputed=True), counts_as="", keeps_memory=False
        ),
        "ours, all but the network": Implementation(
            partial(implementations.our_evaluation, settings, {}, precomputed=True), counts_as=""
        ),
    }
    return compare("evaluation", compared, settings) + compare("evaluation", precomputed, settings)


def metrics(settings: Settings) -> list[Row]:
    """Metrics of given anomaly maps: five per image of the settings, at twice the image size. Ours are all seven."""
    from benchmarks import implementations

    sizes = (5 * settings.images, 2 * settings.image_size)
    ours = Implementation(partial(implementations.our_metrics, *sizes), counts_as="")
    # the published function takes minutes
    published = Implementation(
        partial(implementations.plain_metrics, *sizes), counts_as="", keeps_memory=False, warm=False
    )
    rows = compare("metrics", {"published AUPRO": published, "ours": ours}, settings, (settings.repeats + 1) // 2)
    if find_spec("adeval") is None:
        print("adeval is not installed, so its row is left out: pip install adeval==1.1.0")
        return rows
    adeval = Implementation(partial(implementations.adeval_metrics, *sizes), counts_as="", keeps_memory=False)
    return rows + compare("metrics", {"adeval": adeval, "ours": ours}, settings)


def inference(settings: Settings) -> list[Row]:
    """Decoded images to their anomaly maps: one image, then a batch, which the published loop scores one by one."""
    from benchmarks import implementations

    rows: list[Row] = []
    for count in (1, settings.batch_size):
        suffix = f", {count} images" if count > 1 else ""
        published = Implementation(partial(implementations.plain_inference, settings, count), keeps_memory=False)
        compared = {f"plain{suffix}": published}
        for name, (precision, changes) in configurations(settings, compiled=True).items():
            eager = f"ours {precision}{suffix}"
            compared[name + suffix] = Implementation(
                partial(implementations.our_inference, settings, changes, count),
                precision,
                counts_as=None if name + suffix == eager else eager,
            )
        rows += compare("inference", compared, settings)
    return rows


def anomalib(settings: Settings) -> list[Row]:
    """anomalib's ReverseDistillation beside this project's rd4ad, the same network and loss, both in fp32.

    A training step on decoded images, with the teacher's features cached and without; then inference, for one image
    and for a batch. Random weights differ, so the results are not compared.
    """
    from benchmarks import implementations

    if find_spec("anomalib") is None:
        print("anomalib is not installed, so its section is left out: pip install 'anomalib==2.7.*'")
        return []
    count = settings.batch_size
    training = {
        "step, anomalib": Implementation(partial(implementations.anomalib_training, settings), keeps_memory=False)
    }
    for name, cache in (("features cached", "features"), ("no features cached", "images")):
        changes = {"variant": "rd4ad", "cache": cache}
        training[f"step, ours fp32, {name}"] = Implementation(
            partial(implementations.our_training, settings, changes, count)
        )
    rows = compare("anomalib", training, settings)
    for count in (1, settings.batch_size):
        suffix = f", {count} images" if count > 1 else ""
        theirs = Implementation(partial(implementations.anomalib_inference, settings, count), keeps_memory=False)
        ours = Implementation(partial(implementations.our_inference, settings, {"variant": "rd4ad"}, count))
        compared = {f"inference, anomalib{suffix}": theirs, f"inference, ours fp32{suffix}": ours}
        rows += compare("anomalib", compared, settings)
    return rows


def growth(settings: Settings) -> list[Row]:
    """This project's runs (caching, an epoch, scoring) with fewer and more images, larger ones, and more classes."""
    from benchmarks import implementations

    half, quarter = (replace(settings, images=settings.images // divisor) for divisor in (2, 4))
    larger = implementations.enlarged(quarter, 2)
    runs = {
        f"{settings.images} images": (settings, 1),
        f"{half.images} images": (half, 1),
        f"{quarter.images} images": (quarter, 1),
        f"{quarter.images} images of {larger.image_size} pixels": (larger, 1),
        f"{quarter.images} images, 2 classes": (quarter, 2),
    }
    rows = []
    for name, (changed, classes) in runs.items():  # one at a time, so that each has the machine's whole memory
        run = Implementation(partial(implementations.whole_run, changed, {}, classes), warm=False, counts_as="")
        rows += compare("growth", {name: run}, settings, repeats=1)
    return rows


def memory(settings: Settings) -> list[Row]:
    """Scoring the test images at their full size."""
    from benchmarks import implementations

    full = implementations.enlarged(settings, 4)
    scoring = Implementation(partial(implementations.our_evaluation, full, {}), warm=False, counts_as="")
    return compare("memory", {f"scoring {settings.images} images of {full.image_size} pixels": scoring}, full, 1)


SECTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    "step": step,
    "tricks": tricks,
    "epoch": epoch,
    "evaluation": evaluation,
    "metrics": metrics,
    "inference": inference,
    "anomalib": anomalib,
    "growth": growth,
    "memory": memory,
}
DEFAULT = ("step", "epoch", "evaluation", "metrics", "inference")  # those that compare with the published loop
