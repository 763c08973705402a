"""Commands start at once: --help, a misspelt flag and the first line of a run need nothing that is slow to import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toys import ROOT, make_mvtec

SLOW = {"torch", "torchvision", "cv2", "scipy", "sklearn", "skimage", "timm", "pandas"}
MODULES = [
    f"{path.parent.name}.{path.stem}"
    for package in ("benchmarks", "scripts")
    for path in sorted((ROOT / package).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]
COMMANDS = ("main.py", "test.py", *(f"-m {name}" for name in MODULES if name != "scripts.export"))  # that one has torch
NEED_OPENCV = {
    f"-m scripts.{name}" for name in ("compare", "null_rates", "overlay_strip", "report", "score_maps")
}  # a fraction of a second


def started(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def imported(stderr: str) -> set[str]:
    """What `python -X importtime` lists."""
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", stderr, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command: str) -> None:
    done = started("-X", "importtime", *command.split(), "--help")
    assert done.returncode == 0
    assert "usage: " in done.stdout
    assert "argparse" in imported(done.stderr)
    allowed = {"cv2"} if command in NEED_OPENCV else set()
    assert imported(done.stderr) & SLOW == allowed


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("main.py --epoch 3", "main.py: error: unknown --epoch; did you mean --epochs?"),
        ("main.py --datapath D", "main.py: error: unknown --datapath; did you mean --data_path?"),
        ("main.py --varient=rd4ad", "main.py: error: unknown --varient; did you mean --variant?"),
        ("main.py --xyzzy 1", "main.py: error: unknown --xyzzy: see main.py --help"),
        ("main.py 3", "main.py: error: unexpected 3: see main.py --help"),
        ("main.py --variant rdp --dataset demo", "error: unknown --variant 'rdp': choose from .*; did you mean rdpp.*"),
        ("main.py --net res5 --dataset demo", "error: unknown --net 'res5': .* or timm/NAME; did you mean res50.*"),
        ("main.py --dataset visas", "error: unknown --dataset 'visas': choose from .*; did you mean visa\\?"),
        ("test.py RUN --image x", "test.py: error: unknown --image; did you mean --images?"),
        (
            "-m scripts.sweep skip",
            "scripts.sweep: error: ablation .skip. is unknown: .*; did you mean skips.*",
        ),
        ("-m scripts.check_variant rdp", "error: unknown variant 'rdp': choose from .*; did you mean rdpp\\?"),
        (
            "-m scripts.check_variant rd4ad --ne x",
            "python -m scripts.check_variant: error: unknown --ne; did you mean --net?",
        ),
        (
            "-m scripts.generated_cases --cont 3",
            "scripts.generated_cases: error: unknown --cont; did you mean --count?",
        ),
        ("-m scripts.deaths --evry 3", "scripts.deaths: error: unknown --evry; did you mean --every?"),
        ("-m scripts.soak --run 9", "scripts.soak: error: unknown --run; did you mean --runs?"),
        ("-m scripts.soak --runs 2", "error: --runs 2: must be at least 8"),
        (
            "-m scripts.controls --datset demo",
            "python -m scripts.controls: error: unknown --datset; did you mean --dataset?",
        ),
        ("-m benchmarks.run --section step", "benchmarks.run: error: unknown --section; did you mean --sections?"),
        ("-m benchmarks.sweep --epoch 1", "benchmarks.sweep: error: unknown --epoch; did you mean --epochs?"),
        ("-m benchmarks.tables a.json --int x", "benchmarks.tables: error: unknown --int; did you mean --into?"),
        ("-m scripts.summarize RUNS --compar", "scripts.summarize: error: unknown --compar; did you mean --compare?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest_without_slow_imports(words: str, hint: str) -> None:
    done = started("-X", "importtime", *words.split())
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert line == hint or re.fullmatch(hint, line)
    assert not imported(done.stderr) & SLOW


def test_an_unknown_class_is_answered_with_the_nearest(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path, ("bottle", "cable"), train=1, good=1, bad=1)
    done = started("main.py", "--data_path", str(root), "--class", "botle", "cable")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown --class botle: mvtec has bottle, cable; did you mean bottle?\n"


def test_prediction_around_a_resnet_needs_no_torchvision() -> None:
    code = "import sys, prediction.command; from model import build_teacher; build_teacher('res18', 'random'); "
    done = started("-c", code + "sys.exit('torchvision' in sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_line_is_there_before_torch(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "data", ("bottle", "cable"), train=1, good=1, bad=1)
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('nobody gets further')\n")
    words = ["--data_path", str(root), "--seeds", "1", "2", "3", "--save_path", str(tmp_path / "runs")]
    done = started("main.py", *words, PYTHONPATH=str(tmp_path))
    assert done.stdout == "SK-RD4AD on mvtec: 2 classes x 3 seeds = 6 runs, 0 finished\n"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: nobody gets further")
