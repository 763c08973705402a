"""An exported folder predicts what the run predicts, without torch; what does not leaves nothing behind."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import (
    CPU,
    files_below,
    make_mvtec,
    paint,
    randomize_batch_norms,
    record_of,
    rows_of,
    score_again,
    train,
)

import export
import export.formats
import export.parity
from benchmarks import export_tables
from commandline import exit_code
from config import Config
from dataset import ImageSet
from detector import Detector
from experiment import Experiment
from methods import VARIANTS, build_distiller
from model import build_teacher
from run_files import Run
from scoring.modes import MAP_MODES
from scoring.thresholds import Threshold
from scripts import export as command

EXTRAS = "needs requirements-export.txt"
pytest.importorskip("onnxscript", reason=EXTRAS)
pytest.importorskip("onnxruntime", reason=EXTRAS)
pytest.importorskip("openvino", reason=EXTRAS)

BLOCKED = "torch torchvision timm cv2 scipy sklearn skimage".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a threshold between its normal and its anomalous test images."""
    root = tmp_path_factory.mktemp("export")
    make_mvtec(root / "mvtec")
    flags = ["--data_path", root / "mvtec", "--class", "bottle", "--epochs", 1, "--save_path", root / "runs"]
    assert train(*flags, "--variant", "sk_rd4ad") == 0
    folder = root / "runs/mvtec/sk_rd4ad/bottle/seed111"
    scores = sorted(float(row["score"]) for row in rows_of(folder / "predictions.csv") if row["anomalous"] == "0")
    scores[-1] *= 1.5
    checkpoint = record_of(folder)["checkpoint_sha256"]
    Run(folder).write_threshold(Threshold(scores[-1], scores[-2], "max", tuple(scores), 1, "calibrate", checkpoint), {})
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The run's folder in both formats."""
    folder = run.parents[4] / "for the line"
    assert export_run(run, "--format", "onnx", "openvino", "--out", folder) == 0
    return folder


def export_run(*arguments: object) -> int:
    """The command in-process, without timing; its exit code."""
    return exit_code(lambda: command.main([*map(str, arguments), "--timing", "0"]))


def predict_without_torch(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The folder's predict.py as a command, in a process in which none of this project's other packages is found."""
    code = (
        f"import sys, runpy; sys.modules |= dict.fromkeys({BLOCKED}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [str(folder / "predict.py"), *map(str, arguments)]
    code = f"import sys; sys.argv = {words!r}; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parent)


@pytest.mark.slow
def test_a_folder_predicts_as_its_run_in_a_process_without_torch(run: Path, exported: Path) -> None:
    folder = exported
    facts = json.loads((folder / "model.json").read_text())
    assert set(files_below(folder)) == {"model.json", *facts["files"]}
    recorded = {Path(row["path"]): float(row["score"]) for row in rows_of(run / "predictions.csv")}
    test_images = run.parents[4] / "mvtec/bottle/test"
    threshold = json.loads((run / "threshold.json").read_text())
    for runtime in facts["models"]:
        assert facts["models"][runtime]["parity"]["decisions"] == 6
        done = predict_without_torch(folder, test_images, "--runtime", runtime)
        assert (done.returncode, done.stderr) == (1, "")
        lines = done.stdout.splitlines()
        assert [line[:2] for line in lines[:-1]] == ["NG"] * 3 + ["OK"] * 3
        assert lines[-1].startswith("6 images: 3 OK, 3 NG, 0 not read. ")
        assert lines[-1].endswith(f" threshold {threshold['value']:.4g} (run), about 25 % false alarms")
        for row in rows_of(folder.parent / "predictions/predictions.csv"):
            assert float(row["score"]) == pytest.approx(recorded[Path(row["path"])], rel=1e-4)
            assert float(row["threshold"]) == pytest.approx(threshold["value"])
    assert facts["checkpoint_sha256"] == record_of(run)["checkpoint_sha256"]
    assert facts["threshold"] == {name: value for name, value in threshold.items() if name != "test"}


def new_images(folder: Path) -> None:
    """Files of many kinds in `folder`/new, one beside it, and two that cannot be read."""
    for number, name in enumerate(("=1+1", "gray", "palette", "prüfling", "turned", "two\nlines", "wide", "z=alpha")):
        paint(folder / f"new/{name}.png", np.random.default_rng(400 + number), defect=number % 2 == 1)
    new = folder / "new"
    (new / "=1+1.png").replace(folder / "=1+1.png")
    with Image.open(new / "gray.png") as image:
        image.convert("L").save(new / "gray.png")
    with Image.open(new / "palette.png") as image:
        image.quantize(9).save(new / "palette.png")
    with Image.open(new / "wide.png") as image:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(new / "wide.png")
    with Image.open(new / "z=alpha.png") as image:
        layer = image.convert("RGBA")
        layer.putalpha(image.convert("L"))
        layer.save(new / "z=alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(new / "turned.png") as image:
        image.crop((0, 0, 64, 40)).save(new / "turned.jpg", exif=exif)
    (new / "turned.png").unlink()
    whole = (new / "turned.jpg").read_bytes()
    (new / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (new / "text.png").write_text("no image")


def without_times(lines: list[str]) -> list[str]:
    """The last line tells the seconds an image takes."""
    return [re.sub(r"[\d.e-]+ s each", "", line) for line in lines]


def same_line(found: str, wanted: str) -> bool:
    """Equal but for one in the last digit of the score."""
    score = re.compile(r"^(?:OK|NG|--) +([\d.]+)")
    one, other = score.match(found), score.match(wanted)
    if one is None or other is None:
        return found == wanted
    return found[one.end() :] == wanted[other.end() :] and abs(float(one[1]) - float(other[1])) < 0.0015


def same_row(found: dict[str, Any], wanted: dict[str, Any], detector: Detector) -> bool:
    """Equal but for the time; floats to 1e-4, the map's highest pixel up to ties."""
    exact = ("path", "decision", "problem", "threshold", "p_value")
    empty = [{name for name, value in row.items() if value in (None, "")} for row in (found, wanted)]
    if list(found) != list(wanted) or empty[0] != empty[1] or any(found[name] != wanted[name] for name in exact):
        return False
    if found["decision"] == "??":
        return True
    close = pytest.approx([float(wanted[name]) for name in ("score", "relative", "area")], rel=1e-4, abs=1e-4)
    anomaly_map = detector.predict(found["path"]).anomaly_map
    below = anomaly_map.max() - anomaly_map[int(found["y"]), int(found["x"])]
    return [float(found[name]) for name in ("score", "relative", "area")] == close and below <= 1e-4 * np.ptp(
        anomaly_map
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--threshold VALUE", "--threshold ABOVE", "--quiet", "--jsonl", "-"])
def test_predict_py_says_and_writes_what_test_py_does(
    flags: str,
    run: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    new_images(tmp_path)
    value = json.loads((run / "threshold.json").read_text())["value"]
    words = flags.replace("VALUE", str(value)).replace("ABOVE", f"{1.1 * value}").split()
    arguments = words if words == ["-"] else ["new", "=1+1.png", *words]
    one_line = [str(path) for path in sorted(Path("new").iterdir()) if "\n" not in path.name]
    standard_input = "\n".join([*one_line, "", "missing.png"]).encode()

    def outcome(name: str, predict: Callable[..., int], *more: str) -> tuple[int, list[str], list[str], list[Any]]:
        """Exit code, lines, lines on standard error without warnings, rows of predictions.csv."""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input), encoding="utf-8"))
        code, printed = predict(*arguments, *more, "--out", name), capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if not line.startswith("warning: ")]
        return code, printed.out.splitlines(), errors, rows_of(tmp_path / name / "predictions.csv")

    detector, predict = Detector.load(run, device="cpu"), export.parity.import_predict(exported)
    wanted_code, wanted_lines, wanted_errors, wanted_rows = outcome(
        "test", lambda *words: score_again(run, "--images", *words), "--vis", "0"
    )
    assert wanted_code == 3 and {row["decision"] for row in wanted_rows} == {"OK", "NG", "??"}
    for runtime in export.FORMATS:
        code, lines, errors, rows = outcome(runtime, lambda *words: predict.main(words), "--runtime", runtime)
        assert (code, without_times(errors)) == (wanted_code, without_times(wanted_errors))
        if flags == "--jsonl":
            pairs = zip(map(json.loads, lines), map(json.loads, wanted_lines), strict=True)
            assert [pair for pair in pairs if not same_row(*pair, detector)] == []
        else:
            pairs = zip(without_times(lines), without_times(wanted_lines), strict=True)
            assert [pair for pair in pairs if not same_line(*pair)] == []
        pairs = zip(rows, wanted_rows, strict=True)
        assert [pair for pair in pairs if not same_row(*pair, detector)] == []


def scoring_detector(tmp_path: Path, variant: str, net: str, **changes: Any) -> tuple[Detector, ImageSet]:
    """A detector around random networks, and the test images of a toy class."""
    data = tmp_path / "mvtec"
    if not data.exists():
        make_mvtec(data, train=4, good=2, bad=2)
    toy: dict[str, Any] = {
        "data_path": data,
        "classes": ("bottle",),
        "image_size": 64,
        "workers": 0,
        "weights": "random",
    }
    config = Config(**toy, variant=variant, net=net, **changes)
    experiment = Experiment(config, CPU)
    torch.manual_seed(0)
    distiller = build_distiller(config.recipe, build_teacher(net, "random"))
    for part in (distiller.teacher, distiller.bottleneck, distiller.student):
        randomize_batch_norms(part)
    distiller.teacher.optimize_for_inference()
    detector = Detector(config, distiller.eval())
    detector.fit_map_statistics(experiment.normal_images)
    return detector, ImageSet([replace(s, mask=None) for s in experiment.test_images.samples], 64)


def check_parity(detector: Detector, images: ImageSet, folder: Path) -> None:
    """Exported in both formats, the detector and the folder predict the same from the files."""
    folder.mkdir()
    models = export.write_models(export.build_graph(detector), list(export.FORMATS), folder)
    (folder / "predict.py").write_bytes(command.TEMPLATE.read_bytes())
    value = float(np.median(np.concatenate([scores for scores, _ in detector.score_batches(images)]))) + 1e-3
    threshold = {"value": value, "pixel": value, "scores": [value], "k": 1}
    facts = {"models": models, "image_size": 64, "max_pixels": 10**8, "precision": "fp32", "threshold": threshold}
    (folder / "model.json").write_text(json.dumps(facts))
    for name in models:
        parity = export.compare(detector, folder, name, ("test", images))
        assert parity.problem is None and parity.images == 4 and parity.decisions == 4
        assert parity.map < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("net", ["efficientnet_lite0", "res18"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_and_kind_of_teacher_is_exported(variant: str, net: str, tmp_path: Path) -> None:
    detector, images = scoring_detector(tmp_path, variant, net)
    check_parity(detector, images, tmp_path / "export")


@pytest.mark.slow
def test_a_teacher_of_timm_is_exported(tmp_path: Path) -> None:
    """Squeeze-and-excitation, hard swish: operations that the built-in teachers lack."""
    detector, images = scoring_detector(tmp_path, "sk_rd4ad", "timm/mobilenetv3_small_100")
    check_parity(detector, images, tmp_path / "export")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MAP_MODES)
def test_every_anomaly_map_and_score_is_exported(mode: str, tmp_path: Path, res10: str) -> None:
    changes = {"anomaly_map": mode, "score_num": 10, "levels": (1, 2), "refine": mode == "mean"}
    detector, images = scoring_detector(tmp_path, "rd4ad", res10, **changes)
    check_parity(detector, images, tmp_path / "export")


@pytest.mark.slow
def test_what_training_options_change_is_exported(tmp_path: Path, res10: str) -> None:
    detector, images = scoring_detector(tmp_path, "sk_rd4ad", res10, dropout=0.5, recenter=True)
    assert detector.distiller.recenter
    check_parity(detector, images, tmp_path / "export")


def test_a_small_network_is_exported_for_any_number_of_images(tmp_path: Path, res10: str) -> None:
    import onnxruntime

    detector, images = scoring_detector(tmp_path, "mrkd", res10)
    before = {name: value.clone() for name, value in detector.distiller.state_dict().items()}
    export.formats.write_onnx(export.build_graph(detector), tmp_path / "model.onnx")
    assert b"stack_trace" not in (tmp_path / "model.onnx").read_bytes(), "nor names the code that made it"
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    ((scores, maps),) = detector.score_batches(images)
    pixels = np.stack([images.image(i) for i in range(len(images))])
    for count in (1, 3, 4):
        found_scores, found_maps = session.run(["scores", "maps"], {"images": pixels[:count]})
        np.testing.assert_allclose(found_scores, scores[:count], rtol=1e-5)
        np.testing.assert_allclose(found_maps, maps[:count], atol=1e-5)
    layout = detector.distiller.teacher.layout
    assert layout == torch.channels_last, "the detector is as it was"
    assert all(torch.equal(value, before[name]) for name, value in detector.distiller.state_dict().items())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is written: what is tested is around it."""

    def write(graph: object, formats: list[str], folder: Path) -> dict[str, Any]:
        found = {}
        for name in formats:
            file = export.FORMATS[name].file
            (folder / file).write_text("a model")
            found[name] = {"file": file, "bytes": 7, "sha256": {file: "0"}}
        return found

    monkeypatch.setattr(export, "write_models", write)
    monkeypatch.setattr(export, "compare", lambda *_: parity())


def parity(**changes: Any) -> export.Parity:
    return replace(export.Parity(6, "test", map=1e-6, score=1e-6, batch=0.0, decisions=6, ties=0), **changes)


def test_what_is_out_of_tolerance_is_named() -> None:
    assert parity().problem is None and parity(decisions=None).problem is None
    assert parity(decisions=4, ties=2).problem is None, "a score may equal the threshold up to rounding"
    assert parity(decisions=5).problem == "1 of 6 decisions differ"
    assert parity(map=2e-4).problem == "a map differs by 0.0002 of the maps' range, more than 0.0001"
    assert parity(batch=0.5).problem == "a score differs by 0.5 of the maps' range, more than 0.0001"
    assert parity(map=float("nan")).problem is not None


def test_a_difference_leaves_nothing_behind_and_the_earlier_export_as_it_was(
    run: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (run, "--format", "onnx", "--out", tmp_path / "out")
    assert export_run(*flags) == 0
    before = files_below(tmp_path)
    monkeypatch.setattr(export, "compare", lambda *_: parity(decisions=5))
    capsys.readouterr()
    assert export_run(*flags) == 1
    assert capsys.readouterr().err == "not exported: with ONNX Runtime 1 of 6 decisions differ\n"
    assert files_below(tmp_path) == before

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "compare", fail)
    assert export_run(*flags) == 2
    assert files_below(tmp_path) == before
    assert export_run(run, "--format", "onnx", "--out", tmp_path / "new") == 2
    assert files_below(tmp_path) == before


def test_an_earlier_export_is_replaced_and_no_other_folder(
    run: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert export_run(run, "--format", "openvino", "--out", out) == 0
    assert export_run(run, "--format", "onnx", "--out", out) == 0
    assert set(files_below(tmp_path)) == {f"out/{name}" for name in ("model.onnx", "model.json", "predict.py")}
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.json").write_text('{"made_by": "somebody"}')
    capsys.readouterr()
    before = files_below(tmp_path)
    for name in ("out", "file", "other"):
        assert export_run(run, "--format", "onnx", "--out", tmp_path / name) == 2
    assert files_below(tmp_path) == before
    assert capsys.readouterr().err.splitlines() == [
        f"error: --out {out}: holds notes.txt, not of an export; give another folder",
        f"error: --out {tmp_path / 'file'}: is no folder; give another one",
        f"error: --out {tmp_path / 'other'}: holds model.json, not of an export; give another folder",
    ]


def test_a_missing_package_is_one_line_before_anything_is_loaded(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "onnx" in name else find(name, *more))
    assert export_run(run, "--format", "openvino") == 2
    wanted = "--format openvino needs onnx, onnxscript, not installed here: pip install -r requirements-export.txt"
    assert capsys.readouterr().err == f"error: {wanted}\n"
    assert not (run / "export").exists()


def test_a_threshold_of_another_checkpoint_is_left_out(
    run: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_run(run, "--format", "onnx", "--out", tmp_path / "with") == 0
    assert json.loads((tmp_path / "with/model.json").read_text())["threshold"]["k"] == 1
    record, text = run / "threshold.json", (run / "threshold.json").read_text()
    record.write_text(json.dumps(json.loads(text) | {"checkpoint_sha256": "0" * 64}))
    assert export_run(run, "--format", "onnx", "--out", tmp_path / "without") == 0
    record.write_text(text)
    assert json.loads((tmp_path / "without/model.json").read_text())["threshold"] is None
    assert "belongs to another checkpoint" in capsys.readouterr().err


def test_a_network_that_cannot_be_exported_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no operator\nfor it")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert export_run(run, "--format", "onnx", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: this network cannot be exported to ONNX: no operator\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sizes_and_times_are_printed_beside_pytorch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled PyTorch is left out where there is no compiler; with one it takes minutes."""

    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    monkeypatch.setattr("export.timing.SECONDS", 0.01)
    assert command.main([str(run), "--format", "onnx", "openvino", "--out", str(tmp_path / "out")]) == 0
    times = json.loads((tmp_path / "out/model.json").read_text())["milliseconds"]
    text = capsys.readouterr().out
    assert list(times) == ["PyTorch eager", "ONNX Runtime", "OpenVINO"]
    for title, found in times.items():
        assert found["1"] > 0 and found["8"] > 0
        assert re.search(rf"^{title} +[-\d.]+ +[\d.]+ +[\d.]+$", text, re.MULTILINE)


def test_a_table_of_exported_folders_goes_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        name: {"parity": parity(map=difference).to_json()} for name, difference in (("onnx", 1e-6), ("openvino", 2e-6))
    }
    times = {
        "PyTorch eager": {"1": 20.0, "8": 16.0},
        "ONNX Runtime": {"1": 10.0, "8": 5.0},
        "OpenVINO": {"1": 8.0, "8": 4.0},
    }
    facts = {
        "made_by": "python -m scripts.export",
        "variant": "drd",
        "net": "res18",
        "image_size": 64,
        "models": models,
    }
    facts |= {
        "milliseconds": times,
        "hardware": "CPU, 2 threads",
        "revision": "abc",
        "versions": {"torch": "2", "numpy": "1"},
    }
    (tmp_path / "a.json").write_text(json.dumps(facts))
    (tmp_path / "page.md").write_text("<!-- table:export -->\n<!-- /table:export -->\n")
    flags = [str(tmp_path / "a.json"), "--into", str(tmp_path / "page.md"), "--marker", "export"]
    assert exit_code(lambda: export_tables.main(flags)) == 0
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "page.md").read_text().splitlines()
    ]
    rows = [row for row in cells if row and row[1] in ("1", "8")]
    assert rows == [
        ["`drd`, `res18`", "1", "20.0", "-", "10.0 (2.0 x)", "8.0 (2.5 x)", "2e-06", "6 of 6"],
        ["", "8", "16.0", "-", "5.0 (3.2 x)", "4.0 (4.0 x)", "", ""],
    ]
    assert "CPU, 2 threads; 64 pixels; torch 2; revision abc." in (tmp_path / "page.md").read_text()
    (tmp_path / "b.json").write_text(json.dumps(facts | {"hardware": "another"}))
    capsys.readouterr()
    assert exit_code(lambda: export_tables.main([*flags[:1], str(tmp_path / "b.json")])) == 2
    (tmp_path / "c.json").write_text("{}")
    assert exit_code(lambda: export_tables.main([str(tmp_path / "c.json")])) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
