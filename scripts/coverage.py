"""Whether thresholds keep their promise: calibration sets drawn anew and anew from the scores of real normal images.

python -m scripts.coverage RUN... --count 60 --false_alarm 0.05

For each run, `--count` of its normal test images give a threshold and the others are the new images; so again,
`--draws` times. Beside the mean rate of false alarms and its spread stand those that the rank rule promises:
k / (n + 1), and for a finite number of new images the beta-binomial distribution. Exit code 1 where a mean rate is
beyond what was promised by more than four standard errors.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commandline import Parser, exit_code
from run_files import PREDICTIONS
from run_files.csv_files import read_csv
from scoring.thresholds import choose_k
from utils import format_table


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="scripts.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with normal test images")
    parser.add_argument("--count", type=int, default=60, metavar="N", help="calibration images (60)")
    parser.add_argument("--false_alarm", type=float, metavar="X", help="rate asked for (default: k = 1)")
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="how often to draw (200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    given = parser.parse_args(argv)
    k = choose_k(given.count, given.false_alarm)
    rows, broken = [], 0
    for run in given.runs:
        scores = normal_scores(run, given.count)
        rates = false_alarm_rates(scores, given.count, k, given.draws, given.seed)
        promised, spread = k / (given.count + 1), expected_spread(given.count, k, len(scores) - given.count)
        broken += bool(rates.mean() > promised + 4 * spread / math.sqrt(given.draws))
        numbers = (rates.mean(), promised, rates.std(ddof=1), spread)
        rows.append([str(run), str(len(scores)), *(f"{100 * number:.2f}" for number in numbers)])
    print(format_table(["run", "normal", "mean rate, %", "promised", "spread", "expected"], rows))
    print(f"n {given.count}, k {k}, {given.draws} draws from the normal test images of each run")
    return 1 if broken else 0


def normal_scores(run: Path, count: int) -> np.ndarray:
    """The scores of a run's normal test images. Raises FileNotFoundError, ValueError where they are too few."""
    path = run / PREDICTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; want the folder of a finished run, .../<class>/seed<k>")
    scores = np.array([float(row["score"]) for row in read_csv(path) if row["anomalous"] == "0"])
    if len(scores) < 2 * count:
        raise ValueError(f"{run}: has {len(scores)} normal test images, too few to draw --count {count} of them")
    return scores


def false_alarm_rates(scores: np.ndarray, count: int, k: int, draws: int, seed: int) -> np.ndarray:
    """(draws,): the share of the other scores above the k-th largest of `count` drawn ones."""
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(draws):
        order = rng.permutation(scores)
        rates.append((order[count:] > np.sort(order[:count])[-k]).mean())
    return np.array(rates)


def expected_spread(count: int, k: int, new: int) -> float:
    """The standard deviation of the rate over `new` images: that of a beta-binomial share."""
    from scipy.stats import betabinom

    return float(betabinom.std(new, k, count - k + 1)) / new


if __name__ == "__main__":
    sys.exit(exit_code(main))
