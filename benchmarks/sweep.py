"""A whole sweep over MVTec AD's classes: python -m benchmarks.sweep --device cuda [--out FILE]

All 15 classes with their true numbers of training and test images (3,629 and 1,725), trained and scored by main.py.
Images are synthetic and weights random: only time is measured. What is not timed: writing the images.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import main as training
from benchmarks import plain, sections
from benchmarks.data import write_images
from benchmarks.implementations import Settings
from benchmarks.run import table
from benchmarks.timing import peaks
from commandline import Parser, exit_code
from model.precision import resolve_precision
from utils import choose_device, code_revision, environment_info, set_determinism, write_atomically

# Images of train/good, test/good and of the test's defects.
MVTEC = {
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError on what a user can mend."""
    given = parser().parse_args(argv)
    if not 0 < given.scale <= 1:
        raise ValueError(f"--scale {given.scale:g}: a share of the images is wanted, above 0 and up to 1")
    device = choose_device(given.device)

    def fewer(count: int) -> int:
        return max(1, round(given.scale * count))

    set_determinism(False)
    precision = resolve_precision(given.precision, device)
    scaled = {name: (fewer(train), fewer(good), fewer(defective)) for name, (train, good, defective) in MVTEC.items()}
    peak = {kind: peaks(kind, device, given.image_size) for kind in dict.fromkeys(("fp32", precision))}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for seed, (name, counts) in enumerate(scaled.items()):
            write_images(root / name, counts, 4 * given.image_size, seed)
        torch.save(plain.random_teacher(given.net).state_dict(), root / "teacher.pth")
        flags = f"--net {given.net} --image_size {given.image_size} --batch_size {given.batch_size} --cache_gb 16"
        flags += f" --epochs {given.epochs} --device {given.device} --precision {precision}"
        paths = ["--data_path", str(root), "--weights", str(root / "teacher.pth"), "--save_path", str(root / "runs")]
        started = time.perf_counter()
        code = training.main([*flags.split(), *paths])
        seconds = time.perf_counter() - started
        if code:
            return code
        count = max(scaled.values())[0]
        sizes = (given.net, given.image_size, min(given.batch_size, count), count)
        settings = Settings(*sizes, repeats=3, device=device, root=root, precisions=tuple(peak))
        rows = sections.step(settings)
    row = next(row for row in rows if row.name == f"ours {precision}")
    assert row.gflop is not None
    trained = given.epochs * sum(counts[0] for counts in scaled.values())
    rate = trained / seconds
    found: dict[str, Any] = {
        "seconds": seconds,
        "training images a second": rate,
        "share of the peak": rate * row.gflop / settings.batch_size / max(peak[precision].values()),
    }
    print(f"\n{table(rows, peak)}\n")
    print(f"15 classes, {given.epochs} epochs, {precision}, scored: {seconds / 60:.1f} minutes; ", end="")
    print(f"{rate:.0f} training images a second, {found['share of the peak']:.0%} of the peak, all included")
    if given.out is not None:
        about = {"revision": code_revision(), **environment_info(), "settings": vars(given) | {"out": str(given.out)}}
        record = {**about, "images": scaled, "peaks": peak, **found, "rows": [asdict(row) for row in rows]}
        write_atomically(given.out, json.dumps(record, indent=2) + "\n")
    return 0


def parser() -> Parser:
    """The flags; the defaults are the published training's."""
    made = Parser(prog="benchmarks.sweep", description=(__doc__ or "").partition("\n\n")[2])
    made.add_argument("--net", choices=tuple(plain.TEACHERS), default="wide_res50", help="teacher")
    for name, default in (("image_size", 256), ("batch_size", 16), ("epochs", 200)):
        made.add_argument(f"--{name}", type=int, metavar="N", default=default, help=f"({default})")
    made.add_argument("--scale", type=float, metavar="SHARE", default=1.0, help="of the images of each class (1)")
    made.add_argument("--device", default="auto", help="cpu, cuda")
    made.add_argument("--precision", default="auto", choices=("fp32", "bf16", "auto"), help="(auto)")
    made.add_argument("--out", type=Path, metavar="FILE", help="also write all of it there as JSON")
    return made


if __name__ == "__main__":
    sys.exit(exit_code(main))
