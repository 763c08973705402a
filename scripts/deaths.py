"""Let commands die before every single file operation, start them again, and compare with undisturbed ones.

python -m scripts.deaths [--every K]

Each case begins from the same folders. A child process ends, as by kill -9, just before its n-th file operation (open
for writing, rename, remove, mkdir); then the same command runs to its end. Metrics, predictions and weights must be
those of an undisturbed command, and no stray file may be left. Uses a toy data set and a narrow random teacher.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import main as main_command
import test as test_command
from commandline import Parser, exit_code
from run_files import METRICS, PREDICTIONS, Run
from run_files.csv_files import read_csv

if TYPE_CHECKING:
    import torch

KILLED = 137
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
COMPARED = ("metrics", "epochs_trained", "n_train", "n_test", "identity_sha256")  # of metrics.json
RUN = Path("runs/mvtec/rd4ad/part/seed0")
TRAIN = (
    "--data_path data --class part --variant rd4ad --net efficientnet_lite0 --weights random --image_size 64 "
    "--batch_size 4 --epochs 2 --device cpu --workers 0 --checkpoint_seconds 0 --print_loss 0 --vis"
).split()
Command = tuple[Callable[[Sequence[str]], int], list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all scenarios; prints one line each. Returns 1 where a case ended otherwise than an undisturbed command."""
    parser = Parser(prog="scripts.deaths", description="Commands die before every file operation and start again")
    parser.add_argument("--every", type=int, default=1, help="only every K-th operation (default: 1)")
    every = parser.parse_args(argv).every
    from model import build_teacher  # with torch: once, after the flags, and not in each of the processes
    from training import engines  # noqa: F401

    build_teacher("efficientnet_lite0", "random")  # for what it imports

    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_images(Path("data"))
        for name, (prepared, command, again) in scenarios().items():
            count, problems = scenario(prepared, command, again, every)
            print(f"{name}: {count} deaths, {len(problems)} wrong", flush=True)
            print("".join(f"    {problem}\n" for problem in problems), end="")
            wrong += len(problems)
        os.chdir("/")
    return 1 if wrong else 0


def scenarios() -> dict[str, tuple[list[Command], Command, Command]]:
    """{name: (commands before, the command that dies, the command that goes on)}."""
    train = [*TRAIN, "--seeds", "0"]
    new: Command = (main_command.main, train)
    other: Command = (main_command.main, [*train, "--levels", "1", "2"])
    fresh: Command = (main_command.main, [*train, "--fresh"])
    another_map: Command = (test_command.main, [str(RUN), "--anomaly_map", "mean", "--device", "cpu"])
    images: Command = (test_command.main, [str(RUN), "--images", "data/part/test", "--out", "out", "--device", "cpu"])
    return {
        "a new run": ([], new, new),
        "--fresh over another run": ([other], fresh, fresh),
        "another map": ([new], another_map, another_map),
        "prediction": ([new], images, images),
        "tables": ([new], new, new),
    }


def scenario(prepared: list[Command], command: Command, again: Command, every: int) -> tuple[int, list[str]]:
    """(deaths, what was wrong): every `every`-th file operation of `command` is once its last."""
    begin, work = Path("begin"), Path("work")
    for folder in (begin, work):
        shutil.rmtree(folder, ignore_errors=True)
    begin.mkdir()
    (begin / "data").symlink_to(Path("data").absolute())
    for before in prepared:
        assert child(begin, before) == 0
    shutil.copytree(begin, work, symlinks=True)
    assert child(work, command) == 0
    wanted = outcome(work)
    problems: list[str] = []
    number = 0
    while True:
        number += every
        shutil.rmtree(work)
        shutil.copytree(begin, work, symlinks=True)
        code = child(work, command, number)
        if code != KILLED:  # it has fewer operations than that
            return number // every - 1, problems
        code = child(work, again)
        found = outcome(work)
        if code != 0 or found != wanted:
            differ = [name for name in {*wanted, *found} if wanted.get(name) != found.get(name)]
            problems.append(f"operation {number}: exit code {code}; {', '.join(sorted(differ))}")


def child(folder: Path, command: Command, last: int = 0) -> int:
    """The exit code of the command in `folder`, in a process of its own that dies before file operation `last`."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if last:
        sys.addaudithook(killer(last, os.getcwd()))
    function, arguments = command
    os._exit(exit_code(lambda: function(arguments)))


def killer(last: int, root: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that ends the process before the `last`-th operation that changes a file below `root`."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in EVENTS and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = arguments[0]
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(root):
            return
        count += 1
        if count == last:
            os._exit(KILLED)

    return hook


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal: the names of all files, metrics, predictions, weights and the files of a prediction."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and ".hashes" not in path.parts):
        name = str(path.relative_to(folder))
        found[name] = True
        if path.name == METRICS:
            record = json.loads(path.read_text())
            found[name] = {key: record[key] for key in COMPARED}
            state = Run(path.parent).load_finished()
            found[f"{name}: weights"] = [part.sum().item() for part in _tensors(state["trained"])]
        elif path.name == PREDICTIONS:
            found[name] = [{**row, "milliseconds": ""} for row in read_csv(path)]
        elif path.suffix == ".png":
            found[name] = path.read_bytes()
    return found


def _tensors(state: Any) -> list[torch.Tensor]:
    import torch

    if isinstance(state, torch.Tensor):
        return [state.double()]
    return [tensor for value in state.values() for tensor in _tensors(value)] if isinstance(state, dict) else []


def make_images(root: Path) -> None:
    """A class in the MVTec layout: noise, and noise with a bright square."""
    rng = np.random.default_rng(0)
    for split, defect, count in (("train", "good", 6), ("test", "good", 2), ("test", "square", 2)):
        for number in range(count):
            pixels = rng.integers(90, 110, (64, 64, 3)).astype(np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            if defect != "good":
                pixels[20:30, 20:30], mask[20:30, 20:30] = 255, 255
                save(root / f"part/ground_truth/{defect}/{number:03}_mask.png", mask)
            save(root / f"part/{split}/{defect}/{number:03}.png", pixels)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    sys.exit(exit_code(main))
