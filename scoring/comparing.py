"""Is one method better than another? Tests and intervals for paired results, from images up to classes and methods.

Within a class the images are the sample: `compare_aurocs` (DeLong); other metrics are resampled, see
`scoring.intervals.difference_statistic`. Over classes the classes are: `sign_flip`, `wilcoxon`, `class_interval`. Over
three and more methods: `friedman`, `nemenyi`. Differences are first minus second; p-values are two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

EXACT = 20  # differences, at most, whose 2^n signs are all enumerated
DRAWS = 100_000  # of signs, where there are more differences
CLASS_DRAWS = 10_000  # of the bootstrap over classes
DIGITS = 12  # metrics that agree to so many decimals are equal: rounding makes no difference of theirs


def _stats() -> Any:
    """scipy.stats, which takes half a second to import: --help needs none of it."""
    from scipy import stats

    return stats


@dataclass(frozen=True)
class AurocDifference:
    """A difference of AUROCs in [-1, 1], and its standard error over test images; 0 where no image tells them apart."""

    difference: float
    error: float

    @classmethod
    def mean(cls, parts: Sequence[AurocDifference]) -> AurocDifference:
        """The mean over classes, whose images are independent of each other."""
        error = math.sqrt(sum(part.error**2 for part in parts)) / len(parts)
        return cls(float(np.mean([part.difference for part in parts])), error)

    def interval(self, level: float) -> tuple[float, float]:
        """(low, high) at the level, by the normal distribution."""
        half = float(_stats().norm.ppf((1 + level) / 2)) * self.error
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Of the hypothesis that the AUROCs are equal. 1 for equal AUROCs without an error, 0 for unequal ones."""
        if self.error < 10**-DIGITS:
            return float(abs(self.difference) < 10**-DIGITS)
        return float(2 * _stats().norm.sf(abs(self.difference) / self.error))


def compare_aurocs(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> AurocDifference | None:
    """Labels (n,), scores (s, n) and (t, n) of the runs of two methods on the same images -> their mean AUROCs'
    difference; None with fewer than two images of a kind.

    The seeds of a method are averaged image by image, so its error is over images and not over seeds.
    Source: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated ROC curves (Biometrics
    1988); by ranks as in Sun and Xu, Fast implementation of DeLong's algorithm (IEEE Signal Processing Letters 2014).
    """
    anomalous = np.asarray(labels) == 1
    if min(anomalous.sum(), (~anomalous).sum()) < 2:
        return None
    sides = [[part.mean(axis=0) for part in _placements(anomalous, np.atleast_2d(side))] for side in (first, second)]
    parts = [a - b for a, b in zip(*sides, strict=True)]
    variance = sum(part.var(ddof=1) / part.size for part in parts)
    return AurocDifference(float(parts[0].mean()), math.sqrt(variance))


def _placements(anomalous: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) bool, scores (k, n) -> (k, m) and (k, n - m): of each anomalous image the share of normal ones below
    it, of each normal image the share of anomalous ones above it; ties count half.
    """
    ranks = _stats().rankdata(scores, axis=1)
    own = [ranks[:, kind] - _stats().rankdata(scores[:, kind], axis=1) for kind in (anomalous, ~anomalous)]
    return own[0] / (~anomalous).sum(), 1 - own[1] / anomalous.sum()


def least_p(n: int) -> float:
    """The smallest p that `n` differences can give when only their signs are exchanged: all of one sign; 1 for none."""
    return min(1.0, 2.0 ** (1 - n))


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Differences (n,) -> p of the hypothesis that each is as likely positive as negative, of the same size.

    The share of the 2^n sign patterns whose sum is at least as far from 0: exact up to `EXACT` differences that are not
    0, then of `DRAWS` drawn patterns and the one that was found. Source: Fisher, The Design of Experiments (1935), 21.
    """
    sizes = np.round(np.asarray(differences, float), DIGITS)
    sizes = sizes[sizes != 0]
    if not sizes.size:
        return 1.0
    least = abs(sizes.sum()) * (1 - 1e-9) - 10**-DIGITS
    if sizes.size <= EXACT:
        sums = np.array([sizes[0]])  # with the first sign fixed: the others mirror these
        for size in sizes[1:]:
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= least).mean())
    draw, found = np.random.default_rng(seed), 1
    for _ in range(10):
        signs = draw.integers(0, 2, (DRAWS // 10, sizes.size)) * 2 - 1
        found += int((np.abs(signs @ sizes) >= least).sum())
    return found / (DRAWS + 1)


def wilcoxon(differences: ArrayLike, seed: int = 0) -> float:
    """Differences (n,) -> p of Wilcoxon's signed-rank test: `sign_flip` of the ranks, so exact with ties too.

    Differences of 0 are left out, as Wilcoxon did. Source: Wilcoxon, Individual comparisons by ranking methods (1945).
    """
    rounded = np.round(np.asarray(differences, float), DIGITS)
    rounded = rounded[rounded != 0]
    return sign_flip(np.sign(rounded) * _stats().rankdata(np.abs(rounded)), seed)


def class_interval(differences: ArrayLike, level: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """Differences (n,) of n classes -> (low, high) of their mean by a bootstrap over classes; None for too few.

    The mean of a resample lies between the smallest and the largest difference, and all n lie on one side of the truth
    in one of 2^(n-1) cases: so n classes give no interval of a level above 1 - 2^(1-n), which is six at 95 %.
    Percentiles of few classes are too narrow by the factor by which a t interval is wider than a normal one, and are
    moved outward by it. Source: Hesterberg, What teachers should know about the bootstrap (American Statistician 2015).
    """
    differences = np.asarray(differences, float)
    n = len(differences)
    if least_p(n) > 1 - level:
        return None
    wider = float(_stats().t.ppf((1 + level) / 2, n - 1)) * math.sqrt(n / (n - 1))
    share = float(_stats().norm.sf(wider))
    picked = np.random.default_rng(seed).integers(n, size=(CLASS_DRAWS, n))
    low, high = np.quantile(differences[picked].mean(axis=1), [share, 1 - share])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values -> adjusted ones, in the same order: the chance of any false one stays below the level.

    Source: Holm, A simple sequentially rejective multiple test procedure (Scandinavian Journal of Statistics 1979).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def mean_ranks(values: ArrayLike) -> np.ndarray:
    """Metrics (n, k) of n classes and k methods -> (k,), 1 for a method that is the best in every class; ties share."""
    return _stats().rankdata(-np.round(np.asarray(values, float), DIGITS), axis=1).mean(axis=0)


def friedman(values: ArrayLike) -> float:
    """Metrics (n, k), k at least 3 -> p of the hypothesis that all k methods rank alike, by the chi-squared limit.

    Source: Friedman, The use of ranks to avoid the assumption of normality (JASA 1937).
    """
    rounded = np.round(np.asarray(values, float), DIGITS)
    if (rounded == rounded[:, :1]).all():
        return 1.0
    return float(_stats().friedmanchisquare(*rounded.T).pvalue)


def critical_difference(methods: int, classes: int, level: float = 0.95) -> float:
    """How far two mean ranks must lie apart to be told apart among so many methods.

    Source: Nemenyi (1963), as in Demsar, Statistical comparisons of classifiers over multiple data sets (JMLR 2006).
    """
    return float(_stats().studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2) * _rank_error(methods, classes)


def nemenyi(values: ArrayLike) -> np.ndarray:
    """Metrics (n, k) -> p (k, k) of the hypothesis that two methods rank alike, adjusted for all pairs."""
    values = np.asarray(values, float)
    ranks, error = mean_ranks(values), _rank_error(values.shape[1], len(values))
    distances = np.abs(ranks[:, None] - ranks) / error * math.sqrt(2)
    return np.asarray(_stats().studentized_range.sf(distances, values.shape[1], np.inf))


def _rank_error(methods: int, classes: int) -> float:
    return math.sqrt(methods * (methods + 1) / (6 * classes))


def rank_groups(ranks: Sequence[float], critical: float) -> list[list[int]]:
    """Mean ranks -> the largest groups of methods, by their numbers from the best on, that are not told apart.

    Groups of one method are left out.
    """
    order = np.argsort(ranks, kind="stable").tolist()
    groups: list[list[int]] = []
    for start, best in enumerate(order):
        group = [method for method in order[start:] if ranks[method] - ranks[best] <= critical]
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return groups
