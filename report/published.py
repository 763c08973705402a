"""Published metrics, looked up in published_results.csv by the names of this project; gaps are not filled."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

PUBLISHED = Path(__file__).with_name("published_results.csv")
NET = "wide_res50"  # the teacher of all published metrics of a variant; tables over teachers have rows of their own


@dataclass(frozen=True)
class Method:
    """A variant's name in published_results.csv and in prose, and the protocol of its published metrics.

    One model over all classes has rows of its own, named as in tables (`report.results.unified_name`).
    """

    key: str
    title: str
    protocol: str

    @property
    def sentence(self) -> str:
        """The note below a table with published metrics."""
        return f"{self.title}'s published metrics: {self.protocol}."


METHODS = {
    "rd4ad": Method("RD4AD", "RD4AD", "WideResNet-50-2, 256 pixels, epoch 200, the last; AUPRO per image"),
    "sk_rd4ad": Method(
        "SK-RD4AD",
        "SK-RD4AD",
        "WideResNet-50-2, 256 pixels, the best of 200 epochs on the test set (oracle); AUPRO per image",
    ),
    "masked": Method(
        "ICCK-FMM-SCSAtt",
        "ICCK",
        "WideResNet-50-2, at most 200 epochs, stopped early on a validation loss; image size and kind of AUPRO are not "
        "stated (its RD4AD column is the per-image one)",
    ),
    "mrkd": Method("MRKD", "MRKD", "WideResNet-50-2; the reported epoch and the kind of AUPRO are unknown"),
    "drd": Method(
        "DRD",
        "DRD",
        "WideResNet-50-2, 256 pixels, at most 200 epochs, stopped early on the test set (oracle); AUPRO not published",
    ),
    "rdpp": Method(
        "RD++",
        "RD++",
        "WideResNet-50-2, 256 pixels, the best epoch on the test set by the mean of three metrics (oracle), 10 to 300 "
        "epochs by class; AUPRO per image",
    ),
    "rd_anomalib": Method(
        "anomalib ReverseDistillation (WRN50)",
        "anomalib",
        "WideResNet-50-2 with timm's weights, 256 pixels, validated once, at the end; the F1 is that of the threshold "
        "that is best on the test set; AUPRO not published",
    ),
}
# One model over all classes, as the benchmark of ADer trains it (arXiv 2406.03262).
ADER = (
    "one model over all classes as trained by ADer: WideResNet-50-2 with timm's weights, 256 pixels, batch 16, weight "
    "decay 0.05, epoch 100, the last; its AUPRO pools the regions of a class, on a grid of thresholds"
)
UNIFIED_METHODS = {
    "rd4ad, unified": Method(
        "RD4AD, unified (ADer)", "RD4AD, unified", f"{ADER}, learning rate 0.005, a tenth of it from epoch 80 on"
    ),
    "rdpp, unified": Method(
        "RD++, unified (ADer)", "RD++, unified", f"{ADER}, learning rate 0.001, a tenth of it from epoch 80 on"
    ),
}
NAMED_METHODS = METHODS | UNIFIED_METHODS  # by the names of runs in tables
DATASETS = {"mvtec": "MVTec-AD", "visa": "VisA", "vad": "VAD", "btad": "BTAD", "mpdd": "MPDD", "cifar10": "CIFAR-10"}
CATEGORIES = {"vad": "one-class"}
# The AUPRO of the variants' papers is the mean of per-image values, so it is not comparable with the pooled one.
PUBLISHED_NAMES = {
    "image_auroc": "image_auroc",
    "image_f1max": "image_f1",
    "pixel_auroc": "pixel_auroc",
    "aupro": "aupro_pooled",
    "aupro_per_image": "aupro",
}


@functools.cache
def _rows() -> dict[tuple[str, str, str, str], tuple[float, str]]:
    """(method, dataset, category, metric) -> (fraction, source)."""
    rows = {}
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            metric, _, unit = row["metric"].rpartition("_")
            if unit in ("pct", "frac"):
                value = float(row["value"]) / (100 if unit == "pct" else 1)
                rows[row["method"], row["dataset"], row["category"], metric] = value, row["source"]
    return rows


def methods() -> set[str]:
    """The names of all methods in the file, with rows of ablation tables and repetitions by others."""
    return {method for method, *_ in _rows()}


def published_metric(method: str, benchmark: str, class_name: str, metric: str) -> tuple[float, str] | None:
    """A published metric as a fraction in 0..1, and its source; None where published_results.csv has none.

    `method` is a name in that file; benchmark, class and metric are names of this project. The class "mean" is the mean
    over all classes. A published AUPRO is an `aupro_per_image`, but for that of one model over all classes.
    """
    category = CATEGORIES.get(class_name, class_name)
    return _rows().get((method, DATASETS.get(benchmark, ""), category, PUBLISHED_NAMES.get(metric, "")))


def published(benchmark: str, variant: str, class_name: str, metric: str) -> tuple[float, str] | None:
    """`published_metric` of the variant's method: its own rows, without reproductions and quotations by others.

    Those of one model over all classes are ADer's; its `variant` is named as in NAMED_METHODS.
    """
    known = NAMED_METHODS.get(variant)
    return published_metric(known.key, benchmark, class_name, metric) if known else None
