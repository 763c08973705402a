"""`scripts.compare`: what is paired and what is refused, what is said of a difference and what is not, its files."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import exit_code
from report import difference_tables
from report.differences import Comparison, compare_sides
from report.page import write_page
from report.pairing import check_same_images, sides_below
from report.results import METRIC_TITLES, collect_runs
from run_files import DataRecord, SavedMaps
from run_files.csv_files import read_csv, to_csv
from run_files.data import ImageRecord
from scoring.comparing import compare_aurocs
from scoring.intervals import Bootstrap
from scoring.metrics import compute_metrics
from scripts import compare
from utils import file_sha256

CLASSES = ("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather")
SIDE = 16  # pixels of a map
NORMAL, ANOMALOUS = 12, 14


def save_run(
    root: Path,
    name: str,
    class_name: str,
    seed: int = 0,
    strength: float = 2.0,
    maps: bool = True,
    changed: bool = False,
    **facts: Any,
) -> Path:
    """A finished run of an invented method with defects of this strength; `changed`: one image is another one."""
    folder = root / "mvtec" / name / class_name / f"seed{seed}"
    folder.mkdir(parents=True)
    images = np.random.default_rng(sum(map(ord, class_name)))  # the same for all methods and seeds
    labels = np.arange(NORMAL + ANOMALOUS) >= NORMAL
    masks = np.zeros((len(labels), SIDE, SIDE), bool)
    for number in np.flatnonzero(labels):
        y, x = images.integers(1, SIDE - 6, 2)
        masks[number, y : y + 4, x : x + 4] = True
    hard = images.normal(size=(len(labels), 1, 1))
    own = np.random.default_rng([seed, *name.encode()])
    scored = (own.normal(size=masks.shape) + hard + masks * strength * images.uniform(0, 2, hard.shape)).astype("f4")
    scores = scored.max(axis=(1, 2))
    kinds = ["good" if not label else "crack" for label in labels]
    paths = [f"{kind}/{number:03}.png" for number, kind in enumerate(kinds)]
    hashes = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    hashes[0] = "0" * 64 if changed else hashes[0]
    rows = [
        ImageRecord("test", path, kind, str(int(label)), sha256, sha256 if label else "")
        for path, kind, label, sha256 in zip(paths, kinds, labels, hashes, strict=True)
    ]
    record = DataRecord(rows)
    (folder / "data.csv").write_text(record.to_csv())
    (folder / "config.json").write_text(json.dumps({"config": {}, "identity": {"data": record.digests()}}))
    lines = [[p, k, int(a), f"{s:.9g}"] for p, k, a, s in zip(paths, kinds, labels, scores, strict=True)]
    (folder / "predictions.csv").write_text(to_csv(["path", "defect", "anomalous", "score"], lines))
    if maps:
        SavedMaps(scored, masks, labels, (0.0, 1.0), "c" * 64).write(folder)
    metrics = {
        "benchmark": "mvtec",
        "variant": "rd4ad",
        "name": name,
        "class_name": class_name,
        "seed": seed,
        "image_size": SIDE,
        "net": "wide_res50",
        "epochs": 1,
        "n_test": len(labels),
        "n_anomalous": ANOMALOUS,
        "oracle": {},
        "metrics": compute_metrics(labels, scores, scored, masks).defined(),
        "checkpoint_sha256": "c" * 64,
        "predictions_sha256": file_sha256(folder / "predictions.csv"),
        "revision": "abc",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | facts))
    return folder


def save_runs(
    root: Path,
    strengths: dict[str, float],
    classes: Sequence[str] = CLASSES,
    seeds: Sequence[int] = (0, 1),
    **facts: Any,
) -> list[Path]:
    """Runs of several methods; returns the folder of each."""
    for name, strength in strengths.items():
        for class_name in classes:
            for seed in seeds:
                save_run(root, name, class_name, seed, strength, **facts)
    return [root / "mvtec" / name for name in strengths]


def compared(folders: Sequence[Path], metrics: Sequence[str] = ("image_auroc",), **options: Any) -> Comparison:
    return compare_sides(sides_below(folders), metrics, Bootstrap(replicates=200), **options)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        words = [*map(str, arguments), "--replicates", "200"]
        code = exit_code(lambda: compare.main(words))
        return code, *capsys.readouterr()

    return command


def test_a_better_method_is_called_better_and_the_numbers_are_those_of_the_runs(tmp_path: Path) -> None:
    folders = save_runs(tmp_path, {"strong": 4.0, "weak": 0.5})
    (difference,) = compared(folders).differences
    assert (difference.first, difference.second, len(difference.classes)) == ("strong", "weak", 7)
    by_place = {
        (r["name"], r["class_name"], r["seed"]): r["metrics"]["image_auroc"] for _, r in collect_runs([tmp_path])
    }
    for one in difference.classes:
        wanted = {s: by_place["strong", one.class_name, s] - by_place["weak", one.class_name, s] for s in (0, 1)}
        assert one.seeds == pytest.approx(wanted) and one.difference == pytest.approx(sum(wanted.values()) / 2)
        assert (one.normal, one.anomalous) == (NORMAL, ANOMALOUS)
        assert one.images is not None and one.images.low < one.difference < one.images.high
    assert difference.difference == pytest.approx(np.mean([one.difference for one in difference.classes]))
    over = difference.over_classes
    assert over is not None and over.p == over.wilcoxon == over.least_p == 2 / 2**7 and over.low is not None
    answer, images = difference_tables.verdict(difference, 0.95)
    assert answer.startswith("strong is better than weak in image AUROC by ") and "p 0.016 over 7 classes)" in answer
    assert images.startswith("On these 7 classes, for images like those tested, strong is better")
    (turned,) = compared(folders[::-1]).differences
    assert turned.difference == -difference.difference
    assert difference_tables.verdict(turned, 0.95) == [answer, images]


def test_delong_is_that_of_the_predictions(tmp_path: Path) -> None:
    folders = save_runs(tmp_path, {"a": 1.5, "b": 1.0}, ["bottle"])
    (difference,) = compared(folders).differences
    labels, sides = None, []
    for folder in folders:
        text = [(folder / f"bottle/seed{s}/predictions.csv").read_text().splitlines()[1:] for s in (0, 1)]
        sides.append([[float(line.split(",")[3]) for line in lines] for lines in text])
        labels = np.array([line.split(",")[2] == "1" for line in text[0]])
    assert labels is not None
    wanted = compare_aurocs(labels, np.array(sides[0], "f4"), np.array(sides[1], "f4"))
    images = difference.classes[0].images
    assert wanted is not None and images is not None
    assert (images.low, images.high, images.p) == pytest.approx((*wanted.interval(0.95), wanted.p))


def test_one_class_has_no_test_over_classes_and_few_say_what_they_cannot_show(tmp_path: Path) -> None:
    one = save_runs(tmp_path / "one", {"a": 4.0, "b": 0.5}, CLASSES[:1])
    (difference,) = compared(one).differences
    assert difference.over_classes is None
    first, second = difference_tables.verdict(difference, 0.95)
    assert first.startswith("On bottle, for images like those tested, a is better than b in image AUROC by ")
    assert second == "One class cannot say what holds on others: there is no test over classes."
    few = save_runs(tmp_path / "few", {"a": 4.0, "b": 0.5}, CLASSES[:3])
    (difference,) = compared(few).differences
    said = difference_tables.verdict(difference, 0.95)
    assert (
        said[0] == "No test over classes can tell a and b apart in image AUROC: 3 classes cannot give a p below 0.25."
    )
    assert said[1].startswith("On these 3 classes, for images like those tested, a is better than b")


def test_equal_methods_are_not_told_apart(tmp_path: Path) -> None:
    (difference,) = compared(save_runs(tmp_path, {"a": 1.0, "b": 1.0})).differences
    over, images = difference_tables.verdict(difference, 0.95)
    assert (
        over.startswith("No difference of a and b in image AUROC is shown (p ") and "the interval allows from " in over
    )
    assert "no difference in image AUROC is shown" in images
    same = save_runs(tmp_path / "same", {"a": 1e4, "b": 1e4})
    (difference,) = compared(same).differences
    over, images = difference_tables.verdict(difference, 0.95)
    assert "7 classes, of which none differ, cannot give a p below 1." in over
    assert images == "On these 7 classes, no test image tells a and b apart in image AUROC."


def test_every_metric_has_an_interval_with_maps_and_image_metrics_alone_without(tmp_path: Path) -> None:
    known = [name for name in METRIC_TITLES if name not in ("aupimo", "sample_auroc")]  # too small for it; no objects
    names = [name for name in known if name != "aupro_per_image"]
    comparison = compared(save_runs(tmp_path / "maps", {"a": 2.5, "b": 1.0}, CLASSES[:2]), list(METRIC_TITLES))
    found = {d.metric: d for d in comparison.differences}
    assert list(found) == known
    for name in names:
        assert found[name].over_images is not None, name
        for one in found[name].classes:
            assert one.images is not None and one.images.low <= one.difference + 1e-3, name
            assert one.images.high >= one.difference - 1e-3, name
    assert found["aupro_per_image"].over_images is None and found["aupro_per_image"].over_classes is not None
    comparison = compared(save_runs(tmp_path / "bare", {"a": 2.5, "b": 1.0}, CLASSES[:2], maps=False), names)
    found = {d.metric: d for d in comparison.differences}
    assert [name for name in names if found[name].over_images is not None] == names[:3]
    assert found["aupro"].over_classes is not None, "the metrics are there: classes can be compared"
    (note,) = comparison.notes
    assert "8 runs lack usable maps" in note and "python test.py RUN --save_maps" in note


def test_aupimo_is_compared_image_by_image_without_maps(tmp_path: Path) -> None:
    """The values of an image are paired; images without one, and the normal ones, do not count."""
    folders = save_runs(tmp_path, {"a": 2.0, "b": 2.0}, ["bottle"], seeds=(0,), maps=False)
    draw = np.random.default_rng(0)
    values = np.clip(np.array([[0.15], [0.05]]) + draw.random((1, ANOMALOUS)) * 0.8, 0, 1)
    for folder, own in zip(folders, values, strict=True):
        run = folder / "bottle/seed0"
        rows = read_csv(run / "predictions.csv")
        texts = iter(["", *(f"{value:.9g}" for value in own[1:])])
        lines = [[*row.values(), next(texts) if row["anomalous"] == "1" else ""] for row in rows]
        (run / "predictions.csv").write_text(to_csv([*rows[0], "aupimo"], lines))
        record = json.loads((run / "metrics.json").read_text())
        record["metrics"]["aupimo"] = float(own[1:].mean())
        record["predictions_sha256"] = file_sha256(run / "predictions.csv")
        (run / "metrics.json").write_text(json.dumps(record))
    comparison = compared(folders, ["aupimo"])
    (difference,) = comparison.differences
    (one,) = difference.classes
    assert comparison.notes == [] and one.images is not None
    assert one.difference == pytest.approx(0.1) and one.images.p < 0.01
    assert (one.images.low, one.images.high) == pytest.approx((0.1, 0.1)), "every image differs by as much"
    record["metrics"].pop("aupimo")  # a run of an earlier version
    (run / "metrics.json").write_text(json.dumps(record))
    assert compared(folders, ["aupimo"]).differences == []


def test_other_test_images_are_refused_by_what_differs(tmp_path: Path, run: Run) -> None:
    (a,) = save_runs(tmp_path, {"a": 2.0}, ["bottle"])
    (b,) = save_runs(tmp_path, {"b": 2.0}, ["bottle"], changed=True)
    code, out, err = run(a, b)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "have other test images, so nothing can be paired: test: 26 images, 26 in the second: 0 new" in err
    assert "1 changed (e.g. good/000.png)" in err
    (b / "bottle/seed0/data.csv").unlink()
    assert "so nothing can be paired: 26 and 26 images" in run(a, b)[2]
    config = b / "bottle/seed0/config.json"
    config.write_text(json.dumps({"config": {}, "identity": {}}))
    assert "its test images are not recorded" in run(a, b)[2]


def test_what_only_one_side_has_is_left_out_and_said(tmp_path: Path) -> None:
    (a,) = save_runs(tmp_path, {"a": 2.0}, CLASSES[:3], seeds=(0, 1, 2))
    (b,) = save_runs(tmp_path, {"b": 2.0}, CLASSES[1:4], seeds=(1, 2))
    comparison = compared([a, b])
    (difference,) = comparison.differences
    assert [(one.class_name, list(one.seeds)) for one in difference.classes] == [("cable", [1, 2]), ("capsule", [1, 2])]
    assert comparison.notes == [
        "left out, since only a has them and b has not: bottle (seeds 0, 1, 2), cable (seed 0), capsule (seed 0)",
        "left out, since only b has them and a has not: carpet (seeds 1, 2)",
    ]
    (c,) = save_runs(tmp_path, {"c": 2.0}, CLASSES[:3], seeds=(7,))
    with pytest.raises(ValueError, match=r"a and c have no class and seed in common.*found bottle \(seeds 0, 1, 2\)"):
        compared([a, c])


def test_settings_that_change_what_metrics_mean(tmp_path: Path) -> None:
    (a,) = save_runs(tmp_path, {"a": 2.0}, ["bottle"])
    (b,) = save_runs(tmp_path, {"b": 2.0}, ["bottle"], image_size=512, epochs=9)
    comparison = compared([a, b], ["image_auroc", "aupro"])
    assert [d.metric for d in comparison.differences] == ["image_auroc"]
    assert (
        "a and b: pixel metrics are not compared, since masks are scored at --image_size, which differs: 16, 512"
        in (comparison.notes)
    )
    assert "the runs differ in epochs: 1, 9" in comparison.notes
    (c,) = save_runs(tmp_path, {"c": 2.0}, ["bottle"])
    for seed in (0, 1):
        folder = c / f"bottle/seed{seed}"
        saved = SavedMaps.read(folder, NORMAL + ANOMALOUS)
        assert saved.masks is not None
        SavedMaps(saved.maps, ~saved.masks, saved.labels, saved.color_scale, saved.checkpoint_sha256).write(folder)
    comparison = compared([a, c], ["image_auroc", "aupro"])
    assert [d.metric for d in comparison.differences] == ["image_auroc"] and "other masks" in comparison.notes[0]


def test_several_rivals_are_adjusted_and_ranked(tmp_path: Path, run: Run) -> None:
    folders = save_runs(tmp_path, {"best": 4.0, "middle": 1.6, "worst": 0.4}, seeds=(0,))
    comparison = compared(folders)
    assert [(d.first, d.second) for d in comparison.differences] == [("best", "middle"), ("best", "worst")]
    assert all(
        d.rivals == 2 and d.over_classes and d.over_classes.adjusted == 2 * 2 / 2**7 for d in comparison.differences
    )
    assert all("Holm over 2 comparisons" in difference_tables.verdict(d, 0.95)[0] for d in comparison.differences)
    (ranking,) = comparison.rankings
    assert ranking.ranks == [1, 2, 3] and ranking.friedman == pytest.approx(np.exp(-7))  # chi-squared 14, 2 df
    assert ranking.pairs["best", "worst"] < 0.05 < ranking.pairs["best", "middle"]
    pairs = compared(folders, all_pairs=True).differences
    assert [(d.first, d.second) for d in pairs][2] == ("middle", "worst") and pairs[0].rivals == 3
    code, out, _ = run(*folders, "--metrics", "image_auroc")
    assert code == 0 and "Nemenyi: best above worst (critical difference 1.25)." in " ".join(out.split())
    line = difference_tables.rank_line(ranking).splitlines()
    assert [row.split()[-1] for row in line[2:5]] == ["best", "middle", "worst"]
    assert line[2].index("o") == 0 and line[4].index("o") == difference_tables.SCALE - 1
    assert [row.strip("= ") for row in line[5:7]] == ["", ""], "a bar for each two that are not told apart"
    few = compared(save_runs(tmp_path / "few", {"a": 4.0, "b": 1.6, "c": 0.4}, CLASSES[:2])).rankings[0]
    assert "cannot tell any two of 3 methods apart" in difference_tables.rank_verdict(few, 0.95)[1]


def test_two_folders_of_one_name_are_two_sides(tmp_path: Path, run: Run) -> None:
    (before,) = save_runs(tmp_path / "before", {"a": 1.0}, ["bottle"])
    (after,) = save_runs(tmp_path / "after", {"a": 3.0}, ["bottle"])
    assert [side.label for side in sides_below([before, after])] == [str(before), str(after)]
    assert "given twice" in run(before, before)[2]
    assert "comparing needs two methods on one benchmark: found only a on mvtec" in run(before)[2]
    (tmp_path / "empty").mkdir()
    assert run(before, tmp_path / "empty")[0] == 2


def test_the_text_fits_the_terminal_and_the_files_hold_everything(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"a_long_name_of_a_method_with_settings": 2.0, "b": 1.0, "c": 1.0}
    folders = save_runs(tmp_path, names, CLASSES[:2], seeds=(0,))
    page = tmp_path / "page.md"
    page.write_text("<!-- table:x -->\n<!-- /table:x -->\n")
    files = ["--json", tmp_path / "c.json", "--svg", tmp_path / "c.svg", "--into", page, "--marker", "x"]
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        code, out, err = run(*folders, "--metrics", "all", *files)
        assert code == 0 and err == ""
        assert max(map(len, out.splitlines())) <= columns
    record = json.loads((tmp_path / "c.json").read_text())
    (comparison,) = record["comparisons"]
    assert record["unit"] == "fraction"
    assert len(comparison["differences"]) == 2 * (len(METRIC_TITLES) - 2), "all but AUPIMO and sample AUROC"
    assert all(d["verdict"] for d in comparison["differences"])
    svg = ElementTree.fromstring((tmp_path / "c.svg").read_text())
    text = " ".join(svg.itertext())
    assert svg.tag.endswith("svg") and "prefers-color-scheme: dark" in text and "mean, over images" in text
    assert svg[0].tag.endswith("title") and "image AUROC: a_long_name_of_a_method_with_settings less b" in (
        svg[0].text or ""
    )
    assert "| **mean** |" in page.read_text() and "critical difference" in page.read_text()
    assert run(*folders, "--into", page, "--marker", "y")[0] == 2
    with pytest.raises(SystemExit, match="2"):
        run(*folders, "--marker", "y")


def test_hostile_names_stay_text(tmp_path: Path, run: Run) -> None:
    folders = save_runs(tmp_path, {"<b>&*a*": 2.0, "b": 1.0}, ["bottle", "|x|"], seeds=(0,))
    code, out, _ = run(*folders, "--markdown", "--svg", tmp_path / "c.svg")
    assert code == 0 and "<b>" not in out and "|x|" not in out
    assert "<b>&*a*" in " ".join(ElementTree.fromstring((tmp_path / "c.svg").read_text()).itertext())


def test_scores_that_were_edited_are_not_compared(tmp_path: Path, run: Run) -> None:
    a, b = save_runs(tmp_path, {"a": 2.0, "b": 1.0}, ["bottle"], seeds=(0,))
    predictions = a / "bottle/seed0/predictions.csv"
    predictions.write_text(predictions.read_text().replace("good/000.png,good,0,", "good/000.png,good,0,9"))
    code, _, err = run(a, b)
    assert code == 2 and "is not the file that was scored" in err and err.count("\n") == 1
    predictions.unlink()
    assert "predictions.csv is missing; python test.py RUN writes it anew" in run(a, b)[2]


def test_the_page_shows_the_forest_of_two_methods_and_says_why_there_is_none(tmp_path: Path) -> None:
    save_runs(tmp_path, {"a": 2.0, "b": 1.0}, CLASSES[:2], seeds=(0,))
    html = write_page(collect_runs([tmp_path]), tmp_path / "out").read_text()
    assert html.count('<figure class="forest" tabindex="0">') == 1 and "image AUROC: a less b" in html
    assert "2 classes cannot give a p below 0.5" in html
    save_runs(tmp_path, {"c": 1.0}, CLASSES[:1], seeds=(0,), changed=True)
    html = write_page(collect_runs([tmp_path]), tmp_path / "out").read_text()
    assert '<figure class="forest" tabindex="0">' not in html and "methods are not compared: bottle: " in html
    html = write_page(collect_runs([tmp_path / "mvtec/a"]), tmp_path / "out").read_text()
    assert '<figure class="forest" tabindex="0">' not in html and "not compared" not in html


def test_of_a_model_over_all_classes_the_images_of_one_class_are_compared(tmp_path: Path) -> None:
    def record(name: str, rows: Sequence[ImageRecord]) -> Path:
        made, folder = DataRecord(rows), tmp_path / name
        folder.mkdir()
        (folder / "data.csv").write_text(made.to_csv())
        (folder / "config.json").write_text(json.dumps({"config": {}, "identity": {"data": made.digests()}}))
        return folder

    def images(hashes: str, own: str = "") -> list[ImageRecord]:
        return [ImageRecord("test", f"{own}{n}.png", "good", "0", h * 64, "", own) for n, h in enumerate(hashes)]

    unified = record("unified", [*images("ab", "bottle"), *images("cd", "cable")])
    check_same_images(unified, record("bottle", images("ab")), "bottle")
    check_same_images(record("cable", images("cd")), unified, "cable")
    for name, other in (("other", "ac"), ("fewer", "a"), ("turned", "ba")):
        with pytest.raises(ValueError, match="have other test images"):
            check_same_images(unified, record(name, images(other)), "bottle")
    (unified / "data.csv").write_text((unified / "data.csv").read_text().replace("a" * 64, "e" * 64))
    with pytest.raises(ValueError, match="have other test images"):
        check_same_images(unified, record("edited", images("eb")), "bottle")
