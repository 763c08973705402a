"""Differences of two methods, class by class and over classes, and the ranks of several methods.

All metrics and differences are fractions. A method's metric on a class is the mean over the seeds that both methods
have: seeds show how far training moves it, they are no samples of anything that a test needs.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np

from report.pairing import FinishedRun, Pairing, Side, in_order, pair
from report.predictions import predictions_of, read_maps
from report.rendering import count
from report.results import Result
from run_files import PREDICTIONS
from scoring.comparing import (
    EXACT,
    AurocDifference,
    class_interval,
    compare_aurocs,
    critical_difference,
    friedman,
    holm,
    least_p,
    mean_ranks,
    nemenyi,
    rank_groups,
    sign_flip,
    wilcoxon,
)
from scoring.intervals import (
    Bootstrap,
    Resampled,
    Statistic,
    difference_statistic,
    joint_statistic,
    mean_statistic,
    metric_statistic,
    resample,
)
from scoring.metrics import AUPIMO, IMAGE_METRICS
from scoring.modes import RESIZED
from utils import printable

Source = AurocDifference | Resampled  # gives an interval and a p
UNSAMPLED = "aupro_per_image"  # the metric that is not resampled: it has no interval over images
MASK_SETTINGS = {"image_size": None, "tiles": None, "map_size": RESIZED}  # decide the size of masks; their defaults
DIGITS = 12  # decimals: what is left of a difference after them is rounding


@dataclass(frozen=True)
class Tested:
    """An interval, and p of no difference; `adjusted` by Holm over the comparisons that are made at once."""

    low: float
    high: float
    p: float
    adjusted: float | None = None

    @classmethod
    def of(cls, source: Source, level: float) -> Tested:
        return cls(*source.interval(level), source.p)


@dataclass(frozen=True)
class ClassDifference:
    """One class: the mean metrics over the shared seeds, their difference, that of each seed, and its test over images.

    `images` is None where the predictions or the maps that it needs are missing.
    """

    class_name: str
    first: float
    second: float
    difference: float
    seeds: Mapping[int, float]
    normal: int
    anomalous: int
    images: Tested | None


@dataclass(frozen=True)
class OverClasses:
    """Tests with classes as the sample. `low` and `high` are None where so few classes give no interval.

    differing  classes whose difference is not 0
    least_p    the smallest p that so many can give
    exact      whether all sign patterns were enumerated
    """

    classes: int
    differing: int
    p: float
    wilcoxon: float
    least_p: float
    exact: bool
    low: float | None
    high: float | None
    adjusted: float | None = None


@dataclass(frozen=True)
class Difference:
    """Two methods in one metric: first minus second.

    seeds         {seed: mean over classes}, of the seeds that all these classes have
    over_images   the mean over these very classes, with their test images as the sample
    over_classes  None for a single class
    rivals        how many comparisons the adjusted p-values are for
    """

    benchmark: str
    metric: str
    first: str
    second: str
    classes: Sequence[ClassDifference]
    mean_first: float
    mean_second: float
    difference: float
    seeds: Mapping[int, float]
    over_images: Tested | None
    over_classes: OverClasses | None
    rivals: int = 1


@dataclass(frozen=True)
class Ranking:
    """Three or more methods in one metric, with classes as the sample. Rank 1 is the best.

    `groups` are labels of methods that Nemenyi's test does not tell apart; `pairs` {(first, second): its p}.
    """

    benchmark: str
    metric: str
    labels: Sequence[str]
    classes: int
    ranks: Sequence[float]
    friedman: float
    critical: float
    groups: Sequence[Sequence[str]]
    pairs: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Comparison:
    """All differences on one benchmark, by metric and then by pair, the rankings, and notes on what is left out."""

    benchmark: str
    labels: Sequence[str]
    level: float
    replicates: int
    differences: Sequence[Difference]
    rankings: Sequence[Ranking]
    notes: Sequence[str]


def compare_sides(
    sides: Sequence[Side],
    metrics: Sequence[str],
    bootstrap: Bootstrap,
    all_pairs: bool = False,
) -> Comparison:
    """Compare every other side with the first, or all pairs, in some of METRIC_TITLES.

    Raises ValueError where nothing can be paired, or test images differ; OSError, ValueError for damaged runs.
    """
    couples = combinations(sides, 2) if all_pairs else ((sides[0], other) for other in sides[1:])
    pairings = [pair(first, second) for first, second in couples]
    notes = [note for pairing in pairings for note in pairing.notes]
    usable = [_usable(pairing, metrics, notes) for pairing in pairings]
    found: dict[tuple[int, str], list[tuple[ClassDifference, Source | None]]] = {}
    reader = _Reader(any(name not in (*IMAGE_METRICS, AUPIMO, UNSAMPLED) for name in metrics))
    for class_name in in_order(sides[0].benchmark, {name: None for pairing in pairings for name in pairing.seeds}):
        reader.forget()
        for number, pairing in enumerate(pairings):
            if class_name in pairing.seeds:
                for metric, one in _on_class(pairing, class_name, usable[number], bootstrap, reader).items():
                    found.setdefault((number, metric), []).append(one)
    differences: list[Difference] = []
    for metric in metrics:
        own = [
            _difference(pairing, metric, found[number, metric], bootstrap)
            for number, pairing in enumerate(pairings)
            if (number, metric) in found
        ]
        differences += _adjusted(own)
    if reader.without_maps:
        folder, why = next(iter(reader.without_maps.items()))
        runs = count(len(reader.without_maps), "run")
        notes.append(f"no intervals of pixel metrics over images, since {runs} lack usable maps, e.g. {folder}: {why}")
    shared = [metric for metric in metrics if all(metric in own for own in usable)]
    rankings = [made for metric in shared if (made := _ranking(sides, metric, bootstrap.level)) is not None]
    notes += reader.notes
    labels = [side.label for side in sides]
    benchmark = sides[0].benchmark
    return Comparison(
        benchmark, labels, bootstrap.level, bootstrap.replicates, differences, rankings, list(dict.fromkeys(notes))
    )


def _usable(pairing: Pairing, metrics: Sequence[str], notes: list[str]) -> list[str]:
    """The metrics that mean the same on both sides; a note for the others."""
    pixel = [metric for metric in metrics if metric not in IMAGE_METRICS]
    every = [result for name in pairing.seeds for runs in pairing.runs(name) for _, result in runs]
    for setting, usual in MASK_SETTINGS.items():
        sizes = {result.get(setting, usual) for result in every}
        if len(sizes) < 2 or not pixel:
            continue
        listed = ", ".join(map(str, sorted(sizes, key=str)))
        notes.append(
            f"{pairing.first.label} and {pairing.second.label}: pixel metrics are not compared, since masks are scored "
            f"at --{setting}, which differs: {listed}"
        )
        return [metric for metric in metrics if metric in IMAGE_METRICS]
    return list(metrics)


@dataclass(frozen=True)
class _ScoredRun:
    """Labels (n,) and scores (n,) of a run's test images, its metrics as a statistic, a hash of its masks if any."""

    labels: np.ndarray
    scores: np.ndarray
    statistic: Statistic
    masks: str | None


class _Reader:
    """Reads what runs say of their test images, each once until it is told to forget; `with_maps`: maps as well.

    `without_maps` holds the runs whose maps are missing, and why; `notes` what else was found.
    """

    def __init__(self, with_maps: bool) -> None:
        self.with_maps = with_maps
        self.without_maps: dict[Path, str] = {}
        self.notes: list[str] = []
        self._runs: dict[tuple[Path, str], _ScoredRun] = {}

    def forget(self) -> None:
        self._runs.clear()

    def read(self, run: FinishedRun) -> _ScoredRun:
        """Raises ValueError for a file that is missing, damaged, or not the one that was scored."""
        folder, result = run
        key = (folder, result["class_name"])
        if key not in self._runs:
            self._runs[key] = self._read(folder, result)
        return self._runs[key]

    def _read(self, folder: Path, result: Result) -> _ScoredRun:
        predictions, problems = predictions_of(folder, result)
        if problems or not predictions:
            why = problems[0] if problems else f"{PREDICTIONS} is missing"
            raise ValueError(f"{printable(folder)}: {why}; python test.py RUN writes it anew")
        labels = np.array([prediction.anomalous for prediction in predictions], bool)
        scores = np.array([prediction.score for prediction in predictions], np.float32)
        maps = masks = digest = None
        if self.with_maps and result["metrics"].get("pixel_auroc") is not None:
            saved, why_not = read_maps(folder, result)
            if saved is None:
                self.without_maps[folder] = why_not or ""
            elif saved.masks is not None:
                maps, masks = saved.maps, saved.masks
                digest = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in masks)).hexdigest()
        statistic = metric_statistic(labels, scores, maps, masks)
        each = np.array([math.nan if prediction.aupimo is None else prediction.aupimo for prediction in predictions])
        if not np.isnan(each).all():  # earlier versions recorded none
            statistic = joint_statistic([statistic, mean_statistic(AUPIMO, each)])
        return _ScoredRun(labels, scores, statistic, digest)


def _on_class(
    pairing: Pairing, class_name: str, metrics: Sequence[str], bootstrap: Bootstrap, reader: _Reader
) -> dict[str, tuple[ClassDifference, Source | None]]:
    """{metric: the difference on a class, and what its interval comes from} of those that all its runs have."""
    sides, seeds = pairing.runs(class_name), pairing.seeds[class_name]
    read = [[reader.read(run) for run in runs] for runs in sides]
    labels = read[0][0].labels
    everyone = [run for side in read for run in side]
    if any(not np.array_equal(run.labels, labels) for run in everyone):
        folders = " and ".join(printable(runs[0][0]) for runs in sides)
        raise ValueError(f"{folders}: their {PREDICTIONS} label the test images differently")
    if len({run.masks for run in everyone if run.masks}) > 1:
        reader.notes.append(f"{class_name}: pixel metrics are not compared, since the runs have other masks")
        metrics = [metric for metric in metrics if metric in IMAGE_METRICS]
    sources: dict[str, Source | None] = {"image_auroc": compare_aurocs(labels, *([r.scores for r in s] for s in read))}
    if any(metric not in (*sources, UNSAMPLED) for metric in metrics):
        key = zlib.crc32(f"{bootstrap.seed} {class_name}".encode(errors="surrogateescape"))
        statistic = difference_statistic(*([run.statistic for run in side] for side in read))
        sources = {**resample(labels, statistic, replace(bootstrap, seed=key)), **sources}
    found = {}
    for metric in metrics:
        values = [[result["metrics"].get(metric) for _, result in runs] for runs in sides]
        if any(value is None for side in values for value in side):
            continue
        first, second = map(fmean, values)
        by_seed = {seed: a - b for seed, a, b in zip(seeds, *values, strict=True)}
        source = sources.get(metric)
        tested = None if source is None else Tested.of(source, bootstrap.level)
        counts = int((~labels).sum()), int(labels.sum())
        difference = ClassDifference(class_name, first, second, first - second, by_seed, *counts, tested)
        found[metric] = (difference, source)
    return found


def _difference(
    pairing: Pairing, metric: str, parts: Sequence[tuple[ClassDifference, Source | None]], bootstrap: Bootstrap
) -> Difference:
    """The difference over all classes of a pair."""
    classes, sources = [one for one, _ in parts], [source for _, source in parts]
    shared = set.intersection(*(set(one.seeds) for one in classes))
    differences = [one.difference for one in classes]
    over_classes = None
    if len(classes) > 1:
        differing = sum(abs(value) > 10**-DIGITS for value in differences)
        low, high = class_interval(differences, bootstrap.level, bootstrap.seed) or (None, None)
        p_values = sign_flip(differences, bootstrap.seed), wilcoxon(differences, bootstrap.seed)
        least = least_p(differing)
        over_classes = OverClasses(len(classes), differing, *p_values, least, differing <= EXACT, low, high)
    return Difference(
        pairing.first.benchmark,
        metric,
        pairing.first.label,
        pairing.second.label,
        classes,
        fmean(one.first for one in classes),
        fmean(one.second for one in classes),
        fmean(differences),
        {seed: fmean(one.seeds[seed] for one in classes) for seed in sorted(shared)},
        _over_images(sources, bootstrap.level),
        over_classes,
    )


def _over_images(sources: Sequence[Source | None], level: float) -> Tested | None:
    """The test of the mean over classes; None where a class has none."""
    for kind in (AurocDifference, Resampled):
        own = [source for source in sources if isinstance(source, kind)]
        if len(own) == len(sources):
            return Tested.of(kind.mean(own), level)  # type: ignore[arg-type]
    return None


def _adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The differences of one metric, with p-values adjusted by Holm over all of them."""
    images = _holm([None if d.over_images is None else d.over_images.p for d in differences])
    classes = _holm([None if d.over_classes is None else d.over_classes.p for d in differences])
    return [
        replace(
            d,
            over_images=d.over_images and replace(d.over_images, adjusted=image),
            over_classes=d.over_classes and replace(d.over_classes, adjusted=over),
            rivals=len(differences),
        )
        for d, image, over in zip(differences, images, classes, strict=True)
    ]


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """`holm` of those that are there."""
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def _ranking(sides: Sequence[Side], metric: str, level: float) -> Ranking | None:
    """The ranks of three or more sides on two or more classes that all have, over the seeds that all have."""
    places = set.intersection(*(set(side.runs) for side in sides))
    have = {place for place in places if all(side.runs[place][1]["metrics"].get(metric) is not None for side in sides)}
    classes = in_order(sides[0].benchmark, {name: None for name, _ in have})
    if len(sides) < 3 or len(classes) < 2:
        return None
    values = np.array(
        [
            [fmean(side.runs[place][1]["metrics"][metric] for place in have if place[0] == name) for side in sides]
            for name in classes
        ]
    )
    labels, ranks = [side.label for side in sides], mean_ranks(values).tolist()
    critical, p_values = critical_difference(len(sides), len(classes), level), nemenyi(values)
    return Ranking(
        sides[0].benchmark,
        metric,
        labels,
        len(classes),
        ranks,
        friedman(values),
        critical,
        [[labels[i] for i in group] for group in rank_groups(ranks, critical)],
        {(labels[i], labels[j]): float(p_values[i, j]) for i, j in combinations(range(len(sides)), 2)},
    )
