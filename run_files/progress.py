"""The progress of a run: its epochs, its evaluations, and the epoch that the published code would have chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from methods import Training

# How the published code of a variant chooses its epoch on the test set: by the mean of these metrics (DRD takes their
# sum, which chooses the same epoch). SK-RD4AD has a script per benchmark, hence VARIANT/BENCHMARK. AUPRO is per image
# in all of them.
ORACLE_RULES: dict[str, tuple[str, ...]] = {
    "sk_rd4ad": ("pixel_auroc", "aupro_per_image"),
    "sk_rd4ad/visa": ("image_auroc", "pixel_auroc"),
    "sk_rd4ad/vad": ("image_auroc",),
    "rdpp": ("image_auroc", "pixel_auroc", "aupro_per_image"),
    "drd": ("image_auroc", "pixel_auroc"),
}
DEFAULT_ORACLE_RULE = ("image_auroc", "pixel_auroc")  # for variants without a published rule


def oracle_rule(variant: str, benchmark: str) -> tuple[str, ...]:
    """The metrics whose mean chooses the oracle epoch of a variant on a benchmark."""
    return ORACLE_RULES.get(f"{variant}/{benchmark}", ORACLE_RULES.get(variant, DEFAULT_ORACLE_RULE))


@dataclass
class Progress:
    """The progress of a run: epochs done, a row per epoch, a row per evaluation, seconds of training."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, epoch: int, losses: dict[str, float], images: int, seconds: float) -> None:
        """Record the mean losses and the speed of an epoch."""
        self.epoch = epoch
        self.seconds += seconds
        self.history.append({"epoch": epoch, **losses, "images_per_second": round(images / seconds, 2)})

    def evaluated(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the metrics of an epoch, in place of those that an interrupted process recorded."""
        self.evaluations = [row for row in self.evaluations if row["epoch"] != epoch]
        self.evaluations.append({"epoch": epoch, **metrics})

    def should_stop(self, patience: int) -> bool:
        """Whether the loss on held-out images has not fallen for `patience` epochs; always False with 0."""
        val_losses = [row["held_out"] for row in self.history if "held_out" in row]
        return bool(patience and val_losses) and len(val_losses) - 1 - val_losses.index(min(val_losses)) >= patience

    def is_complete(self, training: Training) -> bool:
        """Whether no epoch is left to be done."""
        return self.epoch >= training.epochs or self.should_stop(training.patience)

    def oracle(self, rule: Sequence[str]) -> dict[str, Any]:
        """The epoch with the highest mean of the metrics of `rule`: {"epoch", "rule" in words, "metrics" by name}.

        It is chosen on test data, so it is never the result. Metrics of the rule that are undefined in some evaluation
        are left out of the mean, which "rule" notes; if all are undefined, image AUROC alone is used. The first of
        equal epochs is taken. Undefined metrics are None in "metrics". The result is empty for fewer than two
        evaluations, and where image AUROC is undefined as well.
        """
        defined = [name for name in rule if self._always_defined(name)]
        chosen_by = defined or [name for name in ("image_auroc",) if self._always_defined(name)]
        if len(self.evaluations) < 2 or not chosen_by:
            return {}
        best = max(self.evaluations, key=lambda row: fmean(row[name] for name in chosen_by))
        text = ("mean of " if len(chosen_by) > 1 else "") + ", ".join(chosen_by)
        if undefined := [name for name in rule if name not in defined]:
            text += f" (undefined and left out: {', '.join(undefined)})"
        metrics = {name: None if math.isnan(value) else value for name, value in best.items() if name != "epoch"}
        return {"epoch": best["epoch"], "rule": text, "metrics": metrics}

    def _always_defined(self, metric: str) -> bool:
        return not any(math.isnan(row.get(metric, math.nan)) for row in self.evaluations)
