"""Predict with the exported model: python predict.py IMAGES... (files, folders, or - for paths on standard input).

Needs onnxruntime or openvino, numpy and pillow. Prints a line per image and writes predictions.csv into --out.
Exit code: 0 all OK, 1 some NG, 2 wrong usage, 3 some image could not be read.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
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

COLUMNS = "path decision score relative p_value threshold x y area problem milliseconds".split()
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # nothing else is decoded, whatever a file is called
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


# --- the model ---


class Model:
    """The model of a folder: `facts` is model.json, `threshold` its record of the threshold or None.

    Raises ValueError where the runtime's package is missing.
    """

    def __init__(self, folder: Path, runtime: str | None = None, threads: int | None = None) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.size: int = self.facts["image_size"]
        self.threshold: dict[str, Any] | None = self.facts["threshold"]
        models = self.facts["models"]
        usable = [name for name in models if importlib.util.find_spec(PACKAGES[name])]
        chosen = runtime or (usable or list(models))[0]
        if chosen not in usable:
            raise ValueError(
                f"this folder runs with {' or '.join(models)}; not installed: pip install {PACKAGES[chosen]}"
            )
        load = {"onnx": load_onnx, "openvino": load_openvino}[chosen]
        self._run = load(folder / models[chosen]["file"], threads)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, S, S) uint8 RGB -> image scores (N,) and anomaly maps (N, S, S), float32."""
        return self._run(images)

    def read(self, path: Path) -> np.ndarray:
        """(3, S, S) uint8 RGB, resized as in training: bilinear with antialiasing, the aspect ratio is not kept."""
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


# --- images, read as the project reads them ---

ORIENTATION = 0x0112  # the EXIF tag, and the operation that turns each orientation upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device"}
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns


class Unreadable(ValueError):
    """Why a file is not read as an image, and what to do."""


def read_rgb(path: Path, max_pixels: int) -> Image.Image:
    """The image of a file as RGB, upright by its EXIF orientation. Raises Unreadable."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "a device")
            raise Unreadable(f"is {kind}, wanted an image file: remove or rename it")
        with Image.open(path, formats=FORMATS) as image:
            check_header(path, image, max_pixels)
            image.load()
            turn = None if image.format == "TIFF" else UPRIGHT.get(orientation(image))  # Pillow turns a TIFF itself
        return to_rgb(image if turn is None else image.transpose(turn))
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("a link to a file that does not exist" if path.is_symlink() else "no such file") from None
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise Unreadable(explain(path, error)) from None


def check_header(path: Path, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable(
            f"has {width} x {height} = {width * height} pixels, more than --max_pixels {max_pixels}: scale the image "
            "down, or raise the limit if memory allows"
        )
    if image.format == "BMP" and image.mode == "1":  # Pillow takes it for one bit a pixel, whatever it is
        with path.open("rb") as file:
            head = file.read(30)
        bits = int.from_bytes(head[24:26] if head[14] == 12 else head[28:30], "little")
        if bits != 1:
            raise Unreadable(
                f"is a BMP of {bits} bits with a palette of black and white, which is not decoded correctly: save it "
                "as PNG"
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


def explain(path: Path, error: Exception) -> str:
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


def find_images(given: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """(path, its name in the output) of every image: files as given, those below a folder relative to it, by name.

    Raises ValueError for a path without an image.
    """
    for text in given:
        if text == "-":
            for line in sys.stdin.buffer:
                name = os.fsdecode(line.rstrip(b"\r\n"))
                if name:
                    yield Path(name), name
            continue
        root = Path(text)
        found = sorted(walk(root)) if root.is_dir() else [root] if root.is_file() else []
        if not found:
            raise ValueError(f"{text}: no image there")
        yield from ((path, str(path.relative_to(root)) if root.is_dir() else text) for path in found)


def walk(root: Path) -> Iterator[Path]:
    """The image files below a folder, also through links to folders, each folder once."""
    seen = set(root.resolve().parents)
    for place, folders, names in os.walk(root, followlinks=True):
        if (target := Path(place).resolve()) in seen:
            folders.clear()
            continue
        seen.add(target)
        yield from (Path(place, n) for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))


# --- what is printed and written ---


def judge(model: Model, path: Path, value: float | None) -> dict[str, Any]:
    """One row of predictions.csv; `value` is the threshold, None without one."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["path"], started = str(path), time.perf_counter()
    try:
        pixels = model.read(path)
    except (Unreadable, MemoryError) as problem:
        row |= {"decision": "??", "problem": str(problem) or "out of memory"}
        return row
    (score,), (anomaly_map,) = model(pixels[None])
    row["score"] = shortened(score)
    row["y"], row["x"] = (int(i) for i in np.unravel_index(anomaly_map.argmax(), anomaly_map.shape))
    if value is not None:
        row |= {"decision": "NG" if score > value else "OK", "threshold": shortened(value)}
        row["relative"] = shortened(score / value) if value > 0 else None
    if model.threshold is not None:
        normal = np.array(model.threshold["scores"])
        row["p_value"] = shortened((1 + (normal >= score).sum()) / (len(normal) + 1))
        row["area"] = shortened((anomaly_map > model.threshold["pixel"]).mean())
    row["milliseconds"] = round(1000 * (time.perf_counter() - started), 1)
    return row


def shortened(value: Any) -> float:
    return float(f"{value:.9g}")


def mark(row: dict[str, Any]) -> str:
    """OK, NG, -- without a threshold, ?? for what cannot be read."""
    return "??" if row["problem"] else row["decision"] or "--"


def line(row: dict[str, Any], name: str) -> str:
    if row["problem"]:
        return f"?? {'-':>9}  p {'-':>5}  {name}  {row['problem']}"
    p_value = f"{'-':>5}" if row["p_value"] is None else f"{row['p_value']:.3f}"
    return f"{mark(row):<2} {row['score']:>9.3f}  p {p_value}  {name}"


def last_line(marks: Counter[str], seconds: float, given: float | None, threshold: dict[str, Any] | None) -> str:
    """The counts, the time an image takes, the threshold and what it promises."""
    images = marks.total()
    decided = f"{marks['OK']} OK, {marks['NG']} NG, " if given is not None or threshold else ""
    text = f"{images} images: {decided}{marks['??']} not read. {seconds / max(images, 1):.2g} s each. "
    if given is not None:
        return f"{text}threshold {given:.4g} (--threshold)"
    if threshold is None:
        return f"{text}no threshold: python test.py RUN --calibrate FOLDER sets one"
    rate = 100 * threshold["k"] / (len(threshold["scores"]) + 1)
    return f"{text}threshold {threshold['value']:.4g} (run), about {rate:.2g} % false alarms"


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


def cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"./{value}" if isinstance(value, str) and re.match("'*[=+\\-@\t\r\n＝＋－＠]", value) else value


@contextlib.contextmanager
def csv_rows(path: Path) -> Iterator[Callable[[Iterable[Any]], object]]:
    """A function that writes a row; the file appears whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            yield lambda row: writer.writerow(map(cell, row))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def predict(options: argparse.Namespace) -> int:
    model = Model(Path(__file__).resolve().parent, options.runtime, options.threads)
    value = options.threshold if options.threshold is not None else (model.threshold or {}).get("value")
    marks: Counter[str] = Counter()
    started = time.perf_counter()
    with csv_rows(options.out / "predictions.csv") as write:
        for path, name in find_images(options.images):
            row = judge(model, path, value)
            write(row.values())
            marks[mark(row)] += 1
            if options.jsonl:
                say(json.dumps(row), sys.stdout)
            elif not options.quiet:
                say(line(row, name), sys.stdout)
    seconds = time.perf_counter() - started
    say(last_line(marks, seconds, options.threshold, model.threshold), sys.stderr if options.jsonl else sys.stdout)
    return 3 if marks["??"] else 1 if marks["NG"] else 0


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


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
