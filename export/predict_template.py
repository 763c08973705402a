"""Predict with the exported model: python predict.py IMAGES... (files, folders, or - for paths on standard input).

Needs onnxruntime or openvino, numpy and pillow. Prints a line per image and writes predictions.csv into --out.
Exit code: 0 all OK, 1 some NG, 2 wrong usage, 3 some image could not be read.
"""

# This file stands alone. It reads from the command down: command, model, decision, output, list of files, pixels.

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import re
import stat
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

try:
    import numpy as np
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError as missing:
    print(f"error: {missing}: pip install numpy pillow", file=sys.stderr)
    raise SystemExit(2) from None

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
COLUMNS = "path decision score relative p_value threshold x y area problem milliseconds".split()
Row = dict[str, Any]  # the values of COLUMNS, None where there is none
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, or - for paths on standard input")
    parser.add_argument("--threshold", type=float, help="an image is NG if its score is above it (default: the run's)")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder of predictions.csv")
    parser.add_argument("--runtime", choices=PACKAGES, help="default: the first one that is installed")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--jsonl", action="store_true", help="one JSON object per image in place of lines")
    parser.add_argument("--quiet", action="store_true", help="print the last line only")
    options = parser.parse_args(argv)
    try:
        return predict(options)
    except (ValueError, OSError) as problem:
        print(f"error: {printable(str(problem))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def predict(options: argparse.Namespace) -> int:
    """Predict all images, one by one; returns the exit code."""
    if options.threshold is not None and not math.isfinite(options.threshold):
        raise ValueError(f"--threshold {options.threshold}: must be finite")
    model = Model(Path(__file__).resolve().parent, options.runtime, options.threads)
    value = options.threshold if options.threshold is not None else (model.threshold or {}).get("value")
    images = find_images(options.images)
    decisions: Counter[str | None] = Counter()
    started = time.perf_counter()
    with whole_or_not_at_all(options.out / "predictions.csv") as table:
        table.write(csv_line(COLUMNS))
        for path, name in images:
            row = judge(model, path, value)
            table.write(csv_line(cells(row)))
            decisions[row["decision"]] += 1
            if options.jsonl:
                say(json.dumps(row), sys.stdout)
            elif not options.quiet:
                say(line(row, name), sys.stdout)
    each = (time.perf_counter() - started) / max(1, decisions.total())
    source = "run" if options.threshold is None else "--threshold"
    say(summary(decisions, each, value, source, model.threshold), sys.stderr if options.jsonl else sys.stdout)
    return 3 if decisions["??"] else 1 if decisions["NG"] else 0


class Model:
    """The model of a folder: `facts` is model.json, `threshold` its record of the threshold or None.

    Raises ValueError where the runtime has no model in the folder or its package is missing.
    """

    def __init__(self, folder: Path, runtime: str | None = None, threads: int | None = None) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.size: int = self.facts["image_size"]
        self.threshold: dict[str, Any] | None = self.facts["threshold"]
        models = self.facts["models"]
        installed = [name for name in models if importlib.util.find_spec(PACKAGES[name])]
        chosen = runtime or (installed or list(models))[0]
        if chosen not in models:
            raise ValueError(f"--runtime {chosen}: this folder holds a model for {' and '.join(models)} only")
        if chosen not in installed:
            raise ValueError(f"{PACKAGES[chosen]} is not installed: pip install {PACKAGES[chosen]}")
        load = {"onnx": load_onnx, "openvino": load_openvino}[chosen]
        self._run = load(folder / models[chosen]["file"], threads)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, S, S) uint8 RGB -> image scores (N,) and anomaly maps (N, S, S), float32."""
        return self._run(images)

    def read(self, path: Path) -> np.ndarray:
        """(3, S, S) uint8 RGB, resized as in training: bilinear with antialiasing, the aspect ratio is not kept.

        Raises Unreadable.
        """
        image = read_rgb(path, self.facts["max_pixels"]).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def load_onnx(path: Path, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(["scores", "maps"], {"images": images}))


def load_openvino(path: Path, threads: int | None) -> Run:
    import openvino

    # without the first hint a processor that has bf16 would compute in it
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    compiled = openvino.Core().compile_model(path, "CPU", hints)

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = compiled({"images": images})
        return outputs["scores"], outputs["maps"]

    return run


# --- the decision ---


def judge(model: Model, path: Path, value: float | None) -> Row:
    """The row of one image; `value` is the threshold, None without one. Raises ValueError for a score of NaN."""
    row, started = dict.fromkeys(COLUMNS) | {"path": str(path)}, time.perf_counter()
    try:
        pixels = model.read(path)
    except (Unreadable, MemoryError) as problem:
        row |= {"decision": "??", "problem": str(problem) or type(problem).__name__}
    else:
        (score,), (anomaly_map,) = model(pixels[None])
        row |= decide(float(score), anomaly_map, value, model.threshold)
    row["milliseconds"] = round(1000 * (time.perf_counter() - started), 1)
    return row


def decide(score: float, anomaly_map: np.ndarray, value: float | None, calibrated: dict[str, Any] | None) -> Row:
    """What a score and a map (S, S) say; p-value and area come from the run's threshold, whatever `value` is."""
    if not math.isfinite(score):
        raise ValueError(f"the score is {score}: the image or the network holds values that are not finite")
    y, x = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    found: Row = {"score": score, "x": int(x), "y": int(y)}
    if value is not None:
        found |= {"decision": "NG" if score > value else "OK", "threshold": value}
        found["relative"] = score / value if value > 0 else None
    if calibrated is not None:
        normal = calibrated["scores"]
        found["p_value"] = (1 + sum(other >= score for other in normal)) / (len(normal) + 1)
        found["area"] = float((anomaly_map > calibrated["pixel"]).mean())
    return found


# --- the output ---


def line(row: Row, name: str) -> str:
    """OK     1.930  p 0.412  new 1.png"""
    if row["problem"]:
        return f"?? {'-':>9}  p {'-':>5}  {name}  {row['problem']}"
    p_value = f"{'-':>5}" if row["p_value"] is None else f"{row['p_value']:.3f}"
    return f"{row['decision'] or '--':<2} {row['score']:>9.3f}  p {p_value}  {name}"


def summary(
    decisions: Counter[str | None], each: float, value: float | None, source: str, calibrated: dict[str, Any] | None
) -> str:
    """The counts, the seconds an image takes, the threshold and what it promises."""
    decided = "" if value is None else f"{decisions['OK']} OK, {decisions['NG']} NG, "
    text = f"{decisions.total()} images: {decided}{decisions['??']} not read. {each:.2g} s each. "
    if value is None:
        return f"{text}no threshold: python test.py RUN --calibrate FOLDER sets one"
    promise = ""
    if calibrated is not None and value == calibrated["value"]:
        rate = 100 * calibrated["k"] / (len(calibrated["scores"]) + 1)
        promise = f", about {rate:.2g} % false alarms"
    return f"{text}threshold {value:.4g} ({source}){promise}"


def say(text: str, stream: TextIO) -> None:
    """Print a line; nothing more once the reader has closed the stream (| head)."""
    try:
        print(printable(text), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """The text in one line: control characters and bytes that are not UTF-8 are escaped."""

    def escaped(character: str) -> str:
        if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a name that is not UTF-8
            return f"\\x{ord(character) - 0xDC00:02x}"
        is_control = unicodedata.category(character)[0] == "C"
        return character.encode("unicode_escape").decode() if is_control else " "

    return "".join(c if c.isprintable() else escaped(c) for c in text)


def cells(row: Row) -> list[Any]:
    """Nine digits of a number; a path that no spreadsheet takes for a formula."""
    formula = re.match("'*[=+\\-@\t\r\n＝＋－＠]", row["path"])
    row = row | {"path": f"./{row['path']}"} if formula else row
    return [f"{value:.9g}" if isinstance(value, float) else value for value in row.values()]


def csv_line(values: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)  # with its own \r\n every version of Python quotes a carriage return
    return text.getvalue().removesuffix("\r\n") + "\n"


@contextlib.contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[TextIO]:
    """A text file to write, which appears when the block is done, and not where it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- the list of files ---

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def find_images(given: Sequence[str]) -> Iterable[tuple[Path, str]]:
    """(path, its name in the output) of every image: files as given, those below a folder relative to it, by name.

    Raises ValueError for a path without an image.
    """
    if list(given) == ["-"]:
        return standard_input()
    if "-" in given:
        raise ValueError("-: give - alone, or paths")
    images = []
    for text in given:
        root = Path(text)
        if root.is_dir():
            found = [(path, str(path.relative_to(root))) for path in sorted(walk(root))]
        else:
            found = [(root, text)] if root.is_file() else []
        if not found:
            raise ValueError(f"{text}: no image there")
        images += found
    return images


def standard_input() -> Iterator[tuple[Path, str]]:
    """The paths on standard input, a line each, as they come."""
    for line in sys.stdin.buffer:
        if name := os.fsdecode(line.rstrip(b"\r\n")):
            yield Path(name), name


def walk(root: Path) -> Iterator[Path]:
    """The image files below a folder, also through links to folders, each folder once.

    Raises OSError where a folder cannot be read.
    """

    def fail(problem: OSError) -> None:
        raise problem

    seen = set(root.resolve().parents)
    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        if (target := Path(place).resolve()) in seen:
            folders.clear()
            continue
        seen.add(target)
        yield from (Path(place, n) for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))


# --- the pixels of a file, as the project reads them (readers/image_io.py) ---

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # nothing else is decoded, whatever a file is called
ORIENTATION = 0x0112  # the EXIF tag
ROTATE_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
KINDS_OF_FILE = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns


class Unreadable(ValueError):
    """Why a file is not read as an image, and what to do."""


def read_rgb(path: Path, max_pixels: int) -> Image.Image:
    """The image of a file as RGB, upright by its EXIF orientation. Raises Unreadable."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # to open a FIFO would wait forever
            kind = next((name for is_kind, name in KINDS_OF_FILE.items() if is_kind(mode)), "a device")
            raise Unreadable(f"is {kind}, wanted an image file: remove or rename it")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                found = f"has {width} x {height} = {width * height} pixels, more than --max_pixels {max_pixels}"
                raise Unreadable(f"{found}: scale the image down, or raise the limit if memory allows")
            if image.format == "BMP" and image.mode == "1":
                check_bits(path)
            image.load()
            rotation = None if image.format == "TIFF" else ROTATE_UPRIGHT.get(orientation(image))  # Pillow rotates TIFF
        return to_rgb(image if rotation is None else image.transpose(rotation))
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("a link to a file that does not exist" if path.is_symlink() else "no such file") from None
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise Unreadable(explain_unreadable(path, error)) from None


def check_bits(path: Path) -> None:
    """Pillow takes a BMP of two colors for one bit a pixel, whatever it has."""
    with path.open("rb") as file:
        head = file.read(30)
    bits = int.from_bytes(head[24:26] if head[14] == 12 else head[28:30], "little")  # 12: the header of OS/2
    if bits != 1:
        raise Unreadable(
            f"is a BMP of {bits} bits with a palette of black and white, which is not decoded correctly: save it as PNG"
        )


def orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged tag: the pixels may be whole
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Gray is repeated, palettes are looked up, 16 bits are scaled (65535 -> 255), transparent pixels become black."""
    transparent = image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode == "F":
        raise Unreadable("is a floating-point image, whose range is unknown: convert it to 8 or 16 bits")
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        wide = np.asarray(image).astype(np.float64)
        if wide.min() < 0 or wide.max() > 65535:
            found = f"{wide.min():.0f} to {wide.max():.0f}"
            raise Unreadable(f"holds values from {found}, wanted 0 to 65535: convert it to 8 or 16 bits")
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8)).convert("RGB")
    if transparent:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def explain_unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be decoded, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(23)
    except OSError as cause:
        return f"cannot be opened ({cause.strerror}): check its permissions and the disk"
    if not head:
        return "is empty (0 bytes): copy it again or remove it"
    if head == b"version https://git-lfs":
        return "is a Git-LFS pointer, not an image: run `git lfs pull` where it was cloned"
    if isinstance(error, UnidentifiedImageError):
        wanted = "PNG, JPEG, BMP, TIFF or WebP"
        return f"is not an image of a format that is read ({wanted}): copy it again, convert it or remove it"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded ({printable(reason[:200])}): copy it again or remove it"


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
