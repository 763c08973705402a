"""Paired tests: DeLong by its definition, others against scipy, scikit-posthocs and autorank; rates under the null."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from scoring import comparing
from scoring.comparing import (
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
from scoring.intervals import Bootstrap, Resampled, difference_statistic, metric_statistic, resample
from scoring.metrics import image_metrics
from scripts import null_rates

DIFFERENCES = np.array([0.4, -0.1, 0.25, 0.05, 0.3, 0.12, -0.02, 0.33])


def two_methods(seed: int = 0, normal: int = 23, anomalous: int = 31) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and scores of two seeds of each of two methods; with ties."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(normal + anomalous) >= normal)
    shared = draw.normal(size=len(labels)) + labels
    first, second = (np.round(2 * (shared * w + draw.normal(size=(2, len(labels)))), 0) for w in (1.0, 0.6))
    return labels, first, second


def delong_by_definition(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The difference and its error, by comparing every anomalous image with every normal one."""

    def heaviside(scores: np.ndarray) -> np.ndarray:
        steps = scores[labels][:, None] - scores[~labels]
        return np.where(steps > 0, 1.0, np.where(steps == 0, 0.5, 0.0))

    kernel = np.mean([heaviside(s) for s in first], axis=0) - np.mean([heaviside(s) for s in second], axis=0)
    m, n = kernel.shape
    difference = kernel.mean()
    s10 = ((kernel.mean(axis=1) - difference) ** 2).sum() / (m - 1)
    s01 = ((kernel.mean(axis=0) - difference) ** 2).sum() / (n - 1)
    return float(difference), float(np.sqrt(s10 / m + s01 / n))


@pytest.mark.parametrize("seed", range(4))
def test_delong_by_ranks_is_delong_by_definition(seed: int) -> None:
    labels, first, second = two_methods(seed)
    found = compare_aurocs(labels, first, second)
    assert found is not None
    assert (found.difference, found.error) == pytest.approx(delong_by_definition(labels, first, second), rel=1e-12)
    mean_auroc = [np.mean([image_metrics(labels, s).values["image_auroc"] for s in side]) for side in (first, second)]
    assert found.difference == pytest.approx(mean_auroc[0] - mean_auroc[1], abs=1e-12)


def test_delongs_error_is_that_of_a_jackknife_and_of_a_bootstrap() -> None:
    labels, first, second = two_methods(1, 80, 90)
    found = compare_aurocs(labels, first, second)
    assert found is not None
    variance = 0.0
    for kind in (False, True):
        places = np.flatnonzero(labels == kind)
        left = []
        for place in places:
            kept = np.arange(len(labels)) != place
            one = compare_aurocs(labels[kept], first[:, kept], second[:, kept])
            assert one is not None
            left.append(one.difference)
        variance += (len(places) - 1) / len(places) * float(((np.array(left) - np.mean(left)) ** 2).sum())
    assert found.error == pytest.approx(variance**0.5, rel=1e-9)
    statistic = difference_statistic(*([metric_statistic(labels, s) for s in side] for side in (first, second)))
    drawn = resample(labels, statistic, Bootstrap(replicates=4000))["image_auroc"]
    assert drawn.found == pytest.approx(found.difference, abs=1e-12)
    assert found.error == pytest.approx(drawn.drawn.std(), rel=0.05)
    assert found.interval(0.95) == pytest.approx(drawn.interval(0.95), abs=0.15 * found.error)
    assert found.p == pytest.approx(drawn.p, abs=0.02)


def test_delong_without_a_difference_or_without_images() -> None:
    labels, first, _ = two_methods()
    same = compare_aurocs(labels, first, first)
    assert same == AurocDifference(0.0, 0.0) and same.p == 1.0 and same.interval(0.95) == (0.0, 0.0)
    assert AurocDifference(0.1, 0.0).p == 0.0
    assert compare_aurocs([1, 0, 0], [1.0, 2, 3], [1.0, 2, 3]) is None
    swapped = compare_aurocs(labels, *two_methods()[1:]), compare_aurocs(labels, *two_methods()[:0:-1])
    assert swapped[0] is not None and swapped[1] is not None
    assert swapped[0].difference == -swapped[1].difference and swapped[0].p == pytest.approx(swapped[1].p)


def test_the_mean_over_classes_adds_the_variances() -> None:
    mean = AurocDifference.mean([AurocDifference(0.1, 0.03), AurocDifference(0.3, 0.04)])
    assert (mean.difference, mean.error) == pytest.approx((0.2, 0.025))
    labels, first, second = two_methods(3, 60, 60)
    statistic = difference_statistic([metric_statistic(labels, first[0])], [metric_statistic(labels, second[0])])
    parts = [resample(labels, statistic, Bootstrap(replicates=4000, seed=s))["image_auroc"] for s in (1, 2)]
    both = Resampled.mean(parts)
    assert both.drawn.std() == pytest.approx(parts[0].drawn.std() / 2**0.5, rel=0.06)
    low, high = both.interval(0.95)
    assert low < both.found < high and high - low == pytest.approx(2 * 1.96 * both.drawn.std(), rel=0.1)
    assert both.found == parts[0].found == parts[1].found


def test_pairing_cancels_what_makes_images_hard() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(100) >= 50
    shared = draw.normal(size=100) + labels
    first, second = (metric_statistic(labels, shared + 0.1 * draw.normal(size=100)) for _ in range(2))
    paired = resample(labels, difference_statistic([first], [second]), Bootstrap())
    alone = resample(labels, first, Bootstrap())
    for metric in ("image_auroc", "image_ap"):
        assert paired[metric].drawn.std() < 0.4 * alone[metric].drawn.std(), metric
    same = resample(labels, difference_statistic([first], [first]), Bootstrap())["image_ap"]
    assert same.interval(0.95) == (0, 0) and same.p == 1.0


def test_the_bootstraps_p_is_the_level_whose_interval_ends_at_0() -> None:
    labels, first, second = two_methods(2)
    statistic = difference_statistic([metric_statistic(labels, first[0])], [metric_statistic(labels, second[0])])
    for resampled in resample(labels, statistic, Bootstrap(replicates=4000)).values():
        low, high = resampled.interval(1 - resampled.p)
        assert min(abs(low), abs(high)) < 0.02 * np.ptp(resampled.drawn)


def test_sign_flip_is_the_enumeration_of_all_signs() -> None:
    sums = [abs(np.dot(signs, DIFFERENCES)) for signs in product((1, -1), repeat=len(DIFFERENCES))]
    assert sign_flip(DIFFERENCES) == np.mean(np.array(sums) >= abs(DIFFERENCES.sum()) - 1e-12)
    wanted = stats.permutation_test(
        (DIFFERENCES,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_flip(DIFFERENCES) == pytest.approx(wanted.pvalue, abs=1e-12)


def test_sign_flip_with_ties_zeros_and_many_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign_flip([0.1] * 5) == sign_flip([0.1] * 5 + [0.0] * 9 + [1e-15]) == least_p(5) == 0.0625
    assert sign_flip([]) == sign_flip([0, 0]) == least_p(0) == 1.0 == least_p(1)
    assert sign_flip([0.1 + 0.2, -0.3]) == 1.0, "rounding makes no difference"
    exact = sign_flip(DIFFERENCES)
    monkeypatch.setattr(comparing, "EXACT", 3)
    drawn = sign_flip(DIFFERENCES)
    assert drawn == sign_flip(DIFFERENCES) != sign_flip(DIFFERENCES, seed=1)
    assert drawn == pytest.approx(exact, abs=0.003)


def test_wilcoxon_is_scipys_exact_one() -> None:
    assert wilcoxon(DIFFERENCES) == pytest.approx(stats.wilcoxon(DIFFERENCES, method="exact").pvalue, abs=1e-12)
    tied = np.array([0.1, 0.1, -0.1, 0.2, 0.3, 0.3, 0.0])
    every = stats.wilcoxon(tied, method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
    assert wilcoxon(tied) == pytest.approx(every, abs=1e-12)


def test_holm_by_hand() -> None:
    # sorted: .01 x 4, .025 x 3, .03 x 2 (not less than the one before), .2
    assert holm([0.03, 0.01, 0.2, 0.025]) == pytest.approx([0.075, 0.04, 0.2, 0.075])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == [] and holm([0.04]) == [0.04]


def test_six_classes_are_the_fewest_with_an_interval() -> None:
    assert class_interval(DIFFERENCES[:5]) is None
    found = class_interval(DIFFERENCES[:6])
    assert found is not None and DIFFERENCES[:6].min() <= found[0] < DIFFERENCES[:6].mean() < found[1]
    assert class_interval(DIFFERENCES, 0.5) is not None and class_interval(DIFFERENCES) == class_interval(DIFFERENCES)
    draw = np.random.default_rng(0).normal(1, 2, 200)
    wanted = stats.t.interval(0.95, 199, draw.mean(), stats.sem(draw))
    assert class_interval(draw) == pytest.approx(wanted, abs=0.03)


def methods_on_classes(seed: int = 0, classes: int = 12, methods: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(classes, methods)) + 0.8 * np.arange(methods)


def test_ranks_by_hand() -> None:
    assert mean_ranks([[0.9, 0.8, 0.8], [0.5, 0.7, 0.6]]).tolist() == [2.0, 1.75, 2.25]
    assert friedman(np.ones((4, 3))) == 1.0
    assert critical_difference(5, 10) == pytest.approx(2.728 * (5 * 6 / 60) ** 0.5, abs=1e-3)  # Demsar's table 5
    assert rank_groups([1.0, 3.0, 2.0, 3.5], 1.0) == [[0, 2], [2, 1], [1, 3]]
    assert rank_groups([1.0, 3.0], 1.0) == [] and rank_groups([1.0, 1.2, 1.4], 1.0) == [[0, 1, 2]]


def test_friedman_and_nemenyi_are_those_of_scikit_posthocs() -> None:
    posthocs = pytest.importorskip(
        "scikit_posthocs", reason="scikit-posthocs is an oracle: pip install scikit-posthocs"
    )
    values = methods_on_classes()
    assert friedman(values) == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)
    assert nemenyi(values) == pytest.approx(np.asarray(posthocs.posthoc_nemenyi_friedman(values)), abs=1e-9)


def test_the_critical_difference_and_the_ranks_are_those_of_autorank() -> None:
    autorank = pytest.importorskip("autorank", reason="autorank is an oracle: pip install autorank")
    pandas = pytest.importorskip("pandas")
    values = methods_on_classes()
    found = autorank.autorank(pandas.DataFrame(values), force_mode="nonparametric")
    assert critical_difference(4, 12) == pytest.approx(found.cd, abs=2e-3)  # its table has three decimals
    assert mean_ranks(values) == pytest.approx(found.rankdf["meanrank"].sort_index().to_numpy(float))
    assert friedman(values) == pytest.approx(found.pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("case", null_rates.cases(), ids=lambda case: f"{case.tests[0]}, {case.setting}")
def test_no_test_is_wrong_much_more_often_than_it_says(case: null_rates.Case) -> None:
    """The stated 5 %, four standard errors of the simulation, and what docs/comparing.md says of intervals."""
    simulations = {"bootstrap, pixel AP": 8, "bootstrap, AP": 30}.get(case.tests[0], 150)  # they are slow
    known = 0.08 if "skewed" in case.setting else 0.02
    bound = 0.05 + known + 4 * (0.05 * 0.95 / simulations) ** 0.5
    for test, rate in zip(case.tests, null_rates.rates(case, simulations, seed=1), strict=True):
        assert rate <= bound, test
