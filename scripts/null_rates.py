"""How often each test of `scripts.compare` finds a difference where there is none, over simulated comparisons.

python -m scripts.null_rates --simulations 1000

Two methods of one true quality are scored on the same images, whose difficulty they share; classes, rivals and methods
likewise. A test at 5 % should be wrong in at most 5 % of the simulations; a 95 % interval should miss in 5 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from commandline import Parser, exit_code
from report.rendering import add_page_flags, check_page_flags, into_page
from scoring.comparing import (
    class_interval,
    compare_aurocs,
    critical_difference,
    friedman,
    holm,
    mean_ranks,
    sign_flip,
    wilcoxon,
)
from scoring.intervals import Bootstrap, Resampled, difference_statistic, metric_statistic, resample
from utils import format_table, write_atomically

ALPHA = 0.05
ORDER = ("DeLong", "bootstrap", "sign-flip", "Wilcoxon", "bootstrap over classes", "Holm", "Friedman", "Nemenyi")
SIDE = 24  # pixels of a simulated map
Draw = np.random.Generator
cached_critical = lru_cache(critical_difference)


def scored_images(draw: Draw, normal: int, anomalous: int, shift: float, methods: int = 2) -> tuple[np.ndarray, ...]:
    """Labels (n,) and scores (methods, n) of equally good methods, whose scores correlate by the images' difficulty."""
    labels = np.arange(normal + anomalous) >= normal
    return labels, draw.normal(size=len(labels)) + 0.6 * draw.normal(size=(methods, len(labels))) + shift * labels


def delong(draw: Draw, normal: int, anomalous: int, shift: float) -> list[bool]:
    labels, scores = scored_images(draw, normal, anomalous, shift)
    found = compare_aurocs(labels, scores[0], scores[1])
    return [found is not None and found.p <= ALPHA]


def bootstrap(draw: Draw, normal: int, anomalous: int, shift: float) -> list[bool]:
    """Whether the intervals of differences that are 0, in AP and F1-max, miss it."""
    labels, scores = scored_images(draw, normal, anomalous, shift)
    statistic = difference_statistic(*([metric_statistic(labels, one)] for one in scores))
    options = Bootstrap(replicates=1000, seed=int(draw.integers(2**31)))
    return _misses(resample(labels, statistic, options), "image_ap", "image_f1max")


def bootstrap_of_maps(draw: Draw, normal: int, anomalous: int) -> list[bool]:
    """The same in pixel AP and AUPRO, with a rectangular defect in each anomalous map."""
    labels = np.arange(normal + anomalous) >= normal
    masks = np.zeros((len(labels), SIDE, SIDE), bool)
    for number in np.flatnonzero(labels):
        (y, x), (height, width) = draw.integers(2, SIDE - 8, 2), draw.integers(2, 6, 2)
        masks[number, y : y + height, x : x + width] = True
    image = draw.normal(size=(len(labels), 1, 1))
    strength = draw.uniform(0, 3, (len(labels), 1, 1))
    sides = []
    for _ in range(2):
        own = strength + draw.normal(size=strength.shape) * 0.5
        maps = draw.normal(size=masks.shape) + 0.5 * image + masks * own
        sides.append([metric_statistic(labels, maps.max(axis=(1, 2)), maps.astype(np.float32), masks)])
    options = Bootstrap(replicates=400, seed=int(draw.integers(2**31)))
    return _misses(resample(labels, difference_statistic(*sides), options), "pixel_ap", "aupro")


def _misses(resampled: Mapping[str, Resampled], *metrics: str) -> list[bool]:
    ends = [resampled[metric].interval(1 - ALPHA) for metric in metrics]
    return [not low <= 0 <= high for low, high in ends]


def class_differences(draw: Draw, classes: int) -> np.ndarray:
    """(classes,): symmetric around 0, with heavy tails, some classes harder than others."""
    return draw.standard_t(4, classes) * draw.uniform(0.2, 2, classes)


def over_classes(draw: Draw, classes: int) -> list[bool]:
    differences = class_differences(draw, classes)
    return [test(differences) <= ALPHA for test in (sign_flip, wilcoxon)]


def interval_over_classes(draw: Draw, classes: int, skewed: bool) -> list[bool]:
    values = draw.exponential(size=classes) - 1 if skewed else class_differences(draw, classes)
    ends = class_interval(values, 1 - ALPHA, int(draw.integers(2**31)))
    return [ends is not None and not ends[0] <= 0 <= ends[1]]


def method_metrics(draw: Draw, classes: int, methods: int) -> np.ndarray:
    """(classes, methods): equally good methods on classes of their own difficulty."""
    return draw.normal(size=(classes, 1)) + draw.standard_t(4, (classes, methods)) * draw.uniform(0.2, 2, (classes, 1))


def any_rival(draw: Draw, classes: int, rivals: int) -> list[bool]:
    """Whether some rival differs from the first method by Holm."""
    values = method_metrics(draw, classes, rivals + 1)
    return [min(holm([sign_flip(values[:, 0] - values[:, i]) for i in range(1, rivals + 1)])) <= ALPHA]


def ranks_differ(draw: Draw, classes: int, methods: int) -> list[bool]:
    """Whether Friedman's test finds a difference, and whether Nemenyi's tells some two methods apart."""
    values = method_metrics(draw, classes, methods)
    farthest = float(np.ptp(mean_ranks(values)))
    return [friedman(values) <= ALPHA, farthest >= cached_critical(methods, classes, 1 - ALPHA)]


@dataclass(frozen=True)
class Case:
    """Tests, what they are tried on, and one simulation -> whether each was wrong."""

    tests: Sequence[str]
    setting: str
    wrong: Callable[[Draw], list[bool]]


def cases() -> list[Case]:
    """All that is tried."""
    found = []
    for normal, anomalous, shift, auroc in ((40, 60, 1.5, "0.90"), (20, 20, 1.0, "0.80"), (30, 60, 3.0, "0.995")):
        setting = f"{normal} + {anomalous} images, AUROC {auroc}"
        found.append(Case(["DeLong"], setting, partial(delong, normal=normal, anomalous=anomalous, shift=shift)))
        wrong = partial(bootstrap, normal=normal, anomalous=anomalous, shift=shift)
        found.append(Case(["bootstrap, AP", "bootstrap, F1-max"], setting, wrong))
    setting = f"10 + 20 images of {SIDE} pixels"
    wrong = partial(bootstrap_of_maps, normal=10, anomalous=20)
    found.append(Case(["bootstrap, pixel AP", "bootstrap, AUPRO"], setting, wrong))
    for classes in (6, 12, 15):
        setting = f"{classes} classes"
        found.append(Case(["sign-flip", "Wilcoxon"], setting, partial(over_classes, classes=classes)))
        for skewed in (False, True):
            wrong = partial(interval_over_classes, classes=classes, skewed=skewed)
            found.append(Case(["bootstrap over classes"], f"{setting}{', skewed' * skewed}", wrong))
    found.append(Case(["Holm, any of 3 rivals"], "15 classes", partial(any_rival, classes=15, rivals=3)))
    for classes, methods in ((6, 3), (15, 3), (15, 7)):
        wrong = partial(ranks_differ, classes=classes, methods=methods)
        found.append(Case(["Friedman", "Nemenyi, any pair"], f"{classes} classes, {methods} methods", wrong))
    return found


def rates(case: Case, simulations: int, seed: int = 0) -> list[float]:
    """The share of simulations in which each test was wrong."""
    draw = np.random.default_rng(seed)
    return np.mean([case.wrong(draw) for _ in range(simulations)], axis=0).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        prog="scripts.null_rates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000, metavar="N", help="of each test (1000)")
    add_page_flags(parser)
    given = parser.parse_args(argv)
    check_page_flags(parser, given)
    if given.simulations < 1:
        parser.error(f"--simulations {given.simulations}: must be at least 1")
    if given.into is not None:
        into_page(given.into, given.marker, "")  # the markers may be missing: better said now than after the work
    rows = []
    for case in cases():
        found = rates(case, given.simulations)
        rows += [
            [test, case.setting, str(given.simulations), f"{100 * rate:.1f}"]
            for test, rate in zip(case.tests, found, strict=True)
        ]
    rows.sort(key=lambda row: ORDER.index(row[0].partition(",")[0]))
    header = ["test at 5 %", "tried on", "simulations", "wrong, %"]
    if given.into is not None:
        write_atomically(given.into, into_page(given.into, given.marker, format_table(header, rows, markdown=True)))
    print(format_table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
