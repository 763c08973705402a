"""Predictions on new images: lines, JSON lines, standard input, exit codes, thresholds, drift, and from Python."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import make_mvtec, paint, rows_of, score_again, train

from detector import Detector
from prediction.images import standard_input
from prediction.output import COLUMNS, Output, Totals
from scoring.predictions import Rule
from scoring.thresholds import Threshold


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on own images with a threshold from two of ten; its folder holds good/, bad/ and mixed/."""
    root = tmp_path_factory.mktemp("prediction")
    make_mvtec(root / "mvtec", train=10)
    flags = ["--dataset", "folder", "--train_dir", root / "mvtec/bottle/train/good", "--save_path", root / "runs"]
    flags += ["--net", "efficientnet_lite0", "--weights", "random", "--image_size", 64, "--batch_size", 4]
    assert train(*flags, "--variant", "rd4ad", "--epochs", 2) == 0
    for number in range(3):
        paint(root / f"new/{number}.png", np.random.default_rng(200 + number), defect=number == 2)
    (root / "new/broken.png").write_bytes(b"\x89PNG")
    return root / "runs/folder/rd4ad/bottle/seed111"


def images_of(run: Path) -> Path:
    return run.parents[4] / "new"


def test_exit_codes_tell_ok_from_ng_and_from_unread(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = images_of(run)
    flags = ["--out", tmp_path, "--threshold"]
    assert score_again(run, "--images", new / "0.png", *flags, 1e9) == 0
    assert score_again(run, "--images", new / "0.png", *flags, 0) == 1
    assert score_again(run, "--images", new, *flags, 0) == 3
    *lines, last = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split()[0] for line in lines] == ["NG", "NG", "NG", "??"]
    assert [line.split()[4] for line in lines] == ["0.png", "1.png", "2.png", "broken.png"], "relative to the folder"
    assert last.startswith("4 images: 0 OK, 3 NG, 1 not read. ") and last.endswith(" threshold 0 (--threshold)")
    for wrong in (["--threshold", "nan", "--images", new], ["--quiet"], ["--images", "-", new]):
        assert score_again(run, *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_rows_and_json_lines_say_the_same(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_again(run, "--images", images_of(run), "--out", tmp_path, "--jsonl") == 3
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    rows = rows_of(tmp_path / "predictions.csv")
    threshold = Detector.load(run).threshold
    assert threshold is not None and " threshold " in captured.err and " false alarms" in captured.err
    assert tuple(rows[0]) == tuple(found[0]) == COLUMNS
    for row, one in zip(rows, found, strict=True):
        if one["problem"]:
            assert row["decision"] == "??" and row["score"] == "" and one["score"] is None
            continue
        assert one["decision"] == ("NG" if one["score"] > threshold.value else "OK") == row["decision"]
        assert float(row["score"]) == pytest.approx(one["score"]) and one["threshold"] == threshold.value
        assert one["p_value"] == threshold.p_value(one["score"]) and 0 <= one["area"] <= 1
        assert one["relative"] == pytest.approx(one["score"] / threshold.value)
        assert 0 <= one["x"] < 64 and 0 <= one["y"] < 64 and one["milliseconds"] > 0


def test_paths_come_from_standard_input_one_by_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(images_of(run) / name) for name in ("1.png", "nowhere.png", "0.png")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join([*paths, ""]).encode())))
    assert score_again(run, "--images", "-", "--out", tmp_path) == 3
    *lines, _ = capsys.readouterr().out.splitlines()
    assert [path in line for path, line in zip(paths, lines, strict=True)] == [True] * 3
    assert lines[1].startswith("??") and "no such file" in lines[1]
    assert not (tmp_path / "overlays").exists()
    named = [name for chunk in standard_input(2, io.BytesIO(b"a\n\xff.png\r\n\nc")) for name, _ in chunk]
    assert named == ["a", "\udcff.png", "c"]


def test_quiet_is_the_last_line_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score_again(run, "--images", images_of(run) / "0.png", "--out", tmp_path, "--quiet", "--vis", 0)
    assert capsys.readouterr().out.startswith("1 images: ") and not (tmp_path / "overlays").exists()


def test_a_calibration_for_these_images_leaves_the_runs_threshold(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        paint(tmp_path / f"other/{number}.png", np.random.default_rng(300 + number), defect=False)
    before = (run / "threshold.json").read_bytes()
    score_again(run, "--images", images_of(run) / "0.png", "--calibrate", tmp_path / "other", "--out", tmp_path / "out")
    assert "(--calibrate), about 20 % false alarms" in capsys.readouterr().out
    assert (run / "threshold.json").read_bytes() == before


def output(score: float, rule: Rule) -> Output:
    return Output(Path("x.png"), rule.judge(score, np.full((2, 2), score, np.float32)), "", 1.0)


@pytest.mark.parametrize(("shift", "told"), [(0.0, False), (0.6, True)])
def test_drift_is_told_where_good_images_score_unlike_those_of_the_threshold(shift: float, told: bool) -> None:
    rng = np.random.default_rng(0)
    scores = tuple(sorted(rng.random(100).tolist()))
    rule = Rule.of(Threshold(scores[-1], 1.0, "max", scores, 1, "calibrate", "0"))
    totals = Totals(rule)
    new: list[Any] = [output(shift + score * (1 - shift), rule) for score in rng.random(60)]
    totals.add(new, 1.0)
    assert ("score unlike the 100 normal images" in totals.drift()) == told


def test_python_takes_a_path_an_image_an_array_or_many(run: Path) -> None:
    detector, path = Detector.load(run), images_of(run) / "0.png"
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB"))
        found = detector.predict([str(path), path, image, array])
    assert len(found) == 4 and len({one.score for one in found}) == 1
    alone = detector.predict(path)
    assert alone.score == pytest.approx(found[0].score, rel=1e-5) and alone.anomaly_map.shape == (64, 64)
    assert alone.anomaly_map[alone.y, alone.x] == alone.anomaly_map.max()
    assert detector.predict(array[..., 0]).score > 0, "a gray array"
    upright = Image.fromarray(np.ascontiguousarray(array[:40]))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[0x0112] = 6
    assert detector.predict(turned).score == pytest.approx(detector.predict(upright).score, rel=1e-5)
    with pytest.raises(ValueError, match=r"want \(H, W, 3\) or \(H, W\) uint8"):
        detector.predict(array.astype(np.float32))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        detector.predict("nowhere.png")
