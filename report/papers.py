"""The tables of the papers as data: the flags of each row, and the method that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from dataset import UNIFIED
from report.published import METHODS, UNIFIED_METHODS

ALL_METRICS = ("image_auroc", "pixel_auroc", "aupro_per_image", "aupro")
NO_AUPRO = ("image_auroc", "pixel_auroc")
CHECK_MARKS = (
    "?: the check marks of the printed table could not be read, so which printed row belongs here is assumed; no "
    "difference is given"
)


@dataclass(frozen=True)
class Setting:
    """A row over all classes: its label, its flags of main.py, and its method in published_results.csv.

    `certain` is False where the printed row that belongs here is only assumed.
    """

    label: str
    flags: str = ""
    method: str = ""
    certain: bool = True


@dataclass(frozen=True)
class PaperTable:
    """One table. With one setting the rows are the classes and their mean; with several, the mean of each setting.

    `flags` are those of all settings, each of which adds its own; `variant` names the published protocol
    (`published.NAMED_METHODS`); `metrics` are named as in this project.
    """

    title: str
    benchmark: str
    flags: str
    variant: str
    metrics: tuple[str, ...]
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()


def _method_table(
    variant: str, benchmark: str, metrics: tuple[str, ...], *notes: str, title: str = "", flags: str = ""
) -> PaperTable:
    """The metrics of a method, class by class, with the training settings of its variant."""
    method = METHODS[variant]
    setting = Setting(variant, method=method.key)
    return PaperTable(
        title or method.title, benchmark, f"--variant {variant} {flags}", variant, metrics, (setting,), notes
    )


def _unified_table(variant: str, benchmark: str, learning_rate: float) -> PaperTable:
    """One model over all classes with ADer's settings of a variant."""
    name = f"{variant}, {UNIFIED}"
    method = UNIFIED_METHODS[name]
    flags = f"--variant {variant} --class {UNIFIED} --epochs 100 --learning_rate {learning_rate} --weight_decay 0.05"
    setting = Setting(variant, method=method.key)
    metrics = ("image_auroc", "pixel_auroc", "aupro")
    return PaperTable(method.title, benchmark, flags, name, metrics, (setting,), (STEP, TIMM))


def _icck_table(number: int, title: str, settings: tuple[Setting, ...], *notes: str) -> PaperTable:
    """A table of ICCK: settings of the masked variant on MVTec AD."""
    title = f"ICCK table {number}, {title}"
    return PaperTable(title, "mvtec", "--variant masked", "masked", ALL_METRICS, settings, notes)


ICCK = METHODS["masked"].key
T5, T6, T7 = (f"ICCK ablation T{number}" for number in (5, 6, 7))
RATE = (
    "the published loop over all classes sets the consistency weight to 0.005 whatever the flag says; so does the "
    "preset"
)
EVALUATE = "--print_epoch 10"  # for methods that choose their epoch on the test set: the oracle is compared as well
STEP = "the published learning rate falls to a tenth after epoch 80; ours stays"
TIMM = "the published teacher has timm's weights, ours torchvision's V1"
SUBSETS = ("0", "1", "2", "0 1", "0 2", "1 2", "0 1 2")

PAPERS: dict[str, dict[str, PaperTable]] = {
    "rd4ad": {"mvtec": _method_table("rd4ad", "mvtec", ALL_METRICS)},
    "sk_rd4ad": {
        "mvtec": _method_table("sk_rd4ad", "mvtec", ALL_METRICS, RATE, flags=EVALUATE),
        "visa": _method_table("sk_rd4ad", "visa", ALL_METRICS, RATE, flags=EVALUATE),
        "vad": _method_table("sk_rd4ad", "vad", ("image_auroc",), flags=f"--seg 0 {EVALUATE}"),
    },
    "icck": {
        "1": _method_table("masked", "mvtec", ("image_auroc",), title="ICCK table 1"),
        "2": _method_table(
            "masked",
            "cifar10",
            ("image_auroc",),
            "of the published column only the mean is certain: the classes' metrics are shifted, and one is missing",
            "image size, teacher and image score are not stated for CIFAR-10; ours are as on MVTec AD",
            title="ICCK table 2",
        ),
        "3": _method_table("masked", "mvtec", ("pixel_auroc", "aupro_per_image", "aupro"), title="ICCK table 3"),
        "4": _icck_table(
            4,
            "teachers",
            (
                Setting("res18", "--net res18", f"{ICCK}[backbone=ResNet18]"),
                Setting("res50", "--net res50", f"{ICCK}[backbone=ResNet50]"),
                Setting("wide_res50", "", f"{ICCK}[backbone=WideResNet50]"),
            ),
        ),
        "5": _icck_table(
            5,
            "feature masking (FMM)",
            (
                Setting("without_fmm", "--fmm 0", f"{T5} [without FMM]"),
                Setting("with_fmm", "", f"{T5} [with FMM]"),
            ),
            "the check marks of the printed table could not be read: which row is which variant from the text",
        ),
        "6": _icck_table(
            6,
            "attention in the bottleneck (SCConv, SimAM)",
            (
                Setting("baseline", "--variant rd4ad", f"{T6} [row1 baseline]"),
                Setting("simam", "--scconv 0", f"{T6} [row2 probably +SimAM]", certain=False),
                Setting("scconv", "--simam 0", f"{T6} [row3 probably +SCConv]", certain=False),
                Setting("both", "", f"{T6} [row4 both]"),
            ),
            CHECK_MARKS,
            "this table mixes in FMM: its baseline has the metrics of RD4AD, which has no FMM, and its last row those "
            "of the full model, which has; with both attentions and without FMM see table 5. Ours: rd4ad, then FMM "
            "with SimAM, with SCConv, with both",
        ),
        "7": _icck_table(
            7,
            "levels",
            tuple(
                Setting(
                    levels.replace(" ", "+"),
                    "" if levels == "0 1 2" else f"--train_levels {levels} --levels {levels}",
                    f"{T7} [row{number}]",
                    certain=levels == "0 1 2",
                )
                for number, levels in enumerate(SUBSETS, 1)
            ),
            CHECK_MARKS,
            "0 is the finest level; ours trains and scores on the same levels",
        ),
    },
    "mrkd": {"mvtec": _method_table("mrkd", "mvtec", ALL_METRICS)},
    "drd": {"mvtec": _method_table("drd", "mvtec", ALL_METRICS, flags=EVALUATE)},
    "rdpp": {
        "mvtec": _method_table("rdpp", "mvtec", ALL_METRICS, flags=EVALUATE),
        "btad": _method_table(
            "rdpp", "btad", NO_AUPRO, "the published epochs for BTAD are unknown; ours are 200", flags=EVALUATE
        ),
    },
    "ader": {
        "rd4ad_mvtec": _unified_table("rd4ad", "mvtec", 0.005),
        "rd4ad_visa": _unified_table("rd4ad", "visa", 0.005),
        "rdpp_mvtec": _unified_table("rdpp", "mvtec", 0.001),
        "rdpp_visa": _unified_table("rdpp", "visa", 0.001),
    },
    "anomalib": {"mvtec": _method_table("rd_anomalib", "mvtec", ("image_auroc", "image_f1max", "pixel_auroc"))},
}
