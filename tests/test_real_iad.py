"""Real-IAD: splits from JSON, sizes as roots, views as groups, objects as units, and the sample score over views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_report import result
from toys import CPU, make_real_iad, record_of, rows_of, score_again, train

from commandline import exit_code
from config import Config
from dataset import BENCHMARKS, ImageSet, Source, find_classes, locate
from detector import Detector
from experiment import Experiment
from readers.real_iad import REAL_IAD_CLASSES, read_real_iad
from report.comparison import compare, render_comparison
from report.rendering import render, runs_csv, to_csv
from report.tables import summarize
from scoring.metrics import sample_metrics
from scripts.validate_data import main as validate_data

IAD = BENCHMARKS["real_iad"]


def edit(root: Path, change: Callable[[dict[str, Any]], object], name: str = "audiojack") -> None:
    (file,) = root.parent.rglob(f"{name}.json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_real_iad(tmp_path / "Real-IAD")


@pytest.mark.parametrize("nested", [True, False])
def test_splits_labels_views_and_objects_come_from_the_json(tmp_path: Path, nested: bool) -> None:
    root = make_real_iad(tmp_path / "Real-IAD", nested=nested)
    assert len(REAL_IAD_CLASSES.split()) == 30
    for given in (root, root.parent):
        source = locate(IAD, Source(given))
        assert source.root == root and find_classes(IAD, source) == ("audiojack", "usb")
    train, test = (read_real_iad(Source(root), "audiojack", split) for split in ("train", "test"))
    assert len(train) == len(test) == 15 and not any(s.anomalous for s in train)
    assert [s.image for s in test] == sorted(s.image for s in test)
    assert {(s.defect, s.group) for s in test if s.anomalous} == {
        ("AK", "C1"),
        ("AK", "C2"),
        ("AK", "C3"),
        ("BX", "C5"),
    }
    assert {s.group for s in test} == {"C1", "C2", "C3", "C4", "C5"}
    units = {s.unit for s in test}
    assert units == {"audiojack/OK/S0004", "audiojack/NG/AK/S0004", "audiojack/NG/BX/S0005"}
    for s in test:
        assert (s.mask is not None) == s.anomalous
        assert s.mask is None or (s.mask.is_file() and s.mask.name == f"{s.image.stem}_mask.png")


def test_images_of_several_sizes_need_a_choice(root: Path) -> None:
    root.with_name("realiad_raw").mkdir()
    with pytest.raises(ValueError, match=r"holds images of 2 sizes: name one of .*realiad_256, .*realiad_raw"):
        locate(IAD, Source(root.parent))
    assert locate(IAD, Source(root)).root == root
    with pytest.raises(FileNotFoundError, match=r"no realiad_jsons/<class>\.json in it or beside it"):
        locate(IAD, Source(root.parent.parent))
    with pytest.raises(FileNotFoundError, match=r"no realiad_jsons/zipper\.json beside"):
        read_real_iad(Source(root), "zipper", "train")


def first(content: dict[str, Any], split: str = "test", **changes: Any) -> None:
    content[split][0].update(changes)


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    r"1 files of .*audiojack\.json, test, are missing, the first .*S0009.x_C1_\.jpg: unpack the images": lambda c: (
        first(c, image_path="OK/S0009/x_C1_.jpg")
    ),
    r"json, test 1: the path '.*' leads out of": lambda c: first(c, image_path="../../../x_C1_.jpg"),
    r"json, test 1: the path '/etc/x_C1_\.jpg' leads out of": lambda c: first(c, image_path="/etc/x_C1_.jpg"),
    r"json, test 1: the path 'audiojack/\.\./\.\./m\.png' leads": lambda c: first(
        c, anomaly_class="AK", mask_path="../../m.png"
    ),
    r"json, test 1: the path .* leads out of": lambda c: c["meta"].update(prefix="../../"),
    r"json, test 1: OK/S0001/x\.jpg names no view": lambda c: first(c, image_path="OK/S0001/x.jpg"),
    r"json, test 1: wanted the texts anomaly_class, image_path": lambda c: first(c, image_path=3),
    r"json, test 2: wanted the texts": lambda c: c["test"].__setitem__(1, "x"),
    r"json: wanted a table with meta, train and test": lambda c: c.pop("test"),
    r"json: meta\.prefix and meta\.normal_class must be texts": lambda c: c["meta"].update(prefix=1),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_wrong_with_a_json_file_is_one_line(root: Path, says: str) -> None:
    edit(root, WRONG[says])
    with pytest.raises((ValueError, FileNotFoundError), match=says) as problem:
        read_real_iad(Source(root), "audiojack", "test")
    assert "\n" not in str(problem.value)


def test_an_anomaly_in_train_and_a_file_that_is_no_json_are_one_line(root: Path) -> None:
    edit(root, lambda c: first(c, "train", anomaly_class="AK"))
    with pytest.raises(ValueError, match=r"json, train 1: .* is an anomaly in train: this is not the one-class split"):
        read_real_iad(Source(root), "audiojack", "train")
    (root.parent / "realiad_jsons/realiad_jsons/audiojack.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_real_iad(Source(root), "audiojack", "train")


def test_a_defect_without_a_mask_is_not_seen_in_that_view(root: Path) -> None:
    """As in the code published with the data: such an image counts as normal, and its object by its other views."""
    edit(root, lambda c: c["test"][8].update(anomaly_class="AK", mask_path=None))
    test = read_real_iad(Source(root), "audiojack", "test")
    assert sum(s.anomalous for s in test) == 4 and ImageSet(test, 32).has_masks


def test_the_validator_reads_every_listed_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> list[str]:
        flags = ["--dataset", "real_iad", "--data_path", str(root), "--workers", "0"]
        exit_code(lambda: validate_data(flags))
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]

    assert lines() == ["errors: 0, warnings: 0; checked 60 images of 2 classes"]
    (next(root.glob("usb/NG/AK/*/*_C2_*_mask.png"))).write_bytes(b"")
    assert len(lines()) == 2
    (next(root.glob("usb/NG/AK/*/*_C2_*_mask.png"))).unlink()
    found = lines()
    assert len(found) == 2 and "1 files of" in found[0] and "are missing" in found[0]


# --- the sample score ---


def test_the_sample_score_is_the_largest_of_an_objects_images() -> None:
    rng = np.random.default_rng(0)
    units = [f"object {i}" for i in rng.integers(0, 40, 200)]
    labels, scores = rng.random(200) < 0.1, np.round(rng.random(200), 2).astype(np.float32)
    names = sorted(set(units))
    own = {name: [i for i in range(200) if units[i] == name] for name in names}
    truth = [any(labels[i] for i in own[name]) for name in names]
    wanted = roc_auc_score(truth, [max(scores[i] for i in own[name]) for name in names])
    report = sample_metrics(labels, scores, units)
    assert report.values == {"sample_auroc": pytest.approx(wanted)} and not report.reasons and not report.thresholds
    one = sample_metrics(labels, scores, [str(i) for i in range(200)])
    assert one.values["sample_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    undefined = sample_metrics([0, 0], [1.0, 2.0], ["a", "a"])
    assert undefined.defined() == {"sample_auroc": None}
    assert undefined.reasons == {"sample_auroc": "no anomalous sample in the test set"}
    with pytest.raises(ValueError, match="2 labels, 2 scores and 1 units"):
        sample_metrics([0, 1], [1.0, 2.0], ["a"])


def test_tables_have_the_sample_score_only_where_some_run_has_it() -> None:
    plain = [result(seed=seed) for seed in (1, 2)]
    with_units = [run | {"metrics": {**run["metrics"], "sample_auroc": 0.875}} for run in plain]
    for markdown in (True, False):
        assert "sample AUROC" not in render(summarize(plain), markdown=markdown)
        assert "sample AUROC" not in render_comparison(compare(plain), markdown=markdown)
        assert "sample AUROC" in render(summarize(with_units), markdown=markdown)
        assert "87.50 ± 0.00" in render(summarize(with_units), markdown=markdown)
        assert "sample AUROC" in render_comparison(compare(with_units), markdown=markdown)
    assert "sample_auroc" not in to_csv(summarize(plain)) + runs_csv(plain)
    assert "sample_auroc" in to_csv(summarize(with_units)) and runs_csv(with_units).count("sample_auroc") == 2
    text = render(summarize([plain[0], with_units[1]]))
    assert "sample AUROC: no reason recorded" not in text and "87.50 (n=1)" in text


def experiment(root: Path, class_name: str, **changes: Any) -> Experiment:
    settings: dict[str, Any] = {"net": "efficientnet_lite0", "image_size": 64, "workers": 0, "seeds": (1,)}
    return Experiment(Config("real_iad", (class_name,), data_path=root, **settings | changes), CPU)


def test_unified_and_shots_and_what_a_run_knows_of_its_images(root: Path) -> None:
    one = experiment(root, "unified", shots=4)
    assert one.counts["n_train"] == 8 and len(one.test_images) == 30
    assert list(one.test_images.by_class["usb"].units)[0] == "usb/NG/AK/S0004"
    record = experiment(root, "usb").data
    assert {(row.group, row.unit) for row in record.rows} >= {("C1", "usb/OK/S0001"), ("C5", "usb/NG/BX/S0005")}
    assert record.to_csv().splitlines()[0].endswith(",mask_sha256,class_name,group,unit")


@pytest.mark.slow
def test_a_class_is_trained_scored_by_objects_and_verified(
    root: Path, res10: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", "real_iad", "--data_path", root, "--variant", "rd4ad", "--epochs", 1, "--net", res10]
    flags += ["--weights", "random", "--save_path", tmp_path / "runs", "--print_epoch", 1]
    assert train(*flags, "--class", "usb", "unified") == 0
    assert "sample AUROC" in (tmp_path / "runs/real_iad/rd4ad/summary.md").read_text()
    run = tmp_path / "runs/real_iad/rd4ad/usb/seed111"
    scores = {row["path"]: float(row["score"]) for row in rows_of(run / "predictions.csv")}
    normal = max(value for path, value in scores.items() if "/OK/" in path)
    bad = [max(value for path, value in scores.items() if f"/NG/{kind}/" in path) for kind in ("AK", "BX")]
    assert record_of(run)["metrics"]["sample_auroc"] == np.mean([value > normal for value in bad])
    unified = record_of(run.parent.with_name("unified") / "seed111")
    own = [part["metrics"]["sample_auroc"] for part in unified["classes"].values()]
    assert unified["metrics"]["sample_auroc"] == pytest.approx(np.mean(own)) and len(own) == 2
    capsys.readouterr()
    assert score_again(run, "--verify") == 0
    assert score_again(run, "--verify", "--data_path", root.parent) == 0
    assert Detector.load(run).evaluate(experiment(root, "usb").test_images).metrics() == record_of(run)["metrics"]
