"""Time a whole sweep over MVTec AD's classes: python -m benchmarks.sweep --device cuda [--out FILE]

main.py trains and scores all 15 classes with their true numbers of training and test images (3,629 and 1,725). Images
are synthetic and weights random: only time is measured. Writing the images is not timed.
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

import main as training
from benchmarks import sections
from benchmarks.data import write_images
from benchmarks.run import table
from benchmarks.timing import measure_peaks
from commandline import Parser, exit_code
from model import TEACHERS, is_resnet
from utils import choose_device, code_revision, environment_info, set_determinism, write_atomically

# The numbers of images: train/good, test/good, anomalous test images.
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
    """The command; returns its exit code. Raises ValueError on user errors."""
    given = parser().parse_args(argv)
    if not 0 < given.scale <= 1:
        raise ValueError(f"--scale {given.scale:g}: must be above 0 and at most 1")
    import torch  # all that needs it takes seconds to import

    from benchmarks import plain
    from benchmarks.implementations import Settings
    from model.precision import resolve_precision

    device = choose_device(given.device)

    def scaled(count: int) -> int:
        return max(1, round(given.scale * count))

    set_determinism(False)
    precision = resolve_precision(given.precision, device)
    images = {name: (scaled(train), scaled(good), scaled(rest)) for name, (train, good, rest) in MVTEC.items()}
    peaks = {name: measure_peaks(name, device, given.image_size) for name in dict.fromkeys(("fp32", precision))}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for seed, (name, counts) in enumerate(images.items()):
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
        count = max(images.values())[0]
        sizes = (given.net, given.image_size, min(given.batch_size, count), count)
        settings = Settings(*sizes, repeats=3, device=device, root=root, precisions=tuple(peaks))
        rows = sections.step(settings)
    row = next(row for row in rows if row.name == f"ours {precision}")
    assert row.gflop is not None
    trained = given.epochs * sum(counts[0] for counts in images.values())
    rate = trained / seconds
    measured: dict[str, Any] = {
        "seconds": seconds,
        "training images a second": rate,
        "share of the peak": rate * row.gflop / settings.batch_size / max(peaks[precision].values()),
    }
    print(f"\n{table(rows, peaks)}\n")
    print(f"15 classes, {given.epochs} epochs, {precision}, scored: {seconds / 60:.1f} minutes; ", end="")
    print(f"{rate:.0f} training images a second, {measured['share of the peak']:.0%} of the peak, everything included")
    if given.out is not None:
        environment = {"revision": code_revision(), **environment_info()}
        record = {
            **environment,
            "settings": vars(given) | {"out": str(given.out)},
            "images": images,
            "peaks": peaks,
            **measured,
            "rows": [asdict(row) for row in rows],
        }
        write_atomically(given.out, json.dumps(record, indent=2) + "\n")
    return 0


def parser() -> Parser:
    """The flags; their defaults are those of the published training."""
    made = Parser(prog="benchmarks.sweep", description=(__doc__ or "").partition("\n\n")[2])
    made.add_argument("--net", choices=tuple(filter(is_resnet, TEACHERS)), default="wide_res50", help="teacher")
    for name, default in (("image_size", 256), ("batch_size", 16), ("epochs", 200)):
        made.add_argument(f"--{name}", type=int, metavar="N", default=default, help=f"({default})")
    made.add_argument(
        "--scale", type=float, metavar="FRACTION", default=1.0, help="fraction of each class's images (1)"
    )
    made.add_argument("--device", default="auto", help="cpu, cuda")
    made.add_argument("--precision", default="auto", choices=("fp32", "bf16", "auto"), help="(auto)")
    made.add_argument("--out", type=Path, metavar="FILE", help="also write everything as JSON")
    return made


if __name__ == "__main__":
    sys.exit(exit_code(main))
