"""One model over all classes: scored class by class, told apart in tables; --shots; other runs stay as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import result
from toys import CPU, MakeTree, make_mvtec, record_of, rows_of, score_again, train

import report as tables_of_runs
from config import Config
from dataset import ImageSet, Sample
from detector import Detector
from experiment import Experiment
from flags import parse
from methods import VARIANTS
from methods.mrkd_patches import PATCH_SETTINGS
from report.comparison import compare
from report.published import UNIFIED_METHODS, published
from report.rendering import render
from report.results import METRIC_TITLES, collect
from report.tables import summarize
from run_files import DataRecord, SavedMaps, identity_sha256
from run_files.data import ImageRecord
from scoring.metrics import compute_metrics, mean_over_classes
from scripts import controls, overlay_strip, report, score_maps

CLASSES = ("bottle", "cable", "capsule")


def experiment(root: Path, class_name: str = "unified", **changes: Any) -> Experiment:
    settings: dict[str, Any] = {"net": "efficientnet_lite0", "image_size": 64, "workers": 0, "seeds": (1,), "epochs": 1}
    return Experiment(Config(data_path=root, classes=(class_name,), **settings | changes), CPU)


def paths(images: ImageSet | None) -> list[Path]:
    assert images is not None
    return [sample.image for sample in images.samples]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over three classes, shared by the tests of this file, which leave it as it is."""
    root = tmp_path_factory.mktemp("unified")
    data = make_mvtec(root / "mvtec", CLASSES, train=5, good=2, bad=3)
    flags = ["--data_path", data, "--class", "unified", "--variant", "rd4ad", "--epochs", 1, "--holdout", 0.2]
    assert train(*flags, "--save_path", root / "runs", "--save_maps", "--vis", "--intervals") == 0
    return root / "runs/mvtec/rd4ad/unified/seed111"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.parents[3], tmp_path / "runs")) / run.relative_to(run.parents[3])


# --- per-class runs are what they were ---


@pytest.mark.parametrize(
    ("flags", "sha256"),
    [
        ("", "e4d1f496dcb841e15d80e640b45af723f1a5b436f0e1de50543cb74a129f7944"),
        (
            "--variant rd4ad --class bottle --seed 3",
            "2ea9874946a508725243f3d776d292c63e44194ee47a1fa411f76873cff92603",
        ),
        (
            "--variant masked --class screw --holdout 0.2 --epochs 7",
            "9e9c823a828778eaca6d1c53b20b6eeeee5005f0e462715e486809ce6b7b20b2",
        ),
    ],
)
def test_the_identity_of_a_run_of_one_class_is_that_of_earlier_versions(flags: str, sha256: str) -> None:
    assert identity_sha256(parse(flags.split()).identity()) == sha256


def test_the_record_of_the_images_of_one_class_is_that_of_earlier_versions(tmp_path: Path) -> None:
    for name in ("good/a.png", "bad/b.png", "mask/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    good = Sample(tmp_path / "good/a.png", anomalous=False, defect="good")
    bad = Sample(tmp_path / "bad/b.png", anomalous=True, defect="bad", mask=tmp_path / "mask/b.png")
    record = DataRecord.of({"train": [good], "test": [good, bad]})
    assert record.digests() == {
        "train": {"images": 1, "sha256": "30127c85fd30f7ea90b623b186ecf9fe87c298b8d60aa4a59fece2460a773fc0"},
        "test": {"images": 2, "sha256": "9fd1cb9dd1529d05cbcfcf4d214c8141d709df5bf47b953aa5fac73f74326729"},
    }
    assert record.to_csv().splitlines()[0] == "split,path,defect,anomalous,sha256,mask_sha256"


def test_the_class_of_an_image_is_part_of_what_a_run_knows(tmp_path: Path) -> None:
    rows = [ImageRecord("train", f"{name}/0.png", "good", "0", "a" * 64, "", name) for name in CLASSES]
    record, other = DataRecord(rows), DataRecord([*rows[:2], replace(rows[2], class_name="other")])
    (tmp_path / "data.csv").write_text(record.to_csv())
    assert DataRecord.read(tmp_path / "data.csv").rows == record.rows
    assert other.digests() != record.digests() != DataRecord([replace(row, class_name="") for row in rows]).digests()


# --- the images ---


def test_the_images_are_those_of_every_class_in_order(mvtec_tree: MakeTree) -> None:
    root = mvtec_tree(CLASSES, train=8)
    for changes in ({}, {"holdout": 0.25}, {"patience": 3, "patience_holdout": 0.25, "holdout": 0.25}, {"shots": 3}):
        one = experiment(root, **changes)
        alone = [experiment(root, name, **changes) for name in CLASSES]
        assert one.class_names == CLASSES
        for part in ("normal_images", "test_images", "train_images"):
            assert paths(getattr(one, part)) == [path for other in alone for path in paths(getattr(other, part))]
        if one.held_out_images is not None:
            assert paths(one.held_out_images) == [p for other in alone for p in paths(other.held_out_images)]
        if one.normals is not None:
            assert paths(one.normals.images) == [p for o in alone if o.normals for p in paths(o.normals.images)]
        for name, other in zip(CLASSES, alone, strict=True):
            assert one.counts_of(name) == {key: n for key, n in other.counts.items() if key != "shots"}
            assert {s.class_name for s in one.test_images.by_class[name].samples} == {name}
        assert not any(sample.class_name for sample in alone[0].normal_images.samples)


def test_shots_are_nested_and_drawn_by_class_and_seed_alone(mvtec_tree: MakeTree) -> None:
    root = mvtec_tree(CLASSES, train=12)

    def drawn(shots: int, class_name: str = "bottle", **changes: Any) -> list[Path]:
        return paths(experiment(root, class_name, shots=shots, **changes).train_images)

    draws = [drawn(shots) for shots in range(1, 13)]
    for number, (fewer, more) in enumerate(zip(draws, draws[1:], strict=False), 1):
        assert len(set(fewer)) == number and set(fewer) < set(more) and fewer == sorted(fewer)
    assert draws[-1] == paths(experiment(root, "bottle").train_images)
    assert drawn(4, variant="drd", epochs=3, batch_size=2) == draws[3]
    assert len({tuple(path.name for path in drawn(4, seeds=(seed,))) for seed in range(8)}) > 4
    assert len({tuple(path.name for path in drawn(4, name)) for name in CLASSES}) > 1


def test_no_shot_is_held_out(mvtec_tree: MakeTree) -> None:
    root, held_out = mvtec_tree(CLASSES, train=12), {"holdout": 0.25, "patience": 2, "patience_holdout": 0.25}
    one = experiment(root, "unified", **held_out, shots=7)
    assert one.normals is not None
    used = [set(paths(images)) for images in (one.train_images, one.held_out_images, one.normals.images)]
    assert [len(images) for images in used] == [21, 6, 9]
    assert len(set.union(*used)) == 36
    with pytest.raises(ValueError, match=r"^--shots 8: bottle has 7 training images that are not held out; give at"):
        len(experiment(root, "unified", **held_out, shots=8).train_images)


def test_shots_are_part_of_a_run() -> None:
    assert parse(["--variant", "rd4ad", "--shots", "4"]).identity() == {"variant": "rd4ad", "shots": 4}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_all_classes_by_its_general_settings(variant: str) -> None:
    config = Config(variant=variant, classes=("unified",))
    assert config.training.epochs == VARIANTS[variant].training.epochs
    assert "unified" not in {*PATCH_SETTINGS, *VARIANTS[variant].training.epochs_of}


# --- what is asked for ---


def folders(config: Config) -> list[str]:
    return [run.run_folder.relative_to(config.sweep_folder).as_posix() for run in config.runs()]


def test_unified_is_a_run_of_its_own_beside_those_of_classes(mvtec_tree: MakeTree) -> None:
    root = mvtec_tree(CLASSES, train=2)
    single = [f"{name}/seed1" for name in CLASSES]
    for classes, expected in {
        ("all",): single,
        ("unified",): ["unified/seed1"],
        ("unified", "cable"): ["unified/seed1", "cable/seed1"],
        ("all", "unified"): [*single, "unified/seed1"],
    }.items():
        assert folders(Config(data_path=root, classes=classes, seeds=(1,))) == expected


@pytest.mark.parametrize(
    ("classes", "there", "message"),
    [
        (("unified",), ("bottle",), "--class unified: needs two classes or more; mvtec has bottle alone"),
        (("unified",), ("a", "unified"), "--class unified: stands for one model over all classes; rename the class"),
        (("all",), ("a", "unified"), "--class unified: stands for one model over all classes; rename the class"),
        (("all", "bottle"), CLASSES, "unknown --class all: mvtec has bottle, cable, capsule"),
    ],
)
def test_what_cannot_be_one_model_is_refused_in_one_line(
    classes: Sequence[str], there: Sequence[str], message: str, mvtec_tree: MakeTree
) -> None:
    with pytest.raises(ValueError) as problem:
        Config(data_path=mvtec_tree(there, train=1), classes=tuple(classes)).runs()
    assert str(problem.value).startswith(message) and "\n" not in str(problem.value)


def test_classes_that_are_anomalies_of_one_another_have_no_common_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--class unified: in cifar10 the normal images of one class are anomalies"):
        Config(dataset="cifar10", classes=("unified",))._check_unified(("cat", "dog"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--class unified --anomalib_scores",
            "--anomalib_scores: its threshold is chosen on the test set of one class",
        ),
        ("--shots 0", "--shots 0: must be at least 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(flags: str, message: str) -> None:
    with pytest.raises(ValueError) as problem:
        parse(flags.split())
    assert str(problem.value).startswith(message)


def test_no_name_looks_like_one_model_over_all_classes() -> None:
    with pytest.raises(ValueError, match="--name 'rd4ad, unified': tables call one model over all classes so"):
        Config(name="rd4ad, unified")


def test_the_controls_have_no_common_model(mvtec_tree: MakeTree) -> None:
    with pytest.raises(ValueError, match="--class unified: the controls train no model"):
        controls.main(["--data_path", str(mvtec_tree(CLASSES, train=1)), "--class", "unified"])


# --- a run ---


def test_each_class_has_the_metrics_of_its_own_maps_and_the_run_their_mean(run: Path) -> None:
    record, rows = record_of(run), rows_of(run / "predictions.csv")
    maps, names = SavedMaps.read(run, len(rows)), np.array([row["class_name"] for row in rows])
    assert maps.masks is not None and list(maps.classes) == names.tolist()
    scores, labels = np.array([float(row["score"]) for row in rows], np.float32), maps.labels
    assert labels.tolist() == [row["anomalous"] == "1" for row in rows]
    reports = []
    for name in CLASSES:
        own = names == name
        reports.append(compute_metrics(labels[own], scores[own], maps.maps[own], maps.masks[own]))
        counts = {"n_train": 4, "n_held_out": 0, "n_calibration": 1, "n_test": 5, "n_anomalous": 3}
        found = record["classes"][name]
        assert found["metrics"] == reports[-1].defined()
        assert list(found["reasons"]) == ["aupimo"], "two normal images of 64 pixels are too few"
        assert {key: found[key] for key in counts} == counts
    assert record["metrics"]["aupimo"] is None and "found 8192" in record["reasons"]["aupimo"]
    for metric in [name for name in METRIC_TITLES if name not in ("aupimo", "sample_auroc")]:
        mean = np.mean([report.values[metric] for report in reports])
        assert record["metrics"][metric] == pytest.approx(mean, abs=1e-12)
    pooled = compute_metrics(labels, scores, maps.maps, maps.masks).values["pixel_ap"]
    assert pooled != pytest.approx(record["metrics"]["pixel_ap"], abs=1e-6)
    assert (record["class_name"], record["n_train"], record["n_test"]) == ("unified", 12, 15)


def test_files_name_the_class_of_each_image(run: Path) -> None:
    rows = rows_of(run / "data.csv")
    assert [row["class_name"] for row in rows if row["split"] == "test"] == [n for n in CLASSES for _ in range(5)]
    assert list(rows_of(run / "predictions.csv")[0]) == ["path", "class_name", "defect", "anomalous", "score"]
    overlays = {path.parent.name for path in (run / "overlays").glob("*/*.png")}
    assert overlays == set(CLASSES) and len(list((run / "overlays").glob("*/*.png"))) == 15


def test_the_threshold_is_one_and_says_what_it_does_to_each_class(run: Path) -> None:
    threshold, rows = json.loads((run / "threshold.json").read_text()), rows_of(run / "predictions.csv")
    assert len(threshold["scores"]) == 3
    for name, found in threshold["test"]["classes"].items():
        above = [row for row in rows if row["class_name"] == name and float(row["score"]) > threshold["value"]]
        assert found["found"] == sum(row["anomalous"] == "1" for row in above)
    assert threshold["test"]["n_bad"] == 9


def test_a_run_is_scored_again_to_the_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_again(run) == 0
    text = capsys.readouterr().out
    assert "identical to the recorded metrics" in text and "cable aupro" in text
    detector = Detector.load(run, device="cpu")
    images = Experiment(detector.config, CPU).test_images
    kept, dropped = detector.evaluate(images, keep_maps=True), detector.evaluate(images)
    assert kept.metrics() == dropped.metrics()
    assert dropped.maps is None and all(part.maps is None for part in dropped.classes.values())
    assert kept.maps is not None and np.shares_memory(kept.maps, kept.classes["cable"].maps)


def test_verify_looks_at_each_class(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_again(copied, "--verify") == 0
    assert "verified: the run is as recorded" in capsys.readouterr().out
    for key, value, line in (
        ("metrics", {"aupro": 0.5}, "metrics: cable aupro is 0.5"),
        ("metrics", {"image_auroc": 0.5}, "image metrics: cable image_auroc is 0.5"),
        ("n_train", 3, "settings and counts: cable: n_train is 3, wanted 4"),
    ):
        record = record_of(copied)
        own = record["classes"]["cable"]
        own[key] = {**own[key], **value} if isinstance(value, dict) else value
        text = (copied / "metrics.json").read_text()
        (copied / "metrics.json").write_text(json.dumps(record))
        assert score_again(copied, "--verify") == 1
        assert line in capsys.readouterr().out
        (copied / "metrics.json").write_text(text)


def test_a_class_without_metrics_is_refused_by_its_name(copied: Path) -> None:
    record = record_of(copied)
    record["classes"]["cable"]["metrics"]["aupro"] = None
    (copied / "metrics.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"classes\.cable\.metrics\.aupro must be null where reasons\.aupro says why"):
        collect([copied])


def test_another_map_is_scored_over_all_classes(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_again(copied, "--anomaly_map", "add") == 0
    other = copied.parents[2] / "rd4ad-add/unified/seed111"
    assert set(record_of(other)["classes"]) == set(CLASSES)
    assert "cable aupro" in capsys.readouterr().out


def test_saved_maps_are_scored_class_by_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_maps.main([str(run / "maps.npz"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == {name: record_of(run)["metrics"][name] for name in metrics}


def test_intervals_are_those_of_each_class(run: Path) -> None:
    for own in record_of(run)["classes"].values():
        assert set(own["intervals"]["metrics"]) <= set(METRIC_TITLES) and own["intervals"]["metrics"]
    assert "intervals" not in record_of(run)


def test_the_page_has_a_section_for_each_class(run: Path, tmp_path: Path) -> None:
    assert report.main([str(run), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for name in CLASSES:
        assert page.count(f">{name}<") >= 1
    assert "rd4ad, unified" in page
    curves = rows_of(tmp_path / "curves.csv")
    assert {row["class"] for row in curves} == set(CLASSES)


def test_a_strip_of_overlays_is_of_runs_of_one_class(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="want the folders of finished runs of one class"):
        overlay_strip.main([str(run), "--out", str(tmp_path / "strip.png")])


# --- tables ---


def test_a_run_is_a_result_for_each_class(run: Path) -> None:
    record, results = record_of(run), collect([run.parents[3]])
    assert [(one["class_name"], one["unified"], one["seed"]) for one in results] == [(c, True, 111) for c in CLASSES]
    assert [one["metrics"] for one in results] == [record["classes"][name]["metrics"] for name in CLASSES]
    assert sum(one["train_seconds"] for one in results) == pytest.approx(record["train_seconds"])
    (table,) = summarize(results)
    assert (table.name, table.variant, table.facts["runs"]) == ("rd4ad, unified", "rd4ad", 1)
    assert "1 run, each one model over all classes, 1 seed (111)" in render([table])


def unified(class_name: str, value: float = 0.9, **changes: Any) -> dict[str, Any]:
    return result(class_name, value=value, **{"unified": True} | changes)


def test_one_model_and_models_of_single_classes_never_share_a_mean() -> None:
    runs = [result("bottle", value=0.8), unified("bottle", 0.6), result("cable", value=0.8), unified("cable", 0.6)]
    found = {table.name: table.rows[-1].metrics["aupro"].mean for table in summarize(runs)}
    assert found == {"rd4ad": pytest.approx(0.8), "rd4ad, unified": pytest.approx(0.6)}
    (comparison,) = compare(runs)
    assert [(row.label, row.classes) for row in comparison.rows] == [("rd4ad", 2), ("rd4ad, unified", 2)]
    assert not comparison.warnings and any("one model over all classes" in note for note in comparison.notes)


def test_published_metrics_are_those_of_the_same_setting() -> None:
    from dataset import BENCHMARKS

    classes = BENCHMARKS["mvtec"].classes
    for runs, value, metric in (
        ([result(c) for c in classes], 0.985, "image_auroc"),
        ([unified(c) for c in classes], 0.936, "image_auroc"),
        ([unified(c) for c in classes], 0.912, "aupro"),
        ([unified(c, variant="rdpp") for c in classes], 0.932, "aupro"),
    ):
        (table,) = summarize(runs)
        assert table.rows[-1].published[metric].value == pytest.approx(value)
    (table,) = summarize([unified(c) for c in classes])
    assert "aupro_per_image" not in table.rows[-1].published and not any(row.published for row in table.rows[:-1])
    assert UNIFIED_METHODS["rd4ad, unified"].sentence in " ".join(render([table]).split())


def test_few_shots_are_said_and_not_compared_with_published_metrics() -> None:
    (table,) = summarize([result("carpet", shots=4), result("carpet", seed=2)])
    assert table.warnings == ["these runs differ in shots: 4, all"]
    (table,) = summarize([result("carpet", shots=4)])
    assert not table.rows[0].published and "4 training images a class" in render([table])
    (table,) = summarize([result("carpet")])
    assert table.rows[0].published and "training images a class" not in render([table])


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (("mvtec", "rd4ad, unified", "mean", "pixel_auroc"), 0.958),
        (("mvtec", "rdpp, unified", "mean", "image_auroc"), 0.979),
        (("visa", "rd4ad, unified", "mean", "aupro"), 0.919),
        (("visa", "rdpp, unified", "mean", "image_auroc"), 0.939),
        (("mpdd", "rd4ad, unified", "mean", "image_auroc"), 0.913),
        (("btad", "rdpp, unified", "mean", "aupro"), 0.790),
    ],
)
def test_the_published_metrics_of_the_unified_setting(wanted: tuple[str, str, str, str], value: float) -> None:
    found = published(*wanted)
    assert found is not None and found[0] == pytest.approx(value) and "ADer" in found[1]


def test_the_mean_is_over_the_classes_that_have_the_metric() -> None:
    whole = compute_metrics([0, 1, 1], [0.1, 0.2, 0.0])
    normal = compute_metrics([0, 0], [0.1, 0.2])
    report = mean_over_classes([whole, normal, compute_metrics([0, 1], [0.1, 0.2])])
    assert report.values["image_auroc"] == pytest.approx((0.5 + 1) / 2) and not report.thresholds
    assert mean_over_classes([normal, normal]).reasons["image_auroc"] == "no anomalous image in the test set"
    assert tables_of_runs.one_line(report.values).startswith("image AUROC 0.7500")
