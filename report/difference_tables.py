"""Comparisons of methods as text, Markdown and JSON: the answer first, then a row per class. Percent and points."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from report.differences import Comparison, Difference, Ranking
from report.escaping import shown, shown_cell
from report.rendering import benchmark_title, heading, notes_below, percent
from report.results import METRIC_TITLES
from report.verdicts import SEEDS, caveats, p_text, points, rank_verdict, short_label, verdict
from utils import format_table

SCALE = 44  # columns of the line of ranks


def render_differences(comparisons: Sequence[Comparison], markdown: bool = False, width: int | None = None) -> str:
    """The comparisons as Markdown, or as text for a terminal of `width` columns."""
    parts = []
    for comparison in comparisons:
        title = shown(benchmark_title(comparison.benchmark), markdown)
        answers = _block(_answers(comparison), markdown, width)
        parts += [_heading([title, "what may be said"], markdown, width), answers]
        for difference in comparison.differences:
            parts += _table(difference, comparison.level, title, markdown, width)
        for ranking in comparison.rankings:
            parts += _ranks(ranking, title, markdown, width)
        parts.append(_block(_legend(comparison), markdown, width))
    return "\n\n".join(parts)


def _heading(parts: Sequence[str], markdown: bool, width: int | None) -> str:
    """`heading`, in several lines where a terminal is too narrow for one."""
    text = heading(parts, markdown)
    return text if markdown or width is None else textwrap.fill(text, width, break_on_hyphens=False)


def _block(lines: Sequence[str], markdown: bool, width: int | None) -> str:
    return notes_below([shown(line, markdown) for line in lines], markdown, width)


def _answers(comparison: Comparison) -> list[str]:
    """A line per difference and ranking, then what weakens them."""
    lines = [" ".join(verdict(difference, comparison.level)) for difference in comparison.differences]
    lines += [" ".join(rank_verdict(ranking, comparison.level)) for ranking in comparison.rankings]
    return [*(line for line in lines if line), *(f"note: {line}" for line in caveats(comparison))]


def _legend(comparison: Comparison) -> list[str]:
    metrics = {difference.metric for difference in comparison.differences}
    level = f"{100 * comparison.level:g} %"
    ways = [f"DeLong's ({METRIC_TITLES['image_auroc']})"] if "image_auroc" in metrics else []
    if metrics - {"image_auroc"}:
        ways.append(f"a paired bootstrap's with {comparison.replicates} replicates")
    lines = [
        f"Difference: A less B, in points, of the means over the seeds that both have. {level} and p of a class and of "
        f"the mean are over test images: {' or '.join(ways)}."
    ]
    if any(difference.over_classes for difference in comparison.differences):
        lines.append("Over classes: sign-flip permutation, Wilcoxon's signed ranks, bootstrap over classes.")
    return [*lines, SEEDS]


def _table(difference: Difference, level: float, title: str, markdown: bool, width: int | None) -> list[str]:
    """A row per class and one for their mean; below it the test over classes and the seeds."""
    header = ["class", "images", "A", "B", "difference", f"{100 * level:g} %", "p"]
    body = []
    for one in difference.classes:
        tested = [_interval(one.images.low, one.images.high), p_text(one.images.p)] if one.images else ["n/a", "n/a"]
        numbers = [percent(one.first), percent(one.second), points(one.difference)]
        name = shown_cell(one.class_name, markdown)
        body.append([name, f"{one.normal}+{one.anomalous}", *numbers, *tested])
    images = difference.over_images
    if len(difference.classes) > 1:
        numbers = [percent(difference.mean_first), percent(difference.mean_second), points(difference.difference)]
        tested = [_interval(images.low, images.high), p_text(images.p)] if images else ["n/a", "n/a"]
        body.append([f"**{text}**" if markdown and text else text for text in ["mean", "", *numbers, *tested]])
    sides = [f"{side} = {shown(name, markdown)}" for side, name in (("A", difference.first), ("B", difference.second))]
    titles = _heading([title, METRIC_TITLES[difference.metric], *sides], markdown, width)
    lines = []
    if over := difference.over_classes:
        kind = "exact" if over.exact else "sampled"
        holm = "" if difference.rivals == 1 else f", after Holm {p_text(over.adjusted)}"
        lines.append(
            f"over {over.classes} classes: sign-flip p {p_text(over.p)} ({kind}{holm}; the least possible is "
            f"{p_text(over.least_p)}), Wilcoxon p {p_text(over.wilcoxon)}, "
            + (
                f"{100 * level:g} % {_interval(over.low, over.high)}"
                if over.low is not None
                else "too few for an interval"
            )
        )
    if difference.seeds:
        lines.append("seeds: " + ", ".join(f"{seed}: {points(value)}" for seed, value in difference.seeds.items()))
    return [titles, format_table(header, body, markdown), _block(lines, markdown, width)]


def _interval(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{points(low)} to {points(high)}"


def _ranks(ranking: Ranking, title: str, markdown: bool, width: int | None) -> list[str]:
    """The mean ranks, and a line on which they lie: what a bar spans is not told apart."""
    about = f"mean ranks over {ranking.classes} classes"
    titles = _heading([title, METRIC_TITLES[ranking.metric], about], markdown, width)
    text = rank_line(ranking)
    return [titles, f"```text\n{text}\n```" if markdown else text]


def rank_line(ranking: Ranking) -> str:
    """The critical-difference line as text: an axis of ranks, a row per method, best first, and a bar per group."""
    last = len(ranking.labels)
    ranks = dict(zip(ranking.labels, ranking.ranks, strict=True))

    def place(rank: float) -> int:
        return round((rank - 1) / (last - 1) * (SCALE - 1))

    def row(marks: dict[int, str]) -> str:
        return "".join(marks.get(i, " ") for i in range(SCALE))

    axis = ["-"] * SCALE
    digits = [" "] * (SCALE + 1)
    for rank in range(1, last + 1):
        axis[place(rank)] = "+"
        digits[place(rank) : place(rank) + len(str(rank))] = str(rank)
    lines = ["".join(digits).rstrip(), "".join(axis)]
    for label in sorted(ranks, key=lambda name: ranks[name]):
        lines.append(f"{row({place(ranks[label]): 'o'})}  {ranks[label]:.2f} {short_label(label)}")
    for group in ranking.groups:
        ends = [place(ranks[group[0]]), place(ranks[group[-1]])]
        lines.append(row(dict.fromkeys(range(ends[0], ends[1] + 1), "=")).rstrip())
    critical = place(min(1 + ranking.critical, last)) + 1
    lines.append(f"{('|' + '-' * max(critical - 2, 0) + '|').ljust(SCALE)}  critical difference {ranking.critical:.2f}")
    return "\n".join(lines)


def differences_json(comparisons: Sequence[Comparison]) -> str:
    """All contents of the comparisons, metrics and differences as fractions, with the sentences."""
    records = []
    for comparison in comparisons:
        record = asdict(comparison)
        for held, difference in zip(record["differences"], comparison.differences, strict=True):
            held["verdict"] = verdict(difference, comparison.level)
        for held, ranking in zip(record["rankings"], comparison.rankings, strict=True):
            held["verdict"] = rank_verdict(ranking, comparison.level)
            held["pairs"] = [{"first": a, "second": b, "p": p} for (a, b), p in ranking.pairs.items()]
        record["caveats"] = caveats(comparison)
        records.append(record)
    return json.dumps({"unit": "fraction", "comparisons": records}, indent=2, allow_nan=False) + "\n"
