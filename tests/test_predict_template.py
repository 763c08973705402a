"""The exported predict.py reads files as the project does; its lines, its table and its exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import ROOT, rows_of

from dataset import load_image
from export import predict_template as template
from prediction.images import find_images
from readers.image_io import MAX_PIXELS
from scoring.predictions import Rule
from utils import printable

THRESHOLD = {"value": 100.0, "pixel": 100.0, "scores": [50.0, 80.0, 100.0], "k": 1, "source": "holdout"}


class Stub:
    """In place of the model: the map is the image's first channel, the score its largest value."""

    def __init__(self, folder: Path, runtime: str | None = None, threads: int | None = None) -> None:
        self.facts: dict[str, Any] = {"max_pixels": MAX_PIXELS}
        self.size, self.threshold = 4, Stub.record

    record: dict[str, Any] | None = None
    read = template.Model.read

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = images[:, 0].astype(np.float32)
        return maps.max(axis=(1, 2)), maps


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Stub]:
    monkeypatch.setattr(template, "Model", Stub)
    monkeypatch.setattr(Stub, "record", THRESHOLD)
    monkeypatch.chdir(tmp_path)
    return Stub


def corpus(folder: Path) -> None:
    """Files of every mode, orientation and kind of damage that the readers tell apart."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (21, 34, 3), np.uint8)
    rgb, gray, wide = Image.fromarray(color), Image.fromarray(color[:, :, 0]), color[:, :, 0].astype(np.uint16) * 257
    palette = rgb.quantize(7)
    alpha = rgb.copy()
    alpha.putalpha(gray)
    for name, image in {
        "rgb.png": rgb,
        "gray.png": gray,
        "gray_alpha.png": alpha.convert("LA"),
        "alpha.png": alpha,
        "alpha.webp": alpha,
        "palette.png": palette,
        "palette.bmp": palette,
        "two.png": gray.convert("1"),
        "two.bmp": gray.convert("1"),
        "wide.png": Image.fromarray(wide),
        "wide.tif": Image.fromarray(wide),
        "integers.tif": Image.fromarray(wide.astype(np.int32)),
        "too_wide.tif": Image.fromarray(wide.astype(np.int32) * 2),
        "negative.tif": Image.fromarray(wide.astype(np.int32) - 1),
        "floats.tif": Image.fromarray(color[:, :, 0].astype(np.float32)),
        "inks.jpg": rgb.convert("CMYK"),
        "inks.tif": rgb.convert("CMYK"),
        "lab.tif": rgb.convert("LAB"),
        "a.jpeg": rgb,
        "named.gif.png": rgb,
    }.items():
        image.save(folder / name)
    palette.save(folder / "transparent.png", transparency=2)
    gray.save(folder / "transparent_gray.png", transparency=int(color[0, 0, 0]))
    rgb.save(folder / "transparent_color.png", transparency=tuple(map(int, color[0, 0])))
    for number in (*range(1, 9), 77):
        exif = Image.Exif()
        exif[0x0112] = number
        for suffix in ("jpg", "png", "tif", "webp"):
            rgb.save(folder / f"turned{number}.{suffix}", exif=exif)
    whole = (folder / "rgb.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image\nat all")
    (folder / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    rgb.save(folder / "gif.png", "GIF")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")
    (folder / "link.png").symlink_to("nowhere.png")
    bmp = bytearray((folder / "two.bmp").read_bytes())
    bmp[28:30] = (4).to_bytes(2, "little")
    (folder / "four_bits.bmp").write_bytes(bmp)


def by_project(path: Path) -> np.ndarray | str:
    """The image, or what is wrong with it."""
    try:
        return load_image(path, 16, upright=True)
    except (ValueError, FileNotFoundError) as problem:
        return str(problem).removeprefix(f"{printable(path)}: ")


def by_template(model: Any, path: Path) -> np.ndarray | str:
    try:
        return model.read(path)
    except template.Unreadable as problem:
        return str(problem)


def test_every_file_is_read_to_the_bit_as_the_project_reads_it(tmp_path: Path) -> None:
    corpus(tmp_path)
    model = Stub(tmp_path)
    model.size = 16
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "missing.png"]
    assert len(paths) > 60
    found = {path.name: by_template(model, path) for path in paths}
    for path in paths:
        np.testing.assert_array_equal(found[path.name], by_project(path), err_msg=path.name)
    readable = [name for name, result in found.items() if not isinstance(result, str)]
    assert len(readable) == 20 + 4 * 9, "the others are damaged or of a kind that is refused"


def test_the_limit_of_pixels_is_the_runs(tmp_path: Path) -> None:
    Image.new("RGB", (4, 5)).save(tmp_path / "a.png")
    assert template.read_rgb(tmp_path / "a.png", 20).size == (4, 5)
    with pytest.raises(template.Unreadable, match="has 4 x 5 = 20 pixels, more than --max_pixels 19"):
        template.read_rgb(tmp_path / "a.png", 19)


def test_images_are_found_as_test_py_finds_them(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a.jpg", "b/c/x.tiff", "b/notes.txt", "b/.hidden.png", "d.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/up").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "b")
    found = list(template.find_images([str(tmp_path)]))
    assert [(name, path) for path, name in found] == find_images(tmp_path)
    assert [name for _, name in found][0] == "a.jpg"
    assert list(template.find_images([str(tmp_path / "a.jpg")])) == [(tmp_path / "a.jpg", str(tmp_path / "a.jpg"))]
    with pytest.raises(ValueError, match="nowhere: no image there"):
        list(template.find_images(["nowhere"]))


def paint(name: str, value: int) -> None:
    """A 4 x 4 image with one bright pixel at x 2, y 1."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 2] = value
    Path(name).parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(name)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """The exit code and the lines, the time an image takes left out."""
    code = template.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    return code, [
        *lines[:-1],
        *[line.partition(" read. ")[0] + " " + line.partition(" each. ")[2] for line in lines[-1:]],
    ]


def test_lines_and_exit_codes(stub: type[Stub], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    paint("neu/neu 1.png", 80)
    paint("neu/gleich.png", 100)
    paint("zurück 5.png", 250)
    Path("neu/zz kaputt.png").write_bytes(b"x")
    line_ok, line_equal = "OK    80.000  p 0.750  neu 1.png", "OK   100.000  p 0.500  gleich.png"
    formats = "PNG, JPEG, BMP, TIFF or WebP"
    broken = f"is not an image of a format that is read ({formats}): copy it again, convert it or remove it"
    promise = "threshold 100 (run), about 25 % false alarms"
    assert printed(capsys, "neu", "zurück 5.png") == (
        3,
        [
            line_equal,
            line_ok,
            f"??         -  p     -  zz kaputt.png  {broken}",
            "NG   250.000  p 0.250  zurück 5.png",
            f"4 images: 2 OK, 1 NG, 1 not {promise}",
        ],
    )
    Path("neu/zz kaputt.png").unlink()
    assert printed(capsys, "neu") == (0, [line_equal, line_ok, f"2 images: 2 OK, 0 NG, 0 not {promise}"])
    assert printed(capsys, "neu", "--threshold", "90", "--quiet") == (
        1,
        ["2 images: 1 OK, 1 NG, 0 not threshold 90 (--threshold)"],
    )
    monkeypatch.setattr(stub, "record", None)
    assert printed(capsys, "neu/neu 1.png") == (
        0,
        [
            "--    80.000  p     -  neu/neu 1.png",
            "1 images: 0 not no threshold: python test.py RUN --calibrate FOLDER sets one",
        ],
    )


def test_wrong_usage_is_one_line_and_exit_code_2(
    stub: type[Stub], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert template.main(["nowhere"]) == 2
    assert capsys.readouterr().err == "error: nowhere: no image there\n"
    assert list(tmp_path.rglob("*.*")) == [], "a table that is not whole is not left behind"
    paint("a.png", 250)
    for arguments, error in (
        (["a.png", "nowhere"], "nowhere: no image there"),
        (["-", "a.png"], "-: give - alone, or paths"),
        (["a.png", "--threshold", "nan"], "--threshold nan: must be finite"),
    ):
        assert template.main(arguments) == 2
        assert capsys.readouterr() == ("", f"error: {error}\n"), "before any image is predicted"
    with pytest.raises(SystemExit) as stopped:
        template.main(["--treshold", "3", "x"])
    assert stopped.value.code == 2


def test_a_score_is_compared_in_double_precision_and_must_be_finite() -> None:
    score, anomaly_map = float(np.float32(0.1)), np.zeros((2, 2), np.float32)  # a little above 0.1
    assert Rule(0.1).judge(score, anomaly_map).decision == "NG"
    assert template.decide(score, anomaly_map, 0.1, None)["decision"] == "NG"
    for found in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"the score is {found}: "):
            template.decide(found, anomaly_map, 0.1, None)


def test_the_runs_threshold_given_as_a_flag_keeps_its_promise(
    stub: type[Stub], capsys: pytest.CaptureFixture[str]
) -> None:
    paint("a.png", 80)
    assert printed(capsys, "a.png", "--threshold", "100")[1][-1].endswith(
        "threshold 100 (--threshold), about 25 % false alarms"
    )


def test_a_runtime_that_cannot_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"image_size": 4, "threshold": None, "models": {"onnx": {"file": "model.onnx"}}}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"--runtime openvino: this folder holds a model for onnx only"):
        template.Model(tmp_path, "openvino")
    monkeypatch.setitem(template.PACKAGES, "onnx", "no_such_package")
    with pytest.raises(ValueError, match=r"no_such_package is not installed: pip install no_such_package"):
        template.Model(tmp_path)


def test_predictions_csv_says_what_the_lines_say_and_where(stub: type[Stub], tmp_path: Path) -> None:
    paint("=1+1.png", 250)
    paint("b.png", 50)
    Path("c.png").touch()
    assert template.main(["=1+1.png", "b.png", "c.png", "--out", "out/here", "--quiet"]) == 3
    first, second, third = rows_of(tmp_path / "out/here/predictions.csv")
    assert list(first) == template.COLUMNS
    assert float(first.pop("milliseconds")) > 0 and float(second.pop("milliseconds")) > 0
    assert list(first.values()) == ["./=1+1.png", "NG", "250", "2.5", "0.25", "100", "2", "1", "0.0625", ""]
    assert list(second.values()) == ["b.png", "OK", "50", "0.5", "1", "100", "2", "1", "0", ""]
    assert third["path"] == "c.png" and third["problem"] == "is empty (0 bytes): copy it again or remove it"
    assert float(third.pop("milliseconds")) >= 0
    assert set(third.values()) == {"c.png", "??", third["problem"], ""}


def test_json_lines_and_paths_from_standard_input(
    stub: type[Stub], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a b.png", 250)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b.png\n\nno\xff.png\n")))
    assert template.main(["-", "--jsonl"]) == 3
    output = capsys.readouterr()
    found = [json.loads(line) for line in output.out.splitlines()]
    assert [list(row) for row in found] == [template.COLUMNS] * 2
    assert (found[0]["decision"], found[0]["score"], found[0]["x"], found[0]["problem"]) == ("NG", 250.0, 2, None)
    assert os.fsencode(found[1]["path"]) == b"no\xff.png" and found[1]["problem"] == "no such file"
    assert output.err.startswith("2 images: 0 OK, 1 NG, 1 not read.")


def test_names_are_printed_in_one_line() -> None:
    for name in ("a\nb", "caf\udce9", "\x1b[31m", "a\u2028b", "schön ✓"):
        assert template.printable(name) == printable(name)


@pytest.mark.parametrize("package", ["numpy", "PIL"])
def test_a_missing_package_is_one_line(package: str) -> None:
    code = f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_path({template.__file__!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.endswith(": pip install numpy pillow\n")
    assert done.stderr.count("\n") == 1


def test_it_needs_nothing_of_the_project_and_no_torch() -> None:
    code = "import sys; import predict_template; print(sorted({'torch', 'utils', 'config', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "export")
    assert (done.stdout, done.stderr) == ("[]\n", "")
