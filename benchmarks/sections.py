"""What is timed against what: each section is a function of the settings that returns its rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import metrics
from benchmarks import plain
from benchmarks.data import CLASS_NAME, scored_maps
from benchmarks.ours import InMemory, Ours, kinds
from benchmarks.timing import DTYPES, Call, Quartiles, alternate, gflop, seconds_of
from config import Config
from dataset import ImageSet
from model import Distiller


@dataclass(frozen=True)
class Settings:
    """What is timed on what; `root` holds the pictures and the teacher's file."""

    net: str
    image_size: int
    batch_size: int
    images: int
    repeats: int
    device: torch.device
    root: Path

    def config(self, **changes: Any) -> Config:
        """The Config of a run on these pictures with that teacher."""
        same = {"net": self.net, "image_size": self.image_size, "batch_size": self.batch_size}
        weights = str(self.root / "teacher.pth")
        return Config(classes=(CLASS_NAME,), data_path=self.root, weights=weights, **same, **changes)  # type: ignore[arg-type]

    def order(self, count: int) -> list[int]:
        """`count` of the training images, shuffled."""
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(0)).tolist()[:count]


@dataclass(frozen=True)
class Contestant:
    """A call to time. Its arithmetic is counted, or is that of the contestant `counts_as`, or is none ("")."""

    call: Call
    precision: str = "fp32"
    counts_as: str | None = None
    warm: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table: the times of a contestant, and how often they go into those that it is `against`."""

    section: str
    name: str
    precision: str
    seconds: Quartiles
    gflop: float | None = None
    against: str = ""
    ratio: Quartiles | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """By which it finds its floor."""
        return self.section, self.name, self.against

    def share_of(self, peak: Mapping[str, Mapping[str, float]]) -> float | None:
        """The fraction of the precision's measured peak, the larger of the two; None where nothing was counted."""
        if self.gflop is None:
            return None
        return self.gflop / self.seconds.median / max(peak[self.precision].values())


def compare(section: str, contestants: Mapping[str, Contestant], settings: Settings, repeats: int = 0) -> list[Row]:
    """Time the contestants in turn, after a round that counts or warms up; ratios are to the first one."""
    counted: dict[str, float | None] = {}
    for name, contestant in contestants.items():
        if contestant.counts_as is None:
            counted[name] = gflop(contestant.call)
            continue
        counted[name] = counted.get(contestant.counts_as)
        if contestant.warm:
            contestant.call()
    calls = {name: contestant.call for name, contestant in contestants.items()}
    seconds = alternate(calls, repeats or settings.repeats, settings.device)
    first = next(iter(contestants))
    rows = []
    for name, taken in seconds.items():
        row = Row(section, name, contestants[name].precision, Quartiles.of(taken), counted[name])
        if name != first:
            row = replace(row, against=first, ratio=Quartiles.of(seconds[first] / taken))
        rows.append(row)
    return rows


def both(settings: Settings, compiled: bool = False) -> tuple[plain.Plain, dict[str, Ours]]:
    """The two sides with equal weights, ours by the name of its row."""
    ours = {
        f"ours {name}": Ours(settings.config(**changes), settings.device) for name, changes in kinds(compiled).items()
    }
    teacher = plain.TEACHERS[settings.net](weights=None)
    teacher.load_state_dict(torch.load(settings.root / "teacher.pth", weights_only=True))
    published = plain.Plain(teacher, next(iter(ours.values())).distiller).to(settings.device)
    return published, ours


def precision_of(name: str) -> str:
    """The precision that a row's name holds."""
    return next(precision for precision in DTYPES if precision in name)


def training(section: str, settings: Settings, count: int) -> list[Row]:
    """A pass over `count` images, everything cached that ours caches; and how long filling that takes, once."""
    published, ours = both(settings)
    optimiser = plain.optimiser_of(published)
    samples, order = next(iter(ours.values())).train_images.samples, settings.order(count)
    filling = []
    for name, side in ours.items():
        seconds = seconds_of(lambda side=side: side.targets, settings.device)  # type: ignore[misc]
        filling.append(Row(section, f"{name}, filling its cache", precision_of(name), Quartiles.of([seconds])))
    contestants = {
        "plain": Contestant(
            lambda: plain.train(published, optimiser, samples, order, settings.image_size, settings.batch_size)
        )
    }
    for name, side in ours.items():
        contestants[name] = Contestant(lambda side=side: side.train(order), precision_of(name))  # type: ignore[misc]
    rows = compare(section, contestants, settings)
    return rows + filling if section == "epoch" else rows


def step(settings: Settings) -> list[Row]:
    """One training step."""
    return training("step", settings, settings.batch_size)


def epoch(settings: Settings) -> list[Row]:
    """One pass over all training images, from the second epoch on."""
    return training("epoch", settings, settings.images)


class Remembered(nn.Module):
    """A network that knows its answers to the test images, batch by batch, round and round."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__()
        self.answers, self.turn = answers, -1

    def forward(self, images: torch.Tensor) -> Any:
        self.turn += 1
        return self.answers[self.turn % len(self.answers)]


@torch.no_grad()
def evaluation(settings: Settings) -> list[Row]:
    """Scoring the test set, from files to figures; then the same with the networks' answers known beforehand."""
    published, ours = both(settings)
    first = next(iter(ours.values()))
    samples, size, device = first.test_images.samples, settings.image_size, settings.device

    contestants = {"plain": Contestant(lambda: plain.evaluate(published, samples, size, device))}
    for name, side in ours.items():
        contestants[name] = Contestant(side.evaluate, precision_of(name))
    rows = compare("evaluation", contestants, settings)

    published.eval()
    images = plain.picture_batches(samples, range(len(samples)), size, 1)
    plain_known = Remembered([published(image.to(device)) for image in images])
    pixels = torch.from_numpy(np.stack([first.test_images.image(index) for index in range(len(samples))]))
    batches = pixels.split(first.scoring.batch_size)
    known = cast(Distiller, Remembered([first.scorer(batch.to(device)) for batch in batches]))
    contestants = {
        "plain, all but the network": Contestant(
            lambda: plain.evaluate(plain_known, samples, size, device), counts_as=""
        ),
        "ours, all but the network": Contestant(lambda: first.evaluate(known), counts_as=""),
    }
    return rows + compare("evaluation", contestants, settings)


def figures(settings: Settings) -> list[Row]:
    """Figures of given maps, five times as many as there are images and twice as wide; ours makes all of them."""
    maps, masks = scored_maps(5 * settings.images, 2 * settings.image_size)
    ours = Contestant(lambda: metrics.pixel_figures(maps, masks), counts_as="")
    published = Contestant(lambda: plain.aupro(masks, maps), counts_as="", warm=False)
    repeats = (settings.repeats + 1) // 2  # the published function takes minutes
    rows = compare("metrics", {"published AUPRO": published, "ours": ours}, settings, repeats)
    if find_spec("adeval") is None:
        return rows
    by_adeval = adeval_figures(maps, masks)
    try:
        adeval_figures(maps[:2], masks[:2])()
    except Exception as problem:
        print(f"adeval {metadata.version('adeval')} does not run here and is left out: {problem}")
        return rows
    return rows + compare("metrics", {"adeval": Contestant(by_adeval, counts_as=""), "ours": ours}, settings)


def adeval_figures(maps: np.ndarray, masks: np.ndarray) -> Call:
    """The package's approximate AUROC, AP and AUPRO of maps (n, H, W), bounds known to it."""
    low, high = float(maps.min()), float(maps.max())
    images, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    marked = masks.astype(np.uint8)

    def call() -> object:
        accumulator = import_module("adeval").EvalAccumulator(low, high, low, high)
        accumulator.add_anomap_batch(maps, marked)
        accumulator.add_image(images, labels)
        return accumulator.summary()

    return call


def inference(settings: Settings) -> list[Row]:
    """One decoded image to its map, everything loaded."""
    published, ours = both(settings, compiled=True)
    published.eval()
    images = next(iter(ours.values())).test_images
    one = InMemory(ImageSet(images.samples[:1], images.size))
    (image,) = (x.to(settings.device) for x in plain.picture_batches(one.samples, [0], one.size, 1))
    contestants = {"plain": Contestant(lambda: plain.predict(published, image))}
    for name, side in ours.items():
        eager = f"ours {precision_of(name)}"
        contestants[name] = Contestant(
            lambda side=side: side.predict(one),  # type: ignore[misc]
            precision_of(name),
            counts_as=None if name == eager else eager,
        )
    return compare("inference", contestants, settings)


SECTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    "step": step,
    "epoch": epoch,
    "evaluation": evaluation,
    "metrics": figures,
    "inference": inference,
}
