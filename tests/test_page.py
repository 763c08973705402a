"""The page over runs: what it says, that it says it whatever is missing, and that a browser shows it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Page
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from commandline import exit_code
from config import Config
from readers import image_io
from report.overlays import WIDTH, overlay, panels_of
from report.page import gallery, render
from report.page.charts import Axis, histogram, loss_chart
from report.page.runs import read_run
from report.panels import ScoredImage, draw_panels, fit
from report.results import METRIC_TITLES, collect_runs
from run_files import Run, SavedMaps
from run_files.csv_files import read_csv, to_csv
from scoring.metrics import pixel_metrics
from scoring.predictions import Rule
from scripts import report as command
from utils import file_sha256

SIDE = 32
SHA = "c" * 64
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@dataclass
class Toy:
    """A finished run to be written: test images by defect, and what lies in its folder."""

    class_name: str = "bottle"
    seed: int = 1
    name: str | None = None
    benchmark: str = "mvtec"
    defects: tuple[str, ...] = ("good",) * 6 + ("crack",) * 4 + ("hole",) * 4
    names: tuple[str, ...] = ()
    threshold: bool = True
    maps: bool = True
    masks: bool = True
    changes: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        """The run's folder, with its images in root/images."""
        draw = np.random.default_rng(self.seed)
        folder = (
            root / "runs" / f"{self.name or 'rd4ad'}_{hashlib.sha1(repr(self.class_name).encode()).hexdigest()[:8]}"
        )
        folder = folder / f"seed{self.seed}"
        folder.mkdir(parents=True)
        images = root / "images"
        images.mkdir(exist_ok=True)
        labels = np.array([defect != "good" for defect in self.defects], bool)
        maps = draw.gamma(2, 0.2, (len(labels), SIDE, SIDE)).astype(np.float32)
        masks = np.zeros(maps.shape, bool)
        masks[labels, 8:14, 8:14] = True
        maps += masks * draw.uniform(0.3, 2, len(labels)).astype(np.float32)[:, None, None]
        rows = []
        for i, defect in enumerate(self.defects):
            path = images / (self.names[i] if self.names else f"{self.seed}_{i:03}.png")
            Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(os.fsencode(path), "PNG")
            rows.append([path, defect, int(labels[i]), f"{maps[i].max():.9g}"])
        if rows:
            text = to_csv(["path", "defect", "anomalous", "score"], rows)
            (folder / "predictions.csv").write_bytes(text.encode(errors="surrogateescape"))
        (folder / "train.csv").write_text("epoch,loss,images_per_second\n1,2.5,9\n2,0.9,9\n3,0.2,9\n")
        scores = maps.reshape(len(maps), -1).max(axis=1) if rows else np.empty(0)
        if self.maps and rows:
            SavedMaps(maps, masks if self.masks else None, labels, (0.2, 3.0), SHA).write(folder)
        if self.threshold:
            held_out = sorted((scores[~labels] * 0.97).tolist()) or [1.0]
            data = {"images": len(held_out), "sha256": "0" * 64}
            record: dict[str, Any] = {"value": held_out[-1], "pixel": held_out[-1], "scores": held_out, "k": 1}
            record |= {"pixel_rule": "max", "source": "holdout", "false_alarm": None, "data": data}
            record |= {"checkpoint_sha256": SHA}
            (folder / "threshold.json").write_text(json.dumps(record))
        metrics = dict.fromkeys(METRIC_TITLES, 0.9)
        result: dict[str, Any] = {"benchmark": self.benchmark, "variant": "rd4ad", "name": self.name}
        result |= {"class_name": self.class_name}
        result |= {"seed": self.seed, "net": "wide_res50", "image_size": 256, "epochs": 3, "metrics": metrics}
        result |= {"reasons": {}, "oracle": {}, "revision": "abc", "hardware": "some CPU", "versions": {"torch": "2"}}
        result |= {"checkpoint_sha256": SHA, "train_seconds": 5.0, **self.changes}
        (folder / "metrics.json").write_text(json.dumps(result))
        return folder


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._raw = "", False
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw, self.text = tag in ("style", "script"), self.text + " "

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write(tmp_path: Path, *toys: Toy) -> Elements:
    """The page over toy runs, at tmp_path/out/report.html."""
    for toy in toys:
        toy.write(tmp_path)
    path = render.write_page(collect_runs([tmp_path / "runs"]), tmp_path / "out")
    assert path == tmp_path / "out/report.html"
    return Elements(path.read_text(encoding="utf-8"))


# --- what it says ---


def test_the_page_names_threshold_counts_and_images_by_decision(tmp_path: Path) -> None:
    page = write(tmp_path, Toy())
    (run,) = (tmp_path / "runs").rglob("seed1")
    rows = read_csv(run / "predictions.csv")
    value = json.loads((run / "threshold.json").read_text())["value"]
    normal, bad = ([float(r["score"]) for r in rows if r["anomalous"] == kind] for kind in "01")
    alarms, missed = sum(s > value for s in normal), sum(s <= value for s in bad)
    assert alarms and missed and missed < len(bad)
    assert f"normal {6 - alarms} {alarms} {100 * alarms / 6:.1f} % false alarms" in page.text
    assert f"anomalous {missed} {8 - missed} {100 * missed / 8:.1f} % missed" in page.text
    assert f"False alarms {alarms} of 6 normal images" in page.text and "Typical hits" in page.text
    assert f"Missed {missed} of 8 anomalous images" in page.text
    threshold = Run(run).threshold()
    assert threshold is not None and threshold.promise() in page.text and threshold.described in page.text
    assert "Metrics of the last epoch: mean" in page.text and "AUPRO pools the regions" in page.text
    view = read_run(run, json.loads((run / "metrics.json").read_text()))
    chosen = gallery.choose(view)
    assert [float(rows[i]["score"]) for i in chosen["False alarms"]] == sorted(s for s in normal if s > value)[::-1]
    assert [float(rows[i]["score"]) for i in chosen["Missed"]] == sorted(s for s in bad if s <= value)
    assert sum(map(len, chosen.values())) == alarms + 8


def test_hits_for_the_wrong_reason_have_their_highest_pixel_outside_the_mask(tmp_path: Path) -> None:
    run = Toy(threshold=False).write(tmp_path)
    saved = SavedMaps.read(run, 14)
    saved.maps[10, 0, 0], saved.maps[11, 9, 9], saved.maps[0, 0, 0] = 50, 50, 50
    saved.write(run)
    view = read_run(run, json.loads((run / "metrics.json").read_text()))
    assert view.outside is not None and view.outside[10] and not view.outside[11] and not view.outside[0]
    assert 10 in gallery.choose(view)["Anomalous images whose highest pixel lies outside the mask"]


def test_a_thumbnail_is_the_panels_of_the_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same heat, contour, mask and cross, at the size of a thumbnail."""
    run = Toy().write(tmp_path)
    saved = SavedMaps.read(run, 14)
    saved.maps[13, 0, 0] = 50  # a hit for the wrong reason
    saved.write(run)
    view = read_run(run, json.loads((run / "metrics.json").read_text()))
    drawn: list[np.ndarray] = []

    def note(image: np.ndarray) -> gallery.Thumbnail:
        drawn.append(image)
        return gallery.Thumbnail(b"", 0, 0)

    monkeypatch.setattr(gallery, "encode", note)
    names = [image.name for group in gallery.gallery(view) for image in group.images]
    assert view.decisions is not None and saved.masks is not None and len(names) == len(drawn)
    for name, found in zip(names, drawn, strict=True):
        (number,) = (i for i, prediction in enumerate(view.predictions) if prediction.path.name == name)
        image, score = np.asarray(Image.open(view.predictions[number].path)), view.predictions[number].score
        scored = ScoredImage(image, saved.maps[number], score, saved.masks[number])
        rule = Rule.of(view.decisions.threshold)
        panels = draw_panels(scored, saved.color_scale, (gallery.SIDE, gallery.WIDEST), rule)
        assert np.array_equal(found, gallery.arranged(*panels)), name


def test_defects_are_scored_against_all_normal_images(tmp_path: Path) -> None:
    run = Toy().write(tmp_path)
    view = read_run(run, json.loads((run / "metrics.json").read_text()))
    crack, hole = view.defects
    some = [*range(6), *range(10, 14)]
    saved = SavedMaps.read(run, 14)
    assert saved.masks is not None
    assert (crack.name, hole.name, hole.images) == ("crack", "hole", 4)
    assert hole.metrics["image_auroc"] == pytest.approx(roc_auc_score(view.labels[some], view.scores[some]))
    assert hole.metrics["aupro"] == pixel_metrics(saved.maps[some], saved.masks[some]).values["aupro"]
    assert view.decisions is not None and hole.found == np.mean(view.scores[10:] > view.decisions.threshold.value)


def test_published_values_and_differences_stand_beside_ours(tmp_path: Path) -> None:
    page = write(tmp_path, Toy(seed=1), Toy(seed=2, changes={"metrics": dict.fromkeys(METRIC_TITLES, 0.92)}))
    assert "91.00 ± 1.41 100.00 (−9.00)" in page.text
    assert "RD4AD's published metrics: WideResNet-50-2" in page.text


def test_curves_csv_equals_scikit_learn(tmp_path: Path) -> None:
    write(tmp_path, Toy(seed=1), Toy(seed=2))
    with (tmp_path / "out/curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "seed", "curve", "x", "y"]
    assert {row["curve"] for row in rows} == {"roc", "pr", "pixel_roc", "pixel_pr", "pro", "loss"}
    (run,) = (tmp_path / "runs").rglob("seed2")
    table = read_csv(run / "predictions.csv")
    labels, scores = ([float(row[name]) for row in table] for name in ("anomalous", "score"))
    fpr, tpr, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    for curve, x, y in (("roc", fpr, tpr), ("pr", recall, precision)):
        found = {(row["x"], row["y"]) for row in rows if row["curve"] == curve and row["seed"] == "2"}
        assert found <= {(f"{a:.9g}", f"{b:.9g}") for a, b in zip(x, y, strict=True)} and len(found) > 3
    write(tmp_path / "more", Toy(seed=1), Toy(seed=1, name="other"))
    assert (tmp_path / "more/out/curves.csv").read_text().startswith("name,class,seed,curve,x,y\n")


# --- whatever is missing ---


@pytest.mark.parametrize(
    ("toy", "said", "unsaid"),
    [
        (Toy(defects=()), "no test images: no curves, no decisions", "No threshold"),
        (Toy(threshold=False), "No threshold: python test.py RUN --calibrate FOLDER", "False alarms"),
        (Toy(maps=False), "pixel curves: run with --save_maps", "ROC of pixels"),
        (Toy(masks=False), "no pixel curves: the run has no masks", "ROC of pixels"),
        (Toy(defects=("good",) * 4), "False alarms", "ROC of images"),
        (Toy(defects=("hole",) * 4, threshold=False), "Typical anomalous images", "ROC of images"),
    ],
    ids=["no test images", "no threshold", "no maps", "no masks", "only normal", "only anomalous"],
)
def test_a_run_that_lacks_something_has_a_page(toy: Toy, said: str, unsaid: str, tmp_path: Path) -> None:
    page = write(tmp_path, toy)
    assert said in page.text and unsaid not in page.text
    assert "Training loss" in page.text


def test_without_normal_test_images_there_is_no_share_of_false_alarms(tmp_path: Path) -> None:
    page = write(tmp_path, Toy(defects=("hole",) * 4))
    assert re.search(r"n/a [0-4] of 4 ", page.text) and "0 of 0" not in page.text
    assert "anomalous test images, downward" in page.text and "upward" not in page.text


def test_maps_of_another_checkpoint_and_damaged_ones_are_said(tmp_path: Path) -> None:
    run = Toy().write(tmp_path)
    whole = (run / "maps.npz").read_bytes()
    (run / "maps.npz").write_bytes(whole[:900])
    assert "maps.npz: a damaged .npz file" in write(tmp_path).text
    (run / "maps.npz").write_bytes(whole)
    record = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(record | {"checkpoint_sha256": "d" * 64}))
    page = write(tmp_path)
    assert "maps.npz belongs to another checkpoint; python test.py RUN --save_maps writes it anew" in page.text
    assert "ROC of pixels" not in page.text and "No threshold" in page.text  # it was the other checkpoint's as well


def test_predictions_of_another_scoring_are_said_and_damaged_ones_are_an_error(tmp_path: Path) -> None:
    run = Toy(changes={"predictions_sha256": "0" * 64}).write(tmp_path)
    assert "predictions.csv is not the file that was scored" in write(tmp_path).text
    record = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(record | {"predictions_sha256": file_sha256(run / "predictions.csv")}))
    assert "not the file" not in write(tmp_path).text
    (run / "predictions.csv").write_text("path,defect,anomalous,score\na.png,good,2,0.5\n")
    with pytest.raises(ValueError, match="predictions.csv: wanted the columns path, defect, anomalous"):
        write(tmp_path)


def test_scores_that_hardly_differ_are_said(tmp_path: Path) -> None:
    run = Toy(maps=False).write(tmp_path)
    assert "hardly differ" not in write(tmp_path).text
    lines = (run / "predictions.csv").read_text().splitlines()
    same = [",".join([*line.split(",")[:3], "0.5"]) for line in lines[1:]]
    (run / "predictions.csv").write_text("\n".join([lines[0], *same, ""]))
    assert "scores of normal and anomalous images hardly differ (image AUROC 50.00): decisions" in write(tmp_path).text


def test_images_that_are_gone_or_damaged_are_said_to_be(tmp_path: Path) -> None:
    Toy().write(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        path.write_bytes(b"no image") if number % 2 else path.unlink()
    page = write(tmp_path)
    assert "the image's file is gone" in page.text and "the image's file cannot be read" in page.text
    assert not page.all("img")


def test_overlays_are_shown_where_there_are_no_maps(tmp_path: Path) -> None:
    run = Toy(maps=False).write(tmp_path)
    (run / "overlays").mkdir()
    Image.new("RGB", (600, 282), "red").save(run / "overlays/hole_1_013.png")
    (shown,) = (image for image in write(tmp_path).all("img") if str(image["alt"]).endswith("its overlay"))
    assert str(shown["alt"]).startswith("hole, 1_013.png, score ") and shown["width"] == "352"


def test_of_an_overlay_its_panels_are_shown(tmp_path: Path) -> None:
    scored = ScoredImage(np.full((64, 64, 3), 90, np.uint8), np.zeros((32, 32)), 0.5, name="x")
    panels = panels_of(overlay(scored, (0.2, 3.0)))
    assert panels is not None and np.array_equal(panels, draw_panels(scored, (0.2, 3.0), (10_000, WIDTH)))
    assert panels_of(np.zeros((300, 600, 3), np.uint8)) is None


def test_wide_panels_lie_one_below_the_other() -> None:
    high, wide = np.zeros((176, 200, 3), np.uint8), np.zeros((144, 352, 3), np.uint8)
    assert gallery.arranged(high, high).shape == (176, 404, 3) and gallery.arranged(wide, wide).shape == (292, 352, 3)
    light = np.full_like(wide, 255)
    assert (gallery.arranged(light, wide)[:144] == 255).all() and gallery.arranged(wide) is wide


def configure(run: Path, **settings: Any) -> Path:
    """A toy run with these settings, in the folder that they give; returns it."""
    config = Config(classes=("bottle",), seeds=(1,), **settings)
    config.run_folder.parent.mkdir(parents=True)
    moved = run.rename(config.run_folder)
    environment = {"revision": "abc", "versions": {"torch": "2"}, "hardware": "a CPU"}
    record = {"config": config.to_json(), "identity": config.identity(), **environment}
    (moved / "config.json").write_text(json.dumps(record))
    return moved


def test_overlays_that_lie_elsewhere_are_found(tmp_path: Path) -> None:
    run = configure(Toy(maps=False).write(tmp_path), save_path=tmp_path / "runs", img_path=tmp_path / "drawn")
    overlays = Run(run).config().overlay_folder
    assert overlays == tmp_path / "drawn/mvtec/sk_rd4ad/bottle/seed1"
    overlays.mkdir(parents=True)
    Image.new("RGB", (600, 282), "red").save(overlays / "hole_1_013.png")
    assert sum(str(image["alt"]).endswith("its overlay") for image in write(tmp_path).all("img")) == 1
    copy = Path(shutil.copytree(run, tmp_path / "copy/seed1"))
    shutil.rmtree(tmp_path / "runs")
    view = read_run(copy, json.loads((copy / "metrics.json").read_text()))
    assert view.overlays == copy / "overlays", "a copy keeps its overlays to itself"


def test_images_are_shown_up_to_the_runs_own_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "_pixel_limit", 1)
    small = configure(Toy().write(tmp_path), save_path=tmp_path / "small", max_pixels=SIDE**2 - 1)
    large = configure(Toy().write(tmp_path), save_path=tmp_path / "large", max_pixels=SIDE**2)
    for run, shown in ((small, False), (large, True), (Toy(name="no config").write(tmp_path), True)):
        view = read_run(run, json.loads((run / "metrics.json").read_text()))
        images = [image for group in gallery.gallery(view) for image in group.images]
        assert images and all((image.thumbnail is not None) == shown for image in images), run


# --- what comes from data stays text ---

HOSTILE = (
    "<script>alert(1)</script>.png",
    '" onerror="alert(2)" x=".png',
    "' onload='alert(3).png",
    "{{ 7 * 7 }}{% raw %}.png",
    "line\nfeed\u202e.png",
    "\udcff\udcfe.png",
    "&lt;b&gt;.png",
    "javascript:alert(4).png",
)


def hostile_toys() -> list[Toy]:
    defects = ("good",) * 2 + (
        "<img src=x onerror=alert(5)>",
        '"><svg onload=alert(6)>',
        "a\nb",
        "\udcfe",
        "{{ x }}",
        "--",
    )
    names = tuple(name.replace("/", "\u2215") for name in HOSTILE)
    changes = {"hardware": "</style><script>alert(7)</script>", "revision": "</script><script>alert(8)</script>"}
    toys = [
        Toy(class_name=name, defects=defects, names=names, benchmark="folder", changes=changes) for name in HOSTILE[:6]
    ]
    return [*toys, Toy(seed=2, name="<h1>'\"&", defects=defects, names=names)]


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    page = write(tmp_path, *hostile_toys())
    assert len(page.all("script")) == len(page.all("style")) == 1 and len(page.all("h1")) == 1
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in page.all("img"))
    for text in (
        "<script>alert(1)</script>",
        '" onerror="alert(2)"',
        "{{ 7 * 7 }}",
        r"line\nfeed\u202e",
        r"\xff\xfe",
        "&lt;b",
    ):
        assert text in page.text, text
    assert "</script><script>alert(8)</script>" in page.text
    (tmp_path / "out/curves.csv").read_bytes().decode(errors="strict" if os.name == "nt" else "surrogateescape")


# --- weight and files ---


def test_a_page_is_self_contained_and_its_policy_allows_only_what_it_holds(tmp_path: Path) -> None:
    page = write(tmp_path, Toy())
    html = (tmp_path / "out/report.html").read_text()
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data: 'self' file:; ")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not page.all("link") and not re.search(r"(?:src|href)=.(?:https?:|//)|@import|url\(", html)
    assert all("style" not in attributes for _, attributes in page.elements)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.csv", "report.html"]


def test_further_images_are_files_beside_the_page_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "INLINE", 2)
    (tmp_path / "out/report_images").mkdir(parents=True)
    (tmp_path / "out/report_images/mine.webp").write_text("mine")
    (tmp_path / "out/notes.txt").write_text("mine")
    page = write(tmp_path, Toy())
    sources = [str(image["src"]) for image in page.all("img")]
    assert [source.startswith("data:") for source in sources[:3]] == [True, True, False]
    for image in page.all("img")[2:]:
        assert image["loading"] == "lazy" and (tmp_path / "out" / str(image["src"])).is_file()
    assert (tmp_path / "out/report_images/mine.webp").read_text() == "mine" and (tmp_path / "out/notes.txt").is_file()
    before = (tmp_path / "out/report.html").read_bytes()
    write(tmp_path)
    assert (tmp_path / "out/report.html").read_bytes() == before


def test_a_thumbnail_weighs_at_most_fifteen_kilobytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (gallery.SIDE, 2 * gallery.SIDE, 3), np.uint8)
    thumbnail = gallery.encode(noise)
    assert len(thumbnail.data) <= 15_000 and (thumbnail.width, thumbnail.height) == (176, 88)
    smooth = gallery.encode(np.tile(np.arange(176).astype(np.uint8)[:, None, None], (1, 352, 3)))
    assert len(smooth.data) < 3_000 and (smooth.width, smooth.height) == (352, 176)


def test_an_image_that_is_far_wider_than_high_fits(tmp_path: Path) -> None:
    size = gallery.SIDE, gallery.WIDEST
    assert fit(np.zeros((10, 4000, 3), np.uint8), size).shape == (1, 352, 3)
    assert fit(np.zeros((4000, 10, 3), np.uint8), size).shape == (176, 1, 3)


# --- charts ---


def test_bars_count_every_score_and_none_lies_across_the_threshold() -> None:
    normal, bad = np.array([1.0, 2, 2, 3], np.float32), np.array([2.5, 3.0, 9.0], np.float32)
    drawn = histogram(normal, bad, 3.0, [1.0, 3.0])
    unit = min(bar.height for bar in drawn.normal)
    assert [round(sum(bar.height for bar in bars) / unit, 1) for bars in (drawn.normal, drawn.anomalous)] == [4, 3]
    assert drawn.threshold is not None and "0 normal and 1 anomalous ones lie above" in drawn.description
    above = [bar for bar in drawn.anomalous if bar.x >= drawn.threshold.at - 0.2]
    assert len(above) == 1 and all(bar.x + bar.width <= drawn.threshold.at + 0.2 for bar in drawn.normal)
    for scores in (np.array([2.0], np.float32), np.empty(0, np.float32)):
        histogram(np.array([2.0], np.float32), scores, None, ())


def test_a_loss_over_several_decades_has_a_logarithmic_axis() -> None:
    points = np.array([[1, 10.0], [2, 1.0], [3, 0.01]])
    chart = loss_chart([(points, 0, False)])
    assert chart is not None and [tick.text for tick in chart.y_ticks] == ["0.01", "0.1", "1", "10"]
    assert [tick.text for tick in Axis(0, 1, 0, 100).ticks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    single = loss_chart([(np.array([[1, 0.5]]), 0, False)])
    assert single is not None and [tick.text for tick in single.x_ticks] == ["0", "1", "2"]
    assert loss_chart([]) is None


# --- the command ---


def test_the_command_says_in_one_line_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Toy().write(tmp_path)
    assert exit_code(lambda: command.main([str(run)])) == 0
    assert capsys.readouterr().out == f"page: {run / 'report.html'}\n"
    assert exit_code(lambda: command.main([str(tmp_path / "images")])) == 2
    assert re.fullmatch(r"error: no finished run under .*\n", capsys.readouterr().err)
    (tmp_path / "file").touch()
    assert exit_code(lambda: command.main([str(run), "--out", str(tmp_path / "file")])) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- in a browser ---


@needs_chromium
@pytest.mark.slow
def test_a_browser_shows_the_page_sorts_its_tables_and_loads_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "INLINE", 3)
    others = [Toy(class_name=name, changes={"metrics": dict.fromkeys(METRIC_TITLES, value)}) for name, value in
              (("cable", 0.5), ("zipper", None), ("pill", 0.95))]  # fmt: skip
    for toy in others:
        toy.changes |= {"reasons": dict.fromkeys(METRIC_TITLES, "none") if toy.class_name == "zipper" else {}}
    write(tmp_path, *hostile_toys(), Toy(), *others)
    with Page(tmp_path / "out/report.html") as page:
        page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.run("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.run("Promise.all([...document.images].map(i => i.decode()))")
        widths = page.run("[...document.images].map(i => i.naturalWidth)")
        assert len(widths) > 10 and min(widths) > 0
        assert page.run("[...document.images].some(i => i.src.startsWith('file:'))")

        table = "document.querySelector('#caption-2').closest('table')"
        rows, headers = f"[...{table}.tBodies[0].rows]", f"[...{table}.tHead.rows[0].cells]"
        column = page.run(f"{headers}.findIndex(c => c.textContent.startsWith('image AUROC'))")
        sort = f"{headers}[{column}].querySelector('button')"
        state_of = f"{headers}[{column}].getAttribute('aria-sort')"

        def order() -> list[str]:
            return page.run(f"{rows}.map(r => r.cells[{column}].dataset.value)")

        page.run(f"{sort}.focus()")
        for _ in range(2):  # by keyboard: Enter presses the button
            for kind in ("keyDown", "keyUp"):
                page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                          windowsVirtualKeyCode=13)  # fmt: skip
            values, state = order(), page.run(state_of)
            numbers = [float(value) for value in values if value]
            assert state in ("ascending", "descending") and values[-1] == ""
            assert numbers == sorted(numbers, reverse=state == "descending")
        assert state == "ascending"
        page.run(f"{headers}[0].querySelector('button').click()")
        names = page.run(f"{rows}.map(r => r.cells[0].textContent)")
        assert names[-2:] == ["pill", "zipper"] and page.run(state_of) == "none"

        page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("document.scripts.length") == 1 and page.messages == []
