"""A strip of overlays from finished runs: python -m scripts.overlay_strip RUNS [RUNS ...] --out FILE.png

A column is an anomalous test image: the image, its anomaly map over it, the outline of its mask. Images are chosen by
name, never by score: of each class the first image of the first defects, or of the defects that --defects names.
Where a class has several runs, the first by path is used.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from commandline import Parser, exit_code
from dataset import Sample
from readers.image_io import read_rgb
from report.drawing import REGULAR, draw_curves, draw_text, one_line, shorten, text_width
from report.overlays import WIDTH
from report.panels import MASK, fit, heat_panel, letterbox, mask_outline
from report.results import find_files
from run_files import METRICS, Run
from utils import write_atomically

if TYPE_CHECKING:  # imported where it is used, since torch takes seconds: --help is there at once
    from detector import Detector

GAP, WIDE_GAP, LINE = 6, 18, 32  # pixels: between panels, between classes, a line of text
ASPECT = 4  # the widest panel; the narrowest is as narrow
FONT = (18, REGULAR)
INK, PAPER = (64, 64, 64), "white"
COLORS = 256  # of the file, which a palette makes three times smaller
PANELS = ("input", "anomaly map", "mask")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    parser = Parser(prog="scripts.overlay_strip", description="A strip of overlays, some test images of each class")
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--images", metavar="N", type=int, default=2, help="images of each class, each of a defect (2)")
    parser.add_argument("--defects", metavar="NAME", nargs="+", help="the defects to show (default: the first by name)")
    parser.add_argument("--side", metavar="N", type=int, default=200, help="height of a panel in pixels (200)")
    parser.add_argument("--data_path", metavar="PATH", type=Path, help="where the benchmark lies now")
    given = parser.parse_args(argv)
    from detector import Detector

    if given.images < 1:
        raise ValueError(f"--images {given.images}: must be at least 1")
    if not 32 <= given.side <= WIDTH:
        raise ValueError(f"--side {given.side}: must be from 32 to {WIDTH} pixels")
    moved = {} if given.data_path is None else {"data_path": given.data_path}
    groups = []
    for run in first_runs(given.runs):
        detector = Detector.load(run, device="cpu", **moved)
        groups.append(draw_class(detector, given.images, given.defects, given.side))
    write_atomically(given.out, to_png(join(groups)))
    print(f"{len(groups)} classes: {given.out}, {given.out.stat().st_size / 1000:.0f} kB")
    return 0


def first_runs(roots: Sequence[Path]) -> list[Path]:
    """The first finished run of each class below the folders, by path; runs over several classes are left out.

    Raises FileNotFoundError where there is none.
    """
    found: dict[str, Path] = {}
    for root in roots:
        for path in find_files([root], METRICS):
            run = Run(path.parent)
            record = run.read(METRICS) if run.finished else {}
            if record and not record.get("classes"):
                found.setdefault(record["class_name"], run.folder)
    if not found:
        raise FileNotFoundError(
            f"no finished run under {', '.join(map(str, roots))}: want the folders of finished runs of one class"
        )
    return list(found.values())


def pick_samples(samples: Sequence[Sample], count: int, defects: Sequence[str] | None = None) -> list[Sample]:
    """The first anomalous sample, by name, of each of the first `count` defects, by name, out of `defects` if given.

    Raises ValueError where there is none.
    """
    first: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda s: (s.defect, s.image.name)):
        if sample.anomalous and (defects is None or sample.defect in defects):
            first.setdefault(sample.defect, sample)
    if not first:
        there = sorted({sample.defect for sample in samples if sample.anomalous})
        raise ValueError(f"no test image of the defects to show; found {', '.join(there) or 'no anomalous image'}")
    return list(first.values())[:count]


def draw_class(detector: Detector, count: int, defects: Sequence[str] | None, side: int) -> Image.Image:
    """The columns of one class."""
    from experiment import Experiment

    test = Experiment(detector.config, detector.device).test_images
    images = test.like(pick_samples(test.samples, count, defects))
    _, maps = detector.score_all(images)
    assert detector.color_scale is not None, "every finished run has one"
    (class_name,) = detector.config.classes
    columns = []
    for i, sample in enumerate(images.samples):
        image = fit(np.asarray(read_rgb(sample.image, sample.upright)), (side, ASPECT * side))
        outlined = image.copy()
        draw_curves(outlined, [(mask_outline(images.mask(i), image.shape[:2]), MASK)])
        size = side, max(image.shape[1], side // ASPECT)
        panels = [letterbox(p, size) for p in (image, heat_panel(image, maps[i], detector.color_scale), outlined)]
        columns.append(draw_column(panels, f"{class_name}, {sample.defect.replace('_', ' ')}"))
    return beside(columns, GAP)


def draw_column(panels: Sequence[np.ndarray], title: str) -> Image.Image:
    """Panels of one size (h, w, 3), one below the other, below their title."""
    height, width = panels[0].shape[:2]
    column = Image.new("RGB", (width, LINE + len(panels) * (height + GAP) - GAP), PAPER)
    write(column, shorten(one_line(title), width, FONT), (width / 2, LINE / 2))
    for row, panel in enumerate(panels):
        column.paste(Image.fromarray(panel), (0, LINE + row * (height + GAP)))
    return column


def join(groups: Sequence[Image.Image]) -> Image.Image:
    """The classes side by side, with the name of each row at the left."""
    height = groups[0].height
    step = (height - LINE + GAP) / len(PANELS)
    names = Image.new("RGB", (height, LINE), PAPER)  # turned to read upward
    for row, name in enumerate(PANELS):
        write(names, name, (height - LINE - (row * step + (step - GAP) / 2), LINE / 2))
    return beside([beside([names.rotate(90, expand=True), groups[0]], 0), *groups[1:]], WIDE_GAP)


def beside(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Images of one height side by side."""
    row = Image.new("RGB", (sum(image.width + gap for image in images) - gap, images[0].height), PAPER)
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def write(image: Image.Image, text: str, center: tuple[float, float]) -> None:
    """Draw a line of text around its center."""
    pixels, (x, y) = np.array(image), center
    draw_text(pixels, text, (x - text_width(text, FONT) / 2, y + 0.35 * FONT[0]), INK, FONT)
    image.paste(Image.fromarray(pixels))


def to_png(strip: Image.Image) -> bytes:
    """The file's bytes, with a palette of COLORS."""
    palette = strip.quantize(COLORS, method=Image.Quantize.MEDIANCUT, kmeans=3)
    file = io.BytesIO()
    strip.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(exit_code(main))
