"""The answer in sentences: what may be said of a difference or of a ranking, and what may not."""

from __future__ import annotations

from report.differences import Comparison, Difference, OverClasses, Ranking, Tested
from report.rendering import count
from report.results import METRIC_TITLES
from utils import printable

FEW = 10  # images of a kind, or classes, below which the limit behind a test or an interval is rough
LABEL = 24  # characters of a label in a plot, at most
SEEDS = "Seeds show how far training moves a metric; they are spread, not samples, and no interval includes them."


def points(fraction: float) -> str:
    """A difference in percentage points: +0.42."""
    text = f"{100 * fraction:+.2f}"
    return text.replace("-", "+") if float(text) == 0 else text


def short_label(label: str) -> str:
    """A label as one line of at most LABEL characters."""
    text = printable(label)
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"


def p_text(p: float | None) -> str:
    """0.031; <0.0001 for less, n/a for None."""
    return "n/a" if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}"


def verdict(difference: Difference, level: float) -> list[str]:
    """The sentences that answer whether one method is better than the other in a metric."""
    over, images = difference.over_classes, difference.over_images
    lines = [] if over is None else [_on_classes(difference, over, level)]
    if images is not None:
        lines.append(_on_images(difference, images, level))
    if over is None:
        lines.append("One class cannot say what holds on others: there is no test over classes.")
    return lines


def _on_classes(difference: Difference, over: OverClasses, level: float) -> str:
    """The sentence with classes as the sample."""
    title, classes = METRIC_TITLES[difference.metric], count(over.classes, "class")
    both = f"{difference.first} and {difference.second}"
    adjusted = over.p if over.adjusted is None else over.adjusted
    p = f"p {p_text(adjusted)} over {classes}{_holm(difference)}"
    if adjusted <= 1 - level:
        return f"{_better(difference)} ({_range(over.low, over.high, difference, level)}{p})."
    if over.least_p > 1 - level:
        differ = "" if over.differing == over.classes else f", of which {over.differing or 'none'} differ,"
        least = f"cannot give a p below {p_text(over.least_p)}"
        return f"No test over classes can tell {both} apart in {title}: {classes}{differ} {least}."
    interval = "" if over.low is None or over.high is None else _allows(over.low, over.high)
    return f"No difference of {both} in {title} is shown ({p}){interval}."


def _on_images(difference: Difference, tested: Tested, level: float) -> str:
    """The sentence with these very classes, and their test images as the sample."""
    names = [one.class_name for one in difference.classes]
    where = f"On {names[0]}" if len(names) == 1 else f"On these {len(names)} classes"
    title, both = METRIC_TITLES[difference.metric], f"{difference.first} and {difference.second}"
    adjusted = tested.p if tested.adjusted is None else tested.adjusted
    p = f"p {p_text(adjusted)}{_holm(difference)}"
    if adjusted <= 1 - level:
        interval = _range(tested.low, tested.high, difference, level)
        return f"{where}, for images like those tested, {_better(difference)} ({interval}{p})."
    if tested.low == tested.high:
        return f"{where}, no test image tells {both} apart in {title}."
    allows = _allows(tested.low, tested.high)
    return f"{where}, no difference in {title} is shown for images like those tested ({p}){allows}."


def _better(difference: Difference) -> str:
    """rd4ad is better than rdpp in AUPRO by 0.42 points"""
    names = (difference.first, difference.second)
    better, worse = names if difference.difference > 0 else names[::-1]
    size = points(abs(difference.difference)).lstrip("+")
    return f"{better} is better than {worse} in {METRIC_TITLES[difference.metric]} by {size} points"


def _range(low: float | None, high: float | None, difference: Difference, level: float) -> str:
    """The interval of better less worse: 95 % +0.10 to +0.70;"""
    if low is None or high is None:
        return ""
    low, high = (low, high) if difference.difference > 0 else (-high, -low)
    return f"{100 * level:g} % {points(low)} to {points(high)}; "


def _allows(low: float, high: float) -> str:
    return f"; the interval allows from {points(low)} to {points(high)} points"


def _holm(difference: Difference) -> str:
    return "" if difference.rivals == 1 else f", Holm over {difference.rivals} comparisons"


def rank_verdict(ranking: Ranking, level: float) -> list[str]:
    """The sentences that say what the ranks of several methods show."""
    title, classes, methods = METRIC_TITLES[ranking.metric], count(ranking.classes, "class"), len(ranking.labels)
    shown = ranking.friedman <= 1 - level
    lines = [
        f"Friedman: the {methods} methods {'rank differently' if shown else 'are not shown to rank differently'} in "
        f"{title} (p {p_text(ranking.friedman)} over {classes})."
    ]
    apart = [pair for pair, p in ranking.pairs.items() if p <= 1 - level]
    if ranking.critical >= methods - 1:
        lines.append(
            f"Nemenyi: {classes} cannot tell any two of {methods} methods apart, since mean ranks would have to differ "
            f"by {ranking.critical:.2f} and cannot differ by more than {methods - 1}."
        )
    elif not shown or not apart:
        lines.append(f"Nemenyi: no two methods are told apart (critical difference {ranking.critical:.2f}).")
    else:
        ranks = dict(zip(ranking.labels, ranking.ranks, strict=True))
        listed = ", ".join(" above ".join(sorted(pair, key=lambda label: ranks[label])) for pair in apart)
        lines.append(f"Nemenyi: {listed} (critical difference {ranking.critical:.2f}).")
    if ranking.classes < FEW:
        lines.append(f"With fewer than {FEW} classes both are rough: their p-values are limits for many classes.")
    return lines


def caveats(comparison: Comparison) -> list[str]:
    """What weakens the whole comparison, a line each, and what the numbers are."""
    differences = comparison.differences
    lines = list(comparison.notes)
    few = sorted(
        {
            one.class_name
            for difference in differences
            for one in difference.classes
            if one.images and min(one.normal, one.anomalous) < FEW
        }
    )
    if few:
        lines.append(f"fewer than {FEW} images of a kind, so intervals over images are too narrow: {', '.join(few)}")
    if any(len(difference.seeds) < 2 for difference in differences):
        lines.append("a single seed: how far another one would move the difference is not known")
    turned = [
        f"{difference.first} and {difference.second} in {METRIC_TITLES[difference.metric]}"
        for difference in differences
        if min(difference.seeds.values(), default=0) < 0 < max(difference.seeds.values(), default=0)
    ]
    if turned:
        lines.append(f"the seeds disagree on which is better: {'; '.join(turned)}")
    if len({difference.metric for difference in differences}) > 1:
        lines.append("p-values are adjusted within a metric: choose the metric that decides beforehand")
    return lines
