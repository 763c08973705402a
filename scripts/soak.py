"""Many runs in one process: memory, threads and open files must not grow.

python -m scripts.soak [--runs N]

Trains, scores and predicts again and again on a toy data set with a narrow random teacher, each run with its own seed.
The first quarter of the runs is not counted: allocators and caches fill in them. Exit code 1 where something grew.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import main as main_command
import test as test_command
from commandline import Parser, exit_code
from scripts.deaths import RUN, TRAIN, make_images
from utils import format_table

GROWTH = 0.03  # of the resident memory, over all counted runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; print a table of memory, threads and files. Returns 1 where one of them grew."""
    parser = Parser(prog="scripts.soak", description="Many runs in one process: nothing may grow")
    parser.add_argument("--runs", type=int, default=60, metavar="N", help="how many (60), at least 8")
    count = parser.parse_args(argv).runs
    if count < 8:
        raise ValueError(f"--runs {count}: must be at least 8")
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_images(Path("data"))
        for seed in range(count):
            with contextlib.redirect_stdout(io.StringIO()):
                one_run(seed)
            measured.append(resources())
        os.chdir("/")
    counted = measured[count // 4 :]
    first, last = counted[0], counted[-1]
    rows = [[name, str(first[name]), str(max(m[name] for m in counted)), str(last[name])] for name in first]
    print(format_table([f"{len(counted)} runs", "first", "highest", "last"], rows))
    limits = first | {"memory, MiB": first["memory, MiB"] * (1 + GROWTH)}
    grew = [name for name, limit in limits.items() if last[name] > limit]
    print(f"grew: {', '.join(grew)}" if grew else "nothing grew")
    return 1 if grew else 0


def one_run(seed: int) -> None:
    """Train, score again, predict."""
    run = RUN.with_name(f"seed{seed}")
    assert main_command.main([*TRAIN, "--seeds", str(seed)]) == 0
    assert test_command.main([str(run), "--device", "cpu"]) == 0
    assert test_command.main([str(run), "--images", "data/part/test", "--device", "cpu"]) in (0, 1)


def resources() -> dict[str, int]:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory, MiB": pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


if __name__ == "__main__":
    sys.exit(exit_code(main))
