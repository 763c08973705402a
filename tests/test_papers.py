"""Tables of papers and sweeps: ours beside the published metrics, gaps that stay gaps, and why some do not compare."""

from __future__ import annotations

from typing import Any

import pytest
from toys import line_beginning

from commandline import exit_code
from dataset import BENCHMARKS
from report.papers import ICCK, PAPERS, PaperTable
from report.published import PUBLISHED_NAMES, methods, published_metric
from report.results import METRIC_TITLES, Result
from scripts import paper, sweep
from scripts.paper import make_plans, render_paper
from scripts.sweep import ABLATIONS, check_distinct, plan

TABLES = [(name, number) for name, tables in PAPERS.items() for number in tables]
MVTEC = BENCHMARKS["mvtec"].classes


def result(class_name: str, value: float, **changes: Any) -> Result:
    """A finished run with the published settings, every metric being `value`."""
    fixed = {"benchmark": "mvtec", "variant": "masked", "seed": 111, "net": "wide_res50", "image_size": 256}
    metrics = dict.fromkeys(METRIC_TITLES, value)
    own = {"class_name": class_name, "epochs": 200, "metrics": metrics, "oracle": {}, "train_seconds": 1.0}
    return fixed | own | changes


def shown(table: PaperTable, *runs: list[Result], flags: str = "") -> str:
    """The table over these runs of its settings."""
    return render_paper(table, make_plans(table, flags.split()), runs)


def prose(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("name", "number"), TABLES)
def test_every_row_names_metrics_that_were_published(name: str, number: str) -> None:
    table = PAPERS[name][number]
    for setting in table.settings:
        assert setting.method in methods()
        classes = ("mean", *BENCHMARKS[table.benchmark].classes)
        known = [
            published_metric(setting.method, table.benchmark, c, metric) for c in classes for metric in table.metrics
        ]
        assert any(known)
    assert set(table.metrics) <= {*PUBLISHED_NAMES, "aupro"}


@pytest.mark.parametrize(("name", "number"), TABLES)
def test_every_row_is_run_with_settings_of_its_own(name: str, number: str) -> None:
    plans = make_plans(PAPERS[name][number], ["--data_path", "D"])
    check_distinct(plans)
    assert len({one.config.sweep_folder for one in plans}) == len(plans)
    epochs = 100 if name == "ader" else None
    for one in plans:
        assert (one.config.image_size, one.config.epochs, one.config.batch_size) == (256, epochs, None)


def test_one_model_over_all_classes_stands_beside_ader_s_metrics() -> None:
    runs = [result(c, 0.9, variant="rd4ad", unified=True) for c in MVTEC]
    text = shown(PAPERS["ader"]["rd4ad_mvtec"], runs)
    assert line_beginning(text, "mean", "image", "AUROC").endswith("1 90.00 93.60 -3.60")
    assert line_beginning(text, "mean", "AUPRO").endswith("1 90.00 91.20 -1.20")
    assert line_beginning(text, "carpet", "AUPRO").endswith("90.00 not published –")
    assert "ours departs" not in prose(text) and "published: one model over all classes as trained by ADer" in prose(
        text
    )


def test_no_row_of_icck_is_left_out() -> None:
    own = {name for name in methods() if name.startswith("ICCK")}
    assert {setting.method for table in PAPERS["icck"].values() for setting in table.settings} == own


def test_the_published_consistency_weight_of_sk_rd4ad_is_that_of_the_preset() -> None:
    for benchmark in ("mvtec", "visa"):
        table = PAPERS["sk_rd4ad"][benchmark]
        (one,) = make_plans(table, [])
        assert one.config.rate is None and any("consistency weight to 0.005" in note for note in table.notes)


def test_classes_and_their_mean_stand_beside_the_published_metrics() -> None:
    # published, image AUROC: carpet 100 (ICCK table 1), mean 99.1
    carpet = published_metric(ICCK, "mvtec", "carpet", "image_auroc")
    assert carpet is not None
    text = shown(PAPERS["icck"]["1"], [result(c, 0.99) for c in MVTEC])
    assert (
        line_beginning(text, "carpet")
        == f"carpet image AUROC 1 99.00 {100 * carpet[0]:.2f} {99 - 100 * carpet[0]:+.2f}"
    )
    assert line_beginning(text, "mean") == "mean image AUROC 1 99.00 99.10 -0.10"
    assert "warning" not in text


def test_seeds_have_their_spread_and_number() -> None:
    runs = [result(c, value, seed=seed) for c in MVTEC for seed, value in [(1, 0.98), (2, 1.0)]]
    assert line_beginning(shown(PAPERS["icck"]["1"], runs), "mean") == "mean image AUROC 2 99.00 ± 1.41 99.10 -0.10"


def test_the_per_image_aupro_is_compared_and_the_pooled_one_stands_beside_it() -> None:
    text = shown(PAPERS["icck"]["3"], [result(c, 0.9) for c in MVTEC])
    assert line_beginning(text, "mean", "AUPRO", "per", "image").endswith("1 90.00 95.90 -5.90")
    assert line_beginning(text, "mean", "AUPRO", "1").endswith("90.00 not published –")


def test_what_was_not_published_is_not_filled_in() -> None:
    runs = [result(c, 0.9, variant="sk_rd4ad") for c in MVTEC]
    text = shown(PAPERS["sk_rd4ad"]["mvtec"], runs)
    assert line_beginning(text, "cable", "pixel", "AUROC").endswith("90.00 not published –")
    assert line_beginning(text, "mean", "pixel", "AUROC").endswith("90.00 98.06 -8.06")
    text = shown(PAPERS["icck"]["2"], [result("deer", 0.9, benchmark="cifar10")])
    assert line_beginning(text, "deer", "image").endswith("90.00 not published –")


def test_a_mean_over_some_classes_is_not_compared() -> None:
    text = shown(PAPERS["icck"]["1"], [result(c, 0.99) for c in MVTEC[:3]])
    assert line_beginning(text, "mean (3 of 15)").endswith("99.00 99.10 –")
    assert "warning: a mean over some of the classes" in prose(text)


@pytest.mark.parametrize("changes", [{"net": "res18"}, {"teacher_weights": "random:1"}])
def test_another_teacher_is_not_compared_and_said(changes: dict[str, Any]) -> None:
    text = shown(PAPERS["icck"]["1"], [result(c, 0.99, **changes) for c in MVTEC])
    assert line_beginning(text, "mean").endswith("99.00 99.10 –")
    assert "another teacher: not comparable" in prose(text)


def test_settings_are_rows_of_their_own_teachers() -> None:
    nets = ("res18", "res50", "wide_res50")
    text = shown(PAPERS["icck"]["4"], *([result(c, 0.99, net=net) for c in MVTEC] for net in nets))
    assert line_beginning(text, "res18", "image").endswith("99.00 98.20 +0.80")
    assert line_beginning(text, "wide_res50", "pixel").endswith("99.00 98.50 +0.50")
    assert "warning" not in text


def test_assumed_rows_are_marked_and_not_compared() -> None:
    runs = [result(c, 0.99) for c in MVTEC]
    text = shown(PAPERS["icck"]["6"], runs, runs, runs, runs)
    assert line_beginning(text, "baseline", "image").endswith("99.00 98.50 +0.50")
    assert line_beginning(text, "simam", "image").endswith("99.00 98.60? –")
    assert "mixes in FMM" in prose(text) and "could not be read" in prose(text)
    text = shown(PAPERS["icck"]["7"], *([runs] * 7))
    assert line_beginning(text, "0", "image").endswith("96.50? –") and line_beginning(text, "0+1+2", "image").endswith(
        "99.10 -0.10"
    )


def test_the_best_epoch_on_the_test_set_has_a_column_of_its_own() -> None:
    best = {"epoch": 40, "rule": "mean of pixel_auroc, aupro_per_image", "metrics": {"pixel_auroc": 0.97}}
    runs = [result(c, 0.9, variant="sk_rd4ad", oracle=best) for c in MVTEC]
    text = shown(PAPERS["sk_rd4ad"]["mvtec"], runs)
    assert line_beginning(text, "mean", "pixel").endswith("1 90.00 97.00 98.06 -8.06")
    assert "chosen on the test set (oracle), by the highest mean of pixel_auroc, aupro_per_image" in prose(text)
    assert "best on test" not in shown(PAPERS["icck"]["1"], [result("carpet", 0.9)])


def test_both_protocols_stand_below() -> None:
    text = prose(shown(PAPERS["drd"]["mvtec"], [result("carpet", 0.9, variant="drd")]))
    assert "of the last epoch; no test image chooses anything" in text
    assert "stopped early on the test set (oracle); AUPRO not published" in text
    assert "source: GE-123-cpu/Dual-Reverse-Distillation@e79ab0d" in text


def test_flags_that_depart_from_the_published_settings_are_said() -> None:
    runs = [result("carpet", 0.9)]
    text = prose(shown(PAPERS["icck"]["1"], runs, flags="--epochs 3 --lr 0.1 --class carpet --seeds 1 2 --workers 0"))
    assert "departs from the published settings: epochs 3 instead of 200, learning_rate 0.1 instead of 0.001" in text
    assert "workers" not in text and "seeds 1" not in text
    rdpp = PAPERS["rdpp"]["mvtec"]  # its classes have their own epochs
    assert "departs" not in shown(rdpp, [result("carpet", 0.9, variant="rdpp", epochs=10)], flags="--class carpet")


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_setting_of_a_sweep_is_a_run_and_a_folder_of_its_own(name: str) -> None:
    ablation = ABLATIONS[name]
    plans = [plan(ablation.flags, setting, []) for setting in ablation.settings]
    check_distinct(plans)
    assert len({one.config.sweep_folder for one in plans}) == len(plans) == len({one.setting.label for one in plans})


def test_the_sweeps_hold_what_they_are_for() -> None:
    labels = {name: [setting.label for setting in ablation.settings] for name, ablation in ABLATIONS.items()}
    assert labels["skips"] == ["none", "E3", "E2", "both"]
    assert labels["levels"] == ["0", "1", "2", "0+1", "0+2", "1+2", "0+1+2"]
    assert len(labels["losses"]) == 12 and {"cosine", "mse+cosine+consistency"} <= set(labels["losses"])
    assert len(labels["masked"]) == 8 and {"none", "fmm", "scconv+simam", "scconv+simam+fmm"} <= set(labels["masked"])
    assert {"res18", "res34", "res50", "wide_res50", "efficientnet_lite0"} == set(labels["backbones"])


def test_further_flags_win() -> None:
    ablation = ABLATIONS["levels"]
    config = plan(f"--epochs 5 {ablation.flags}", ablation.settings[3], "--epochs 9 --levels 1".split()).config
    assert (config.epochs, list(config.train_levels), config.levels) == (9, [0, 1], (1,))


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (sweep, "skips none both --skips E3", "none and both are the same run"),
        (sweep, "skips none --name own", "--name: a sweep names the folders of its settings itself"),
        (sweep, "skips E4", "unknown setting E4: choose from none, E3, E2, both"),
        (sweep, "skips --epochs -1", "--epochs"),
        (paper, "icck 8", "unknown table 8: choose from 1, 2, 3, 4, 5, 6, 7"),
        (paper, "icck 1 2", "tables of cifar10, mvtec at once"),
        (paper, "drd --dataset visa", "--dataset visa: this table is of mvtec"),
    ],
)
def test_bad_input_is_one_line(command: Any, arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: command.main(arguments.split())) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize(("command", "arguments"), [(sweep, "nothing"), (paper, "nothing"), (paper, "--epochs 1")])
def test_an_unknown_sweep_or_paper_names_those_there_are(
    command: Any, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments.split())
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
