"""Time this project against a plain restatement of the published loop: python -m benchmarks.run [--check] [--out FILE]

This project and the published loop run in turn, each in a process of its own, from the same weights on the same images.
A speed-up is the seconds of what a row is compared with over its own, in the same round. Weights are random and images
synthetic: only time and memory are measured. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.data import CLASS_NAME, write_images
from benchmarks.sections import DEFAULT, SECTIONS, Row
from benchmarks.timing import measure_peaks
from commandline import Parser, exit_code
from model import TEACHERS, is_resnet
from utils import (
    choose_device,
    code_revision,
    environment_info,
    format_table,
    set_up_libraries,
    write_atomically,
)

PACKAGES = ("torchvision", "scipy", "scikit-learn", "scikit-image", "pillow", "opencv-python-headless")
COMPARED = ("adeval", "anomalib")  # packages that a section compares with where they are installed
# The least median speed-up that --check accepts, by section, row and reference; set for these sizes alone.
SIZES = {"net": "wide_res50", "image_size": 256, "batch_size": 16, "images": 32, "device": "cpu"}
FLOORS = {
    ("step", "ours fp32", "plain"): 2.8,
    ("evaluation", "ours fp32", "plain"): 1.6,
    # over half of the time is decoding PNGs, which the plain loop does too: 15 is out of reach
    ("evaluation", "ours, all but the network", "plain, all but the network"): 10.0,
    ("metrics", "ours", "published AUPRO"): 150.0,
    ("metrics", "ours", "adeval"): 2.0,
    ("inference", "ours fp32", "plain"): 1.2,
    ("inference", "ours fp32, compiled", "plain"): 1.6,
    ("inference", "ours fp32, 16 images", "plain, 16 images"): 1.2,
    ("inference", "ours fp32, compiled, 16 images", "plain, 16 images"): 1.6,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError on user errors."""
    given = parser().parse_args(argv)
    for name in ("image_size", "batch_size", "images", "repeats"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name} {getattr(given, name)}: must be at least 1")
    if given.image_size % 32:
        raise ValueError(f"--image_size {given.image_size}: must be a multiple of 32")
    if given.images < max(2, given.batch_size):
        raise ValueError(
            f"--images {given.images}: must fill a batch of --batch_size {given.batch_size}, and be at least 2"
        )
    if "growth" in given.sections and given.images < 8:
        raise ValueError(
            f"--images {given.images}: the section growth needs at least 8, since it also takes a quarter of them"
        )
    if given.check and any(getattr(given, name) != value for name, value in SIZES.items()):
        flags = " ".join(f"--{name} {value}" for name, value in SIZES.items())
        raise ValueError(f"--check: its floors were set for {flags}")
    import torch  # all that needs it takes seconds to import

    from benchmarks import plain
    from benchmarks.implementations import Settings
    from model.precision import resolve_precision

    device = choose_device(given.device)
    set_up_libraries(deterministic=False, fast=given.one_process)
    if given.threads:
        torch.set_num_threads(given.threads)
    environment: dict[str, Any] = {"revision": code_revision(), "load": os.getloadavg(), **environment_info()}
    installed = [name for name in COMPARED if find_spec(name) is not None]
    environment["versions"] |= {name: metadata.version(name) for name in (*PACKAGES, *installed)}
    print(f"{environment['hardware']}; load {environment['load'][0]:.1f}; revision {environment['revision']}")
    print(", ".join(f"{name} {version}" for name, version in environment["versions"].items()))

    limit = os.environ.get("ATEN_CPU_CAPABILITY")  # torch's own switch, for measuring as on an older processor
    precisions = ("fp32",) if limit else tuple(dict.fromkeys(("fp32", resolve_precision("auto", device))))
    if "bf16" not in precisions:
        print("bf16 is not timed: this device does not have it in hardware, or is limited")
    peaks = {name: measure_peaks(name, device, given.image_size) for name in precisions}
    for precision, rates in peaks.items():
        print(f"peak {precision}: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: getattr(given, name) for name in ("net", "image_size", "batch_size", "images", "repeats")}
        settings = Settings(**sizes, device=device, root=Path(folder))
        settings = replace(settings, precisions=precisions, subprocesses=not given.one_process)
        good = -(-settings.images // 4)  # a quarter of the test set, as in MVTec
        counts = (settings.images, good, settings.images - good)
        write_images(settings.root / CLASS_NAME, counts, 4 * settings.image_size)  # MVTec's 1024 pixels for 256
        torch.save(plain.random_teacher(settings.net).state_dict(), settings.root / "teacher.pth")
        for name in given.sections:
            found = SECTIONS[name](settings)
            if found:
                print(f"\n{table(found, peaks)}", flush=True)
            rows += found
    if given.out is not None:
        lines = [{**asdict(row), "of_peak": row.share_of(peaks), "floor": FLOORS.get(row.key)} for row in rows]
        used = {**sizes, "device": str(device), "one_process": given.one_process, "limited_to": limit}
        record = {**environment, "settings": used, "peaks": peaks, "rows": lines}
        write_atomically(given.out, json.dumps(record, indent=2) + "\n")
    return check(rows) if given.check else 0


def parser() -> Parser:
    """The flags; the defaults are the sizes that the floors were set for."""
    made = Parser(prog="benchmarks.run", description=(__doc__ or "").partition("\n\n")[2])
    made.add_argument("--net", choices=tuple(filter(is_resnet, TEACHERS)), default=SIZES["net"], help="teacher")
    for name, text in (
        ("image_size", "the images are resized to this size, a quarter of their own"),
        ("batch_size", "images per step"),
        ("images", "training images, and as many test images"),
    ):
        made.add_argument(f"--{name}", type=int, metavar="N", default=SIZES[name], help=f"{text} ({SIZES[name]})")
    made.add_argument(
        "--repeats", type=int, metavar="N", default=5, help="timed rounds (5); the section metrics takes half of them"
    )
    made.add_argument(
        "--sections",
        nargs="+",
        choices=tuple(SECTIONS),
        default=DEFAULT,
        metavar="NAME",
        help=f"any of {', '.join(SECTIONS)} (default: {' '.join(DEFAULT)})",
    )
    made.add_argument("--device", default=SIZES["device"], help="cpu, cuda")
    made.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: torch's own choice)")
    made.add_argument(
        "--one_process",
        action="store_true",
        help="time everything in this process, so that the plain loop keeps freed memory too",
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="also write everything as JSON")
    made.add_argument("--check", action="store_true", help="exit with 1 where a speed-up is below its floor")
    return made


HEADER = ("", "seconds", "speed-up", "GFLOP", "GFLOP/s", "% of peak", "GiB", "max relative error")


def table(rows: Sequence[Row], peaks: Mapping[str, Mapping[str, float]]) -> str:
    """The rows as text: median seconds, and speed-ups with their quartiles."""
    return format_table(HEADER, [cells(row, peaks) for row in rows])


def cells(row: Row, peaks: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row's text, column by column of HEADER."""
    title = f"{row.section}: {row.name}" + (f" against {row.against}" if row.ratio else "")
    ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})" if row.ratio else "-"
    gflop = [f"{row.gflop:.1f}", f"{row.gflop / row.seconds.median:.0f}"] if row.gflop is not None else ["-", "-"]
    share = row.share_of(peaks)
    percent = None if share is None else 100 * share
    formats = ((percent, "{:.0f}"), (row.peak_gib, "{:.1f}"), (row.difference, "{:.0e}"))
    rest = ["-" if value is None else text.format(value) for value, text in formats]
    return [title, f"{row.seconds.median:.4g}", ratio, *gflop, *rest]


def check(rows: Sequence[Row]) -> int:
    """Print a line per speed-up that has a floor; 1 where one is below its floor or none has a floor, else 0."""
    floored = [row for row in rows if row.ratio is not None and row.key in FLOORS]
    below = 0
    for row in floored:
        assert row.ratio is not None
        floor, median = FLOORS[row.key], row.ratio.median
        below += median < floor
        verdict = "ok" if median >= floor else "BELOW"
        print(f"{verdict}: {row.section}, {row.name} against {row.against}: {median:.2f}, floor {floor:g}")
    if not floored:
        print("no speed-up of these sections has a floor")
    return int(below > 0 or not floored)


if __name__ == "__main__":
    sys.exit(exit_code(main))
