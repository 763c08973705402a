"""Tables over runs: means and spreads by hand, gaps that stay gaps, published metrics read by eye."""

from __future__ import annotations

import csv
import errno
import html
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import report
from commandline import exit_code
from dataset import BENCHMARKS
from methods import VARIANTS
from report import rendering, results, tables
from report.comparison import compare, compare_places, render_comparison, render_one_table
from report.published import METHODS, PUBLISHED, published
from report.rendering import insert, render
from report.results import METRIC_TITLES, NOT_IN_ALL_RUNS, Result
from report.tables import spread
from run_files.csv_files import read_csv
from run_files.lock import FolderLock
from scripts import summarize
from utils import terminal_width

# Those of an image each: `sample_auroc` is of objects that several images show.
TITLES = {name: title for name, title in METRIC_TITLES.items() if name != "sample_auroc"}
PIXEL = [metric for metric in TITLES if not metric.startswith("image")]


def result(class_name: str = "bottle", seed: int = 1, value: float = 0.9, **changes: Any) -> Result:
    """What a run's metrics.json holds, every metric being `value`."""
    return {
        "class_name": class_name,
        "seed": seed,
        "benchmark": "mvtec",
        "variant": "rd4ad",
        "name": None,
        "net": "wide_res50",
        "image_size": 256,
        "epochs": 200,
        "metrics": dict.fromkeys(TITLES, value),
        "reasons": {},
        "oracle": {},
        "train_seconds": 60.0,
        "score_seconds": 1.5,
        "hardware": "some CPU, 2 threads",
        "revision": "abc",
        "versions": {"torch": "2"},
    } | changes


def oracle(epoch: int, value: float) -> dict[str, Any]:
    """What metrics.json holds of an oracle epoch."""
    metrics = {"image_auroc": value, "pixel_auroc": value, "aupro": None}
    return {"epoch": epoch, "rule": "mean of image_auroc, pixel_auroc", "metrics": metrics}


def without_masks(class_name: str, seed: int = 1, value: float = 0.9, **changes: Any) -> Result:
    metrics = {metric: None if metric in PIXEL else value for metric in TITLES}
    reasons = dict.fromkeys(PIXEL, "no masks")
    return result(class_name, seed, metrics=metrics, reasons=reasons, **changes)


def save(root: Path, *runs: Result) -> Path:
    for one in runs:
        folder = root / one["benchmark"] / one["variant"] / one["class_name"] / f"seed{one['seed']}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "metrics.json").write_text(json.dumps(one))
    return root


def row_of(runs: list[Result], label: str, metric: str = "image_auroc") -> tuple[float | None, float | None, int]:
    """Mean, spread and n of one metric in the only table."""
    (table,) = tables.summarize(runs)
    (row,) = (row for row in table.rows if row.label == label)
    return row.metrics[metric].mean, row.metrics[metric].std, row.metrics[metric].n


def test_mean_and_spread_over_seeds_are_those_computed_by_hand() -> None:
    # bottle .90 .94 .98: mean .94, squares .0016 + 0 + .0016, over n - 1 = 2: variance .0016, spread .04
    runs = [result("bottle", seed, value) for seed, value in [(1, 0.90), (2, 0.94), (3, 0.98)]]
    mean, std, n = row_of(runs, "bottle")
    assert (mean, std, n) == (pytest.approx(0.94), pytest.approx(0.04), 3)
    assert "94.00 ± 4.00" in render(tables.summarize(runs))


def test_mean_row_spreads_over_the_seeds_that_have_all_classes() -> None:
    # zipper .80 .86 in seeds 1 and 2, bottle .90 .94 .98: class means .83 and .94, their mean .885;
    # seed means (.90 + .80) / 2 = .85 and (.94 + .86) / 2 = .90, spread .05 / sqrt(2)
    bottle = [result("bottle", seed, value) for seed, value in [(1, 0.90), (2, 0.94), (3, 0.98)]]
    zipper = [result("zipper", seed, value) for seed, value in [(1, 0.80), (2, 0.86)]]
    mean, std, n = row_of([*bottle, *zipper], "mean (2 of 15)")
    assert (mean, std, n) == (pytest.approx(0.885), pytest.approx(0.05 / 2**0.5), 2)


def test_one_seed_has_no_spread_and_neither_have_seeds_without_common_classes() -> None:
    assert row_of([result("bottle", 1, 0.9)], "bottle") == (0.9, None, 1)
    assert spread({"a": {1: 0.25}, "b": {2: 0.75}}) == tables.Spread(0.5, None, 0, 2)
    assert spread({"a": {}, "b": {}}) == tables.Spread(None, None, 0, 0)


def test_missing_metrics_stay_missing_with_their_reason_once() -> None:
    runs = [without_masks("bottle", seed) for seed in (1, 2)]
    assert row_of(runs, "bottle", "aupro") == (None, None, 0)
    text = render(tables.summarize(runs))
    assert text.count("no masks") == 1
    line = next(line for line in text.splitlines() if line.startswith("bottle"))
    assert line.split() == ["bottle", "2", *(3 * ["90.00", "±", "0.00"])]
    assert "AUPRO pools" not in text
    line = next(line for line in render(tables.summarize(runs), markdown=True).splitlines() if "bottle" in line)
    assert line.strip("| ").split() == " | ".join(["bottle", "2", *(3 * ["90.00 ± 0.00"]), *(7 * ["n/a"])]).split()


def test_runs_without_any_metric_have_no_table_but_their_reason() -> None:
    nothing = dict.fromkeys(TITLES)
    reasons = dict.fromkeys(TITLES, "no test images")
    text = render(tables.summarize([result("parts", metrics=nothing, reasons=reasons)]))
    assert "MVTec AD · rd4ad · not measured" in text
    assert "no metrics: no test images" in text and "n/a" not in text
    assert "Metrics of the last epoch" not in text and "class " not in text
    text = render(tables.summarize([result(), result("parts", metrics=nothing, reasons=reasons)]))
    assert "\nbottle " in text and "\nparts " not in text
    assert "n/a: all metrics (parts): no test images" in text


def earlier(run: Result) -> Result:
    """The run as a version recorded it that knew neither AUPRO 0.05 nor AUPIMO."""
    kept = {name: value for name, value in run["metrics"].items() if name not in NOT_IN_ALL_RUNS}
    return run | {"metrics": kept}


def test_a_table_has_the_metrics_that_some_of_its_runs_record(tmp_path: Path) -> None:
    old = [earlier(result(seed=seed)) for seed in (1, 2)]
    known = [title for name, title in TITLES.items() if name not in NOT_IN_ALL_RUNS]
    for markdown in (False, True):
        text = render(tables.summarize(old), markdown=markdown)
        header = next(line for line in text.splitlines() if "AUPRO" in line)
        titles = header.strip("| ").split("|") if markdown else re.split(r"\s{2,}", header)
        assert [title.strip() for title in titles][2:] == known
        assert "AUPIMO" not in text and "0.05" not in text and "n/a" not in text
    report.write_tables(tmp_path, old)
    assert {row["metric"] for row in read_csv(tmp_path / "runs.csv")} == {*TITLES} - NOT_IN_ALL_RUNS
    assert {row["metric"] for row in read_csv(tmp_path / "summary.csv")} == {*TITLES} - NOT_IN_ALL_RUNS
    assert "aupimo" not in (tmp_path / "summary.json").read_text()
    mixed = render(tables.summarize([old[0], result(seed=2)]), markdown=True)
    assert "90.00 (n=1)" in mixed and f"n/a: AUPRO 0.05, AUPIMO: {tables.EARLIER}" in mixed
    assert "AUPIMO is the mean over" in mixed
    old_and_new = render_comparison(compare([old[0], result(name="new")]))
    assert cells(old_and_new, "rd4ad").count("n/a") == len({*TITLES} & NOT_IN_ALL_RUNS)


def test_decisions_at_the_threshold_stand_apart_from_f1max(tmp_path: Path) -> None:
    found = {"image_f1": 0.5, "seg_f1": 0.25, "false_alarm_rate": 0.125, "miss_rate": None, "n_bad": 3}
    runs = [result(seed=seed, name="own", decisions=found | {"image_f1": 0.25 + 0.25 * seed}) for seed in (1, 2)]
    runs.append(result("cable", name="own"))
    for width in (None, 80):
        text = render(tables.summarize(runs), width=width)
        assert width is None or max(map(len, text.splitlines())) <= width
        own = text[text.index("decisions at the threshold") :]
        headers = [re.split(r"\s{2,}", line)[2:] for line in own.splitlines() if line.startswith("class")]
        assert sum(headers, []) == ["image F1", "SegF1", "false alarms"] and (len(headers) == 1 or width)
        parts = [line.split(maxsplit=2)[2] for line in own.splitlines() if line.startswith("bottle")]
        assert " ".join(parts).split() == "62.50 ± 17.68 25.00 ± 0.00 12.50 ± 0.00".split()
        assert "missed" not in own, "no run has anomalous images"
    assert "decisions" not in render(tables.summarize([result()]))
    report.write_tables(tmp_path, runs)
    values = {(row["class"], row["seed"], row["metric"]): row["value"] for row in read_csv(tmp_path / "runs.csv")}
    assert values["bottle", "2", "image_f1"] == "0.75" and values["bottle", "1", "miss_rate"] == ""
    assert ("cable", "1", "image_f1") not in values
    means = {(row["class"], row["metric"]): row["mean"] for row in read_csv(tmp_path / "summary.csv")}
    assert means["bottle", "image_f1"] == "0.625" and float(means["bottle", "image_f1max"]) == 0.9


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (170, []),
        (135, ["image F1-max", "pixel F1-max"]),
        (120, ["image AP", "image F1-max", "pixel AP", "pixel F1-max"]),
        (80, ["image AP", "image F1-max", "pixel AP", "pixel F1-max", "AUPRO 0.05", "AUPIMO"]),
    ],
)
def test_a_table_fits_the_terminal_and_says_what_it_left_out(width: int, gone: list[str]) -> None:
    runs = [result(name, seed, 0.1 * seed) for name in ("bottle", "metal_nut") for seed in (1, 2)]
    text = render(tables.summarize(runs), width=width)
    assert max(map(len, text.splitlines())) <= width
    header = next(line for line in text.splitlines() if line.startswith("class"))
    assert re.split(r"\s{2,}", header)[2:] == [title for title in TITLES.values() if title not in gone]
    words = " ".join(text.split())
    said = f"left out, since the terminal is narrow: {', '.join(gone)}: summary.md has them"
    assert (said in words) == bool(gone) and ("left out" in words) == bool(gone)


def test_what_stands_beside_the_published_metrics_becomes_several_tables_on_a_narrow_terminal() -> None:
    found = tables.summarize([result("carpet", value=0.98)])
    assert render(found, width=80).count("published [") == render(found).count("published [") == 3
    assert max(map(len, render(found, width=80).splitlines())) <= 80
    heads = [sum("published [" in line for line in render(found, width=width).splitlines()) for width in (200, 80)]
    assert heads[0] == 1 < heads[1]


def test_a_comparison_fits_the_terminal() -> None:
    text = render_comparison(compare([result(seed=1), result(seed=2)]), width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert "COLUMNS=200 before the command shows them" in " ".join(text.split())


def test_a_terminal_explains_only_what_it_shows() -> None:
    one = render(tables.summarize([result()]))
    assert "Metrics of the last epoch." in one and "±" not in one and "mean row" not in one
    several = " ".join(render(tables.summarize([result(seed=1), result("wood", seed=1), result(seed=2)])).split())
    assert "mean ± sample standard deviation over n seeds. The mean row is" in several


def test_mean_row_says_when_not_all_classes_have_a_metric() -> None:
    found = tables.summarize([result("bottle", value=0.8), without_masks("zipper", value=0.6)])
    mean = found[0].rows[-1]
    assert mean.metrics["image_auroc"].mean == pytest.approx(0.7)
    assert (mean.metrics["aupro"].mean, mean.metrics["aupro"].classes, mean.classes) == (0.8, 1, 2)
    text = render(found)
    assert "80.00 (1 of 2)" in text
    assert "AUPRO per image (zipper): no masks" in text


def test_a_metric_that_some_seeds_lack_shows_its_own_n() -> None:
    text = render(tables.summarize([result(seed=1, value=0.8), without_masks("bottle", seed=2)]))
    assert "80.00 (n=1)" in text


def test_classes_stand_in_the_benchmarks_order_and_unknown_ones_after_them() -> None:
    (table,) = tables.summarize([result(c) for c in ("bottle", "aardvark", "wood", "carpet")])
    assert [row.label for row in table.rows][:-1] == ["carpet", "wood", "bottle", "aardvark"]


def test_runs_are_grouped_by_benchmark_and_name() -> None:
    runs = [result(), result(variant="sk_rd4ad"), result(name="ablation"), result("vad", benchmark="vad")]
    found = [(table.benchmark, table.name, table.variant) for table in tables.summarize(runs)]
    assert found == [
        ("mvtec", "ablation", "rd4ad"),
        ("mvtec", "rd4ad", "rd4ad"),
        ("mvtec", "sk_rd4ad", "sk_rd4ad"),
        ("vad", "rd4ad", "rd4ad"),
    ]


def test_published_metrics_are_those_in_the_tables() -> None:
    value, source = published("mvtec", "rd4ad", "carpet", "pixel_auroc") or (0.0, "")
    assert value == pytest.approx(0.989)
    assert source.startswith("ICCK, DOI 10.62762/CJIF.2024.734267, Table 3 column RD")
    hanium = "2024-Hanium-Anomaly-Dection/SK-RD4AD@8c2971b readme.md"
    assert published("visa", "sk_rd4ad", "pcb2", "aupro_per_image") == (pytest.approx(0.892), hanium)
    assert published("visa", "sk_rd4ad", "mean", "pixel_auroc") == (pytest.approx(0.985), hanium)
    vad = published("vad", "sk_rd4ad", "vad", "image_auroc")
    assert vad is not None and vad[0] == pytest.approx(0.87)


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (("mvtec", "masked", "mean", "aupro_per_image"), 0.959),
        (("mvtec", "masked", "zipper", "image_auroc"), 0.982),
        (("cifar10", "masked", "mean", "image_auroc"), 0.909),
        (("mvtec", "drd", "mean", "image_auroc"), 0.9946),
        (("mvtec", "rdpp", "mean", "aupro_per_image"), 0.9499),
        (("btad", "rdpp", "mean", "pixel_auroc"), 0.9743),
        (("mvtec", "mrkd", "mean", "pixel_auroc"), 0.984),
        (("mvtec", "rd_anomalib", "carpet", "image_f1max"), 0.977),
    ],
)
def test_every_method_of_the_family_has_its_metrics(wanted: tuple[str, str, str, str], value: float) -> None:
    found = published(*wanted)
    assert found is not None and found[0] == pytest.approx(value)


def test_every_variant_has_its_method() -> None:
    assert set(METHODS) == set(VARIANTS)


@pytest.mark.parametrize(
    "wanted",
    [
        ("mvtec", "rd4ad", "carpet", "aupro"),  # the tables print the per-image metric
        ("mvtec", "rd4ad", "carpet", "image_ap"),
        ("mvtec", "sk_rd4ad", "cable", "pixel_auroc"),  # four classes only
        ("mvtec", "sk_rd4ad", "mean", "image_auroc"),
        ("visa", "rd4ad", "pcb1", "pixel_auroc"),  # quoted by others, not its own
        ("demo", "rd4ad", "carpet", "image_auroc"),
        ("mvtec", "own", "carpet", "image_auroc"),
        ("mvtec", "drd", "mean", "aupro_per_image"),
        ("mvtec", "rdpp", "carpet", "image_auroc"),  # a user's reproduction is none of its own
        ("mvtec", "rd_anomalib", "mean", "pixel_f1max"),
        ("cifar10", "masked", "deer", "image_auroc"),
    ],
)
def test_gaps_among_the_published_metrics_stay_gaps(wanted: tuple[str, str, str, str]) -> None:
    assert published(*wanted) is None


def test_every_published_row_has_a_number_a_unit_and_a_source() -> None:
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 398
    for row in rows:
        assert float(row["value"]) >= 0 and row["source"]
        if row["metric"].endswith(("_pct", "_frac")):
            assert float(row["value"]) <= (100 if row["metric"].endswith("_pct") else 1)


def test_published_metrics_stand_beside_ours_with_the_difference() -> None:
    text = render(tables.summarize([result("carpet", value=0.98)]))
    beside = text[text.index("beside the published metrics") :]
    (line,) = (line for line in beside.splitlines() if line.startswith("carpet"))
    # published: image AUROC 98.9, pixel AUROC 98.9, AUPRO 97.0
    assert " ".join(line.split()) == "carpet 98.00 98.90 -0.90 98.00 98.90 -0.90 98.00 97.00 +1.00"


@pytest.mark.parametrize("changes", [{"net": "res18"}, {"net": None}, {"teacher_weights": "random:0"}, {"name": "own"}])
def test_published_metrics_are_shown_for_their_teacher_and_an_unnamed_variant_only(changes: dict[str, Any]) -> None:
    assert "published metrics" in render(tables.summarize([result("carpet")]))
    assert "published metrics" not in render(tables.summarize([result("carpet", **changes)]))


def test_the_published_mean_stands_only_beside_a_mean_over_all_classes() -> None:
    classes = BENCHMARKS["mvtec"].classes
    (whole,) = tables.summarize([result(c) for c in classes])
    (part,) = tables.summarize([result(c) for c in classes[1:]])
    assert whole.rows[-1].published["image_auroc"].value == pytest.approx(0.985)
    assert part.rows[-1].label == "mean (14 of 15)" and not part.rows[-1].published


def test_oracle_metrics_appear_on_request_and_under_their_name() -> None:
    runs = [result(seed=1, oracle=oracle(40, 0.95)), result(seed=2, oracle=oracle(160, 0.97))]
    found = tables.summarize(runs)
    assert "96.00" not in render(found) and "test set, not a result" not in render(found)
    text = render(found, oracle=True)
    assert "epoch chosen on the test set, not a result (oracle)" in text
    chosen = text[text.index("epoch chosen on the test set") :]
    assert cells(chosen, "bottle")[:6] == ["bottle", "2", "40–160", "96.00", "±", "1.41"]
    assert "one epoch of each run, the one with the highest mean of image_auroc, pixel_auroc" in text


def test_runs_of_one_table_that_differ_are_warned_of() -> None:
    assert "warning" not in render(tables.summarize([result(seed=1), result(seed=2)]))
    drawn = [result(seed=seed, teacher_weights=f"random:{seed}") for seed in (1, 2)]
    assert "warning" not in render(tables.summarize(drawn))
    assert "warning" in render(tables.summarize([*drawn, result(seed=3, teacher_weights="sha256:1f")]))
    runs = [result(seed=1), result(seed=2, epochs=10), result(seed=3, revision="def")]
    text = render(tables.summarize(runs))
    assert "warning: these runs differ in epochs: 10, 200" in text
    assert "warning: these runs differ in revision: abc, def" in text


def test_classes_may_have_the_epochs_that_their_variant_gives_them() -> None:
    epochs = VARIANTS["rdpp"].training.epochs_of
    runs = [result(c, variant="rdpp", epochs=epochs[c]) for c in ("carpet", "bottle")]
    assert epochs["carpet"] != epochs["bottle"]
    assert "warning" not in render(tables.summarize(runs))
    assert "differ in epochs" in render(tables.summarize([*runs, result("cable", variant="rdpp", epochs=1)]))


def test_what_stands_below_a_table() -> None:
    text = " ".join(render(tables.summarize([result(seed=seed) for seed in (1, 2)])).split())
    assert "2 runs, 2 seeds (1, 2), epochs 200, teacher wide_res50, 256 pixels, revision abc" in text
    assert "training 2 min 00 s, scoring 3.0 s over all runs, on some CPU, 2 threads; torch 2" in text


def test_files_hold_fractions_in_full_precision(tmp_path: Path) -> None:
    text = report.write_tables(tmp_path, [result("carpet", seed, value) for seed, value in [(1, 0.9), (2, 0.91234567)]])
    found = tables.summarize([result("carpet", 1, 0.9), result("carpet", 2, 0.91234567)])
    assert text == render(found, width=terminal_width())
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["image_auroc"]["mean"]) == pytest.approx((0.9 + 0.91234567) / 2, abs=1e-12)
    assert float(rows["image_auroc"]["difference"]) == pytest.approx((0.9 + 0.91234567) / 2 - 0.989, abs=1e-12)
    assert rows["aupro"]["published"] == ""
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["tables"][0]["rows"][0]["metrics"]["aupro"]["mean"] == pytest.approx(0.906172835, abs=1e-12)
    assert "| class " in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_collect_finds_runs_at_any_depth_once_and_counts_the_unfinished(tmp_path: Path) -> None:
    save(tmp_path, result(seed=1), result(seed=2), result("cable"))
    (tmp_path / "mvtec/rd4ad/cable/seed1/metrics.json").unlink()
    run = tmp_path / "mvtec/rd4ad/bottle/seed1"
    assert [one["seed"] for one in results.collect([tmp_path, run / "..", run])] == [1, 2]
    assert [one["seed"] for one in results.collect([run])] == [1]
    assert results.unfinished([tmp_path]) == [tmp_path / "mvtec/rd4ad/cable/seed1"]


def test_runs_come_in_the_order_of_the_folders(tmp_path: Path) -> None:
    first, second = save(tmp_path / "b", result(seed=2)), save(tmp_path / "a", result(seed=1))
    assert [one["seed"] for one in results.collect([first, second])] == [2, 1]
    assert [one["seed"] for one in results.collect([tmp_path])] == [1, 2]


# Settings a and b over bottle and cable with seeds 1 and 2. a: bottle .80 .82, cable .90 .96; seed means .85 and .89,
# mean .87, spread .04 / sqrt(2). b is .50 throughout.
COMPARED = [
    *(result(c, seed, value, name="a") for c, seed, value in [("bottle", 1, 0.8), ("bottle", 2, 0.82)]),
    *(result(c, seed, value, name="a") for c, seed, value in [("cable", 1, 0.9), ("cable", 2, 0.96)]),
    *(result(c, seed, 0.5, name="b", train_seconds=30.0) for c in ("bottle", "cable") for seed in (1, 2)),
]


def cells(text: str, label: str) -> list[str]:
    """The words of the one line that begins with the label."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"{label} "))
    return line.split()


def test_a_comparison_has_a_row_per_name() -> None:
    (found,) = compare(COMPARED)
    mean = found.rows[0].metrics["aupro"]
    assert (mean.mean, mean.std) == (pytest.approx(0.87), pytest.approx(0.04 / 2**0.5))
    text = render_comparison([found])
    metric = ["87.00", "±", "2.83"]
    assert cells(text, "a") == ["a", "2", "2", *(10 * metric), "1", "min", "00", "s"]
    assert cells(text, "b") == ["b", "2", "2", *(10 * ["50.00", "±", "0.00"]), "30.0", "s"]
    assert "warning" not in text
    assert "| b " in render_comparison([found], markdown=True)


def test_a_comparison_leaves_out_metrics_that_nobody_has_and_keeps_the_order_of_the_runs() -> None:
    runs = [without_masks("bottle", name="b"), without_masks("bottle", name="a")]
    (found,) = compare(runs)
    assert [row.label for row in found.rows] == ["b", "a"]
    assert "pixel AUROC" not in render_comparison([found]) and "image F1-max" in render_comparison([found])
    (found,) = compare([*runs, result("bottle", name="c")])
    assert cells(render_comparison([found]), "a").count("n/a") == len(PIXEL)


def test_a_comparison_has_a_table_per_benchmark() -> None:
    found = compare([result(), result("vad", benchmark="vad"), result(name="b")])
    assert [(table.benchmark, len(table.rows)) for table in found] == [("mvtec", 2), ("vad", 1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 10}, "these rows differ in epochs: 10, 200"),
        ({"image_size": 64}, "these rows differ in image size: 64, 256"),
        ({"revision": "def"}, "these rows differ in revision: abc, def"),
        ({"net": "res18"}, "these rows differ in net: res18, wide_res50"),
        ({"hardware": "another CPU"}, "trained on different hardware, so times do not compare"),
        ({"seed": 7}, "b lacks 1 run that other rows have, e.g. bottle seed 1"),
        ({"class_name": "cable"}, "a lacks 1 run that other rows have, e.g. cable seed 1"),
    ],
)
def test_a_comparison_warns_of_what_its_rows_should_share(changes: dict[str, Any], said: str) -> None:
    runs = [result(name="a"), result(name="b") | changes]
    text = " ".join(render_comparison(compare(runs)).split())
    assert f"warning: {said}" in text
    assert text.count("warning") == (2 if "lacks" in said else 1)  # each row lacks the other's run


def test_rows_may_differ_in_what_was_swept_and_in_their_variant() -> None:
    runs = [result(), result(variant="sk_rd4ad", net="res18")]
    assert "warning" in render_comparison(compare(runs))
    assert "warning" not in render_comparison(compare(runs, swept=["net"]))


# Settings a and b on bottle; a alone on bottle and cable together, on VisA, and with one seed on VAD's only class.
ROOTS = {
    "a/bottle": [result(seed=seed, value=value, name="a") for seed, value in ((1, 0.8), (2, 0.82))],
    "b": [result(seed=seed, value=0.5, name="b", train_seconds=30.0) for seed in (1, 2)],
    "both/a": COMPARED[:4],
    "visa": [result(value=0.7, name="a", benchmark="visa")],
    "vad": [without_masks("vad", value=0.6, name="a", benchmark="vad")],
}


def places_of(*roots: str, **options: Any) -> str:
    found = [(Path(root, str(number)), run) for root in roots for number, run in enumerate(ROOTS[root])]
    places = compare_places(found, [Path(root) for root in roots])
    return render_one_table(places, ["image_auroc", "aupro"], **options)


def headers(text: str) -> list[str]:
    return [re.split(r"  +", line) for line in text.splitlines() if line.startswith("setting ")][0]


def test_one_table_has_the_places_side_by_side() -> None:
    text = places_of("a/bottle", "b", "vad")
    bottle = ["bottle image AUROC", "bottle AUPRO", "bottle training"]
    assert headers(text) == ["setting", "n", *bottle, "vad image AUROC", "vad training"]
    a = "a 2 81.00 ± 1.41 81.00 ± 1.41 1 min 00 s 60.00 (n=1) 1 min 00 s"
    assert " ".join(cells(text, "a")) == a
    assert " ".join(cells(text, "b")) == "b 2 50.00 ± 0.00 50.00 ± 0.00 30.0 s – –"
    assert "4 runs of bottle, epochs 200" in text and "1 run of vad, epochs 200" in text and "warning" not in text


def test_the_means_of_one_table_are_those_of_the_classes_below_one_folder() -> None:
    text = places_of("a/bottle", "both/a")
    assert headers(text)[2::3] == ["bottle image AUROC", "mvtec image AUROC"]
    values = "81.00 ± 1.41 81.00 ± 1.41 1 min 00 s 87.00 ± 2.83 87.00 ± 2.83 1 min 00 s"
    assert " ".join(cells(text, "a")) == f"a 2 {values}"


def test_places_of_one_table_have_titles_of_their_own() -> None:
    assert headers(places_of("b", "visa"))[2::3] == ["mvtec (bottle) image AUROC", "visa (bottle) image AUROC"]


def test_one_table_becomes_several_on_a_narrow_terminal() -> None:
    text = places_of("a/bottle", "b", "both/a", width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and len([line for line in lines if line.startswith("setting ")]) == 2
    assert sum(line.count("AUPRO") for line in lines) == 2
    assert places_of("b", markdown=True).count("| setting ") == 1


def test_one_table_says_at_which_place_rows_should_share_something() -> None:
    runs = [(Path("x"), result(name="a")), (Path("x"), result(name="b", epochs=10))]
    text = render_one_table(compare_places(runs, [Path("x")]), ["aupro"])
    assert "warning: bottle: these rows differ in epochs: 10, 200" in text
    swept = render_one_table(compare_places(runs, [Path("x")], ["epochs"]), ["aupro"])
    assert "warning" not in swept


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        json.dumps({"class_name": "bottle"}),
        json.dumps(result(metrics=None)),
        json.dumps(result(value=98.5)),  # percent
        json.dumps(result(value=float("nan"))),
        json.dumps({key: value for key, value in result().items() if key != "oracle"}),
        json.dumps(result(oracle=None)),
        json.dumps(result(oracle={"aupro": 0.9})),
        json.dumps(result(oracle={"aupro": {"value": 0.9, "epoch": 10}})),
        json.dumps(result(oracle=oracle(10, 95.0))),  # percent
        json.dumps(result(oracle=oracle(10, 0.9) | {"epoch": "10"})),
        json.dumps(result(oracle=oracle(10, 0.9) | {"metrics": None})),
    ],
)
def test_a_broken_metrics_file_is_one_line_that_names_it(content: str, tmp_path: Path) -> None:
    save(tmp_path, result())
    broken = tmp_path / "mvtec/rd4ad/bottle/seed1/metrics.json"
    broken.write_text(content)
    with pytest.raises(ValueError) as problem:
        results.collect([tmp_path])
    assert str(broken) in str(problem.value) and "\n" not in str(problem.value)


def test_two_folders_with_the_same_run_are_refused(tmp_path: Path) -> None:
    roots = [save(tmp_path / "a", result()), save(tmp_path / "b", result())]
    with pytest.raises(ValueError, match="hold the same run, mvtec rd4ad bottle 1"):
        results.collect(roots)


def test_insert_replaces_what_stands_between_the_markers_and_can_be_repeated() -> None:
    other = "<!-- table:b -->\n<!-- /table:b -->\nlines `<!-- table:a -->` in the text are no markers\n"
    page = f"before\n<!-- table:a -->\nold\n<!-- /table:a -->\n{other}"
    once = insert(page, "a", "| new |")
    assert once == page.replace("\nold\n", "\n\n| new |\n\n")
    assert insert(once, "a", "| new |") == once


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<!-- table:a -->\n",
        "<!-- /table:a -->\n<!-- table:a -->\n",
        "<!-- table:a -->\n<!-- table:a -->\n<!-- /table:a -->\n",
        "see <!-- table:a --> and <!-- /table:a -->\n",
    ],
)
def test_insert_refuses_a_page_without_its_markers(page: str) -> None:
    with pytest.raises(ValueError, match="<!-- table:a -->"):
        insert(page, "a", "| new |")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = exit_code(lambda: summarize.main([str(argument) for argument in arguments]))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_prints_saves_and_fills_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = save(tmp_path / "runs", result("carpet"), result("grid"))
    (runs / "mvtec/rd4ad/grid/seed1/metrics.json").unlink()
    page = tmp_path / "README.md"
    page.write_text("top\n<!-- table:demo -->\n<!-- /table:demo -->\nend\n")
    code, out, err = command(capsys, runs, "--out", tmp_path / "tables", "--into", page, "--marker", "demo")
    assert code == 0
    assert "carpet" in out and "|" not in out
    assert "unfinished and left out: " in err and "grid" in err
    saved = (tmp_path / "tables/summary.md").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == f"top\n<!-- table:demo -->\n\n{saved}\n<!-- /table:demo -->\nend\n"

    code, out, _ = command(capsys, runs, "--markdown")
    assert (code, out) == (0, saved)
    assert (runs / "summary.csv").is_file()


def test_the_command_compares_in_the_order_of_its_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = save(tmp_path / "runs", result("carpet"), result("carpet", variant="sk_rd4ad", epochs=7))
    page = tmp_path / "README.md"
    page.write_text("<!-- table:demo -->\n<!-- /table:demo -->\n")
    folders = [runs / "mvtec/sk_rd4ad", runs / "mvtec/rd4ad"]
    code, out, _ = command(capsys, *folders, "--compare", "--into", page, "--marker", "demo")
    assert code == 0 and "warning: these rows differ in epochs" in out
    assert out.index("\nsk_rd4ad ") < out.index("\nrd4ad ")
    assert page.read_text(encoding="utf-8").index("| sk_rd4ad ") > 0
    assert not list(runs.rglob("*.md")) and not list(runs.rglob("summary.*"))

    code, out, _ = command(capsys, *folders, "--compare", "--swept", "epochs", "--out", tmp_path, "--markdown")
    assert code == 0 and "warning" not in out
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") == out

    code, out, _ = command(capsys, *folders, "--compare", "--one_table", "aupro", "--out", tmp_path, "--markdown")
    assert code == 0 and "| carpet AUPRO |" in out and "image AUROC" not in out
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") == out
    with pytest.raises(SystemExit):
        command(capsys, *folders, "--one_table", "aupro")
    assert "--one_table goes with --compare" in capsys.readouterr().err


def test_the_command_explains_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, page = save(tmp_path / "runs", result()), tmp_path / "page.md"
    page.write_text("no markers\n")
    (tmp_path / "empty").mkdir()
    cases: dict[str, list[object]] = {
        "nowhere: no such folder": [tmp_path / "nowhere"],
        "no finished run": [tmp_path / "empty"],
        "page.md: must have the line <!-- table:demo -->": [runs, "--into", page, "--marker", "demo"],
        "none.md: no such file": [runs, "--into", tmp_path / "none.md", "--marker", "demo"],
    }
    for said, arguments in cases.items():
        code, out, err = command(capsys, *arguments)
        assert (code, out) == (2, "")
        assert said in err and err.count("\n") == 1
    assert page.read_text() == "no markers\n" and not (runs / "summary.md").exists()
    with pytest.raises(SystemExit) as stopped:
        command(capsys, runs, "--into", page)
    assert stopped.value.code == 2 and "--marker" in capsys.readouterr().err


# --- names, links, two sweeps at once ---

EVIL = "<img src=x onerror=alert(1)>|`a`\\[b](c)\n# d"


def test_names_stay_text_in_markdown_and_on_a_terminal() -> None:
    other = without_masks("metal_nut", name=EVIL, revision="<b>") | {"reasons": dict.fromkeys(PIXEL, "no <masks>")}
    runs = [result(EVIL, name=EVIL), other]
    side_by_side = compare_places([(Path("x"), run) for run in runs], [Path("x")])
    for text in (
        render(tables.summarize(runs), markdown=True),
        render_comparison(compare(runs), markdown=True),
        render_one_table(side_by_side, ["image_auroc"], markdown=True),
    ):
        assert not re.search(r"<(img|b|masks)|`|\]\(|^# ", text, re.MULTILINE)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1, "every row has the same number of cells"
    text = render(tables.summarize(runs), markdown=True)
    assert html.unescape(text).count("<img src=x onerror=alert(1)>|`a`\\[b](c)\\n# d") >= 2
    assert "| metal_nut " in text
    for text in (render(tables.summarize(runs)), render_comparison(compare(runs))):
        assert EVIL not in text and "(c)\\n# d" in text


def test_a_name_with_an_escape_sequence_does_not_reach_the_terminal() -> None:
    runs = [result("a\x1b[2J", name="b\x1b[2J"), without_masks("c\x1b[2J", name="b\x1b[2J")]
    side_by_side = compare_places([(Path("x"), run) for run in runs], [Path("x")])
    texts = [render(tables.summarize(runs)), render_comparison(compare(runs)), render_one_table(side_by_side, PIXEL)]
    assert "\x1b" not in "".join(texts)


def test_a_class_behind_a_link_is_in_the_tables(tmp_path: Path) -> None:
    sweep = save(tmp_path / "runs", result(), result("cable"))
    moved = tmp_path / "other_disk"
    (sweep / "mvtec/rd4ad/cable").rename(moved)
    (sweep / "mvtec/rd4ad/cable").symlink_to(moved)
    (sweep / "mvtec/rd4ad/again").symlink_to(moved)
    (moved / "round").symlink_to(sweep)
    assert sorted(one["class_name"] for one in results.collect([sweep])) == ["bottle", "cable"]
    (moved / "seed1/metrics.json").unlink()
    assert len(results.unfinished([sweep])) == 1
    (moved / "seed1/config.json").unlink()
    assert [one["class_name"] for one in results.collect([sweep, moved])] == ["bottle"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, scandir = save(tmp_path, result(), result("cable")), os.scandir

    def forbidden(path: str) -> Any:
        if str(path).endswith("cable"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError, match="cable: cannot be read"):
        results.collect([sweep])


def test_of_two_sweeps_at_once_the_last_table_has_the_runs_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first collects its class and is slow to write; the second finishes meanwhile."""
    save(tmp_path, result("carpet"))
    collected, go_on = threading.Event(), threading.Event()
    write_tables = rendering.write_tables

    def slowly(*arguments: Any) -> str:
        if not collected.is_set():
            collected.set()
            assert go_on.wait(10)
        return write_tables(*arguments)

    monkeypatch.setattr(rendering, "write_tables", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(report.update_tables, tmp_path)
        assert collected.wait(10)
        save(tmp_path, result("grid"))
        second = pool.submit(report.update_tables, tmp_path)
        time.sleep(0.2)  # long enough to write, were nothing locked
        go_on.set()
        assert "grid" not in first.result(10) and "grid" in second.result(10)
    assert "grid" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {
        "mvtec",
        "runs.csv",
        "summary.csv",
        "summary.json",
        "summary.md",
    }


def test_runs_csv_holds_every_metric_of_every_run(tmp_path: Path) -> None:
    runs = [without_masks("grid", 2, n_test=8), result("=1+1", 1, 0.25, n_test=9, n_anomalous=4)]
    report.update_tables(save(tmp_path, *runs))
    rows = read_csv(tmp_path / "runs.csv")
    assert [(row["class"], row["seed"], row["metric"]) for row in rows] == [
        (name, seed, metric) for name, seed in (("=1+1", "1"), ("grid", "2")) for metric in TITLES
    ]
    first, last = rows[0], rows[-1]
    assert (first["benchmark"], first["name"], first["variant"]) == ("mvtec", "rd4ad", "rd4ad")
    assert (first["value"], first["n_test"], first["n_anomalous"], first["revision"]) == ("0.25", "9", "4", "abc")
    assert (last["metric"], last["value"], last["n_test"], last["n_anomalous"]) == ("aupro_per_image", "", "8", "")


def test_tables_that_cannot_be_written_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, result("carpet"))
    monkeypatch.setattr(rendering, "write_atomically", full)
    assert "carpet" in report.update_tables(tmp_path)
    assert capsys.readouterr().err == f"note: no tables written in {tmp_path}: No space left on device\n"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        report.update_tables(tmp_path, roots=[tmp_path / "nowhere"])


def test_tables_over_one_run_do_not_wait_for_the_run(tmp_path: Path) -> None:
    run = save(tmp_path, result()) / "mvtec/rd4ad/bottle/seed1"
    with FolderLock(run):
        assert "bottle" in report.update_tables(run)


def test_a_formula_as_a_class_name_is_text_in_the_csv(tmp_path: Path) -> None:
    report.write_tables(tmp_path, [result("=1+1", name="@x")])
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        assert {(row["class"], row["name"]) for row in csv.DictReader(file)} == {("'=1+1", "'@x")}
    assert {(row["class"], row["name"]) for row in read_csv(tmp_path / "summary.csv")} == {("=1+1", "@x")}
