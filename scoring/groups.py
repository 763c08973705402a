"""Which test images belong together: those of a kind of defect, and those of a group, such as a light or a view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from scoring.metrics import Report

DEFECT = "defect"  # the title of the kinds of defects
GROUP = "group"  # of groups that a benchmark has no word for

Subsets = Mapping[tuple[str, str], np.ndarray]  # (title, name): which of the images (n,)


@dataclass(frozen=True)
class GroupReport:
    """The metrics of some test images, and how many images these are."""

    report: Report
    n_test: int
    n_anomalous: int

    def to_json(self) -> dict[str, Any]:
        """What metrics.json holds of it."""
        counts = {"n_test": self.n_test, "n_anomalous": self.n_anomalous}
        return {**counts, "metrics": self.report.defined(), "reasons": self.report.reasons}


Groups = Mapping[str, Mapping[str, GroupReport]]  # title: name: its report


def subsets_of(labels: ArrayLike, kinds: Sequence[str], groups: Sequence[str], title: str = GROUP) -> Subsets:
    """Labels (n,), the kind of defect and the group of each image -> the subsets that have metrics of their own.

    A kind of defect: the anomalous images of that kind against all normal ones. A group: all its images, normal and
    anomalous; images of no group (an empty name) belong to none. Titles with a single name have no subset.
    """
    anomalous = np.asarray(labels) == 1
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, of in ((DEFECT, np.array(kinds, object)), (title or GROUP, np.array(groups, object))):
        own = anomalous if name == DEFECT else of != ""
        values = sorted(set(of[own].tolist()))
        if len(values) > 1:
            beside = ~anomalous if name == DEFECT else np.zeros(anomalous.shape, np.bool_)
            found |= {(name, value): (own & (of == value)) | beside for value in values}
    return found


def by_title(labels: ArrayLike, subsets: Subsets, reports: Sequence[Report]) -> dict[str, dict[str, GroupReport]]:
    """The reports of the subsets, in their order, by title and name."""
    anomalous = np.asarray(labels) == 1
    found: dict[str, dict[str, GroupReport]] = {}
    for ((title, name), own), report in zip(subsets.items(), reports, strict=True):
        group = GroupReport(report, int(own.sum()), int((own & anomalous).sum()))
        found.setdefault(title, {})[name] = group
    return found


def record_groups(groups: Groups) -> dict[str, Any]:
    """{"groups": {title: {name: ...}}} as metrics.json holds it; empty where there are none."""
    record = {title: {name: one.to_json() for name, one in named.items()} for title, named in groups.items()}
    return {"groups": record} if record else {}
