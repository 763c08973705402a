"""Every command of README and docs/ does what its page says: all are run here, on toy data, in the order of each page.

A page has a folder with all that its commands name. Flags after a command's own make it quick (`QUICK`), and finished
toy runs stand for placeholders. What is not run is listed with the reason.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import PAGES, blocks, commands, shell_scripts, started_by
from toys import (
    ROOT,
    make_mvtec,
    make_mvtec_ad_2,
    make_real_iad,
    make_second_kind,
    paint,
    published_state,
    rows_of,
    train,
)

import flags
import main as main_command
import test as test_command
from benchmarks import run as benchmark
from commandline import exit_code
from readers import cifar10, demo, elpv

INSTALLS = "installs from the package registry; tests/test_docs.py sees that its file is there"
SECTION = "takes long; tests/test_benchmarks.py::test_a_run_writes_all_sections runs every section"
RAY = "needs Ray; tests/test_ray.py::test_ray_on_this_machine_makes_the_same_runs runs it where Ray is installed"
GPUS = "needs GPUs; tests/test_engines.py::test_workers_make_the_same_runs_and_tables does the same on processors"
SUBMISSION = (
    "needs runs of all eight classes; "
    "tests/test_submission.py::test_runs_become_an_archive_that_the_checker_finds_whole does it with two"
)
NOT_RUN = {
    "pip install -r requirements-extra.txt": INSTALLS,
    "pip install -r requirements-export.txt": INSTALLS,
    "pip install --require-hashes -r requirements.lock": "tests/test_requirements.py sees that it has every hash",
    "python -m scripts.export RUN --format onnx openvino": (
        "takes half a minute; tests/test_export.py::test_sizes_and_times_are_printed_beside_pytorch runs it"
    ),
    "pip install -r requirements-ray.txt": INSTALLS,
    "python -m scripts.submission runs/mvtec_ad_2/sigma --out submission.tar.gz": SUBMISSION,
    "python -m scripts.submission --check submission.tar.gz --data_path D": SUBMISSION,
    "python -m scripts.ray_sweep --data_path D --class all --seeds 0 1 2": RAY,
    "python -m scripts.ray_sweep --address 10.0.0.5:6379 --data_path D --class all --gpus_per_run 0.5": RAY,
    "bash scripts/paper.sh sk_rd4ad --data_path D --ray 10.0.0.5:6379": RAY,
    "python main.py --data_path D --class all --seeds 0 1 2 --devices cuda:0 cuda:1": GPUS,
    "python main.py --data_path D --class all --seeds 0 1 2 --devices cuda:0 cuda:1 --jobs 2": GPUS,
    "bash scripts/ablation.sh skips --data_path D --devices cuda:0 cuda:1": GPUS,
    "python -m benchmarks.run --sections epoch --images 64 --repeats 1 --out docs/speed/epoch.json": SECTION,
    "python -m benchmarks.run --sections evaluation --images 100 --repeats 2 --out docs/speed/evaluation.json": SECTION,
    "python -m benchmarks.run --sections metrics --repeats 3 --out docs/speed/metrics.json": SECTION,
    "python -m benchmarks.run --sections inference --repeats 7 --out docs/speed/inference.json": SECTION,
    "python -m benchmarks.run --sections growth --out docs/speed/growth.json": SECTION,
    "python -m benchmarks.run --sections tricks --repeats 2 --out docs/speed/tricks.json": SECTION,
    "pip install adeval==1.1.0": "tests/test_benchmarks.py::test_a_run_writes_all_sections does without",
    "pip install anomalib==2.7.*": "tests/test_benchmarks.py::test_without_anomalib_its_section_says_how_to_install_it",
}
# What takes long and stands on several pages -> the page where it is run.
RUN_ONCE = {
    "python -m benchmarks.run --out speed.json": "speed.md",
}
# What scripts of the shell start that is not run here but elsewhere.
STARTED_ELSEWHERE = {
    "python -m scripts.deaths": "tests/test_deaths.py::test_a_command_that_died_ends_like_an_undisturbed_one",
    "python -m scripts.soak": "tests/test_deaths.py::test_runs_in_one_process_hold_nothing",
}
# Scripts of the shell that start other programs than Python, which are not run: this is one of their tests.
CHECKS = ["ruff check .", "ruff format --check .", "mypy"]
STARTED = {
    "bash scripts/tests.sh": [*CHECKS, "pytest -n N"],
    "bash scripts/tests.sh --quick": [*CHECKS, "pytest -n N -m not slow"],
    "bash scripts/lowest_versions.sh": ["pytest -n N"],
}

RUN = "RUNS/mvtec/rd4ad/bottle/seed111"
TRAINING = "--epochs 1 --net efficientnet_lite0 --image_size 64 --batch_size 4 --workers 0 --device cpu"
# A pattern of commands -> flags for their end, where the last one counts. All rows that fit are used.
QUICK = {
    r"main\.py --(?!help|.*--steps)": TRAINING,
    r"main\.py --.*--steps": TRAINING.replace("--epochs", "--steps"),
    r"scripts/(paper|ablation|demo|demo_controls)\.sh": TRAINING,
    r"--seeds 0 1 2": "--seeds 0",
    r"--shots": "--shots 2",
    r"--seeds 1 2 3": "--seeds 1 2",
    r"--dataset demo --class all|scripts/demo": "--class gear",
    r"scripts/paper\.sh (?!sk_rd4ad visa)|scripts/ablation\.sh|--class all .*--save_path S": "--class bottle",
    r"--dataset cifar10": "--class cat",
    r"--holdout 0.2 --false_alarm 0.05": "--class bottle --false_alarm 0.5",
    r"--checkpoint FILE": "--epochs 0 --net res18 --weights random",
    r"scripts\.controls": "--image_size 64 --workers 0",
    r"scripts\.compare": "--replicates 100",
    r"scripts\.null_rates": "--simulations 4",
    r"scripts\.coverage": "--count 4 --false_alarm 0.25",
    r"scripts\.generated_cases": "--count 5",
    r"benchmarks\.run": "--net res18 --image_size 64 --batch_size 2 --images 2 --repeats 1 --one_process --device cpu",
    r"benchmarks\.run.* (--out speed\.json|--device cuda)": "--sections step",
    r"benchmarks\.sweep": "--net res18 --image_size 64 --batch_size 2 --epochs 1 --scale 0.01 --device cpu",
}


@dataclass(frozen=True)
class Promise:
    """A pattern of what a command prints, and patterns of files that it writes, or writes anew, below its folder."""

    says: str
    files: str = ""


# A pattern of commands -> what they promise. A command needs a row at least; all rows that fit must hold.
PROMISES = {
    r"main\.py --help": Promise(r"--help all shows every one"),
    r"main\.py --(?!help)": Promise(r"^tables and runs: "),
    r"main\.py .*--train_dir parts/good": Promise(r"threshold [\d.]+: the highest of 6 held-out", "summary.md"),
    r"main\.py .*--dataset mvtec_ad_2": Promise(r"threshold [\d.]+: the highest of 4 validation normal images"),
    r"main\.py .*--dataset real_iad": Promise(r"sample AUROC"),
    r"main\.py .*--dataset csv": Promise(r"^bottle ", "csv/sk_rd4ad/bottle/seed111/metrics.json"),
    r"main\.py .*--bad": Promise(r"of 5 bad images \d lie above it"),
    r"main\.py .*--holdout": Promise(r"the highest of 2 held-out normal images", "threshold.json"),
    r"main\.py .*--checkpoint": Promise(r"FILE was read as --variant rd4ad \(skips: none\)"),
    r"test\.py \S+ --images": Promise(r"^\d+ images: \d+ OK, \d+ NG, \d+ not read", "predictions.csv"),
    r"test\.py \S+ --images (?!-)((?!--out).)*$": Promise("", "images/predictions.csv images/overlays/*.png"),
    r"--images folder/ --out results": Promise("", "results/predictions.csv results/overlays/*.png"),
    r"--images .*--threshold 2.5": Promise(r"threshold 2\.5 \(--threshold\)$"),
    r"--images .*--calibrate": Promise(r"threshold [\d.]+ \(--calibrate\), about 4\.8 % false alarms$"),
    r"--images .*--quiet": Promise(r"\A\d+ images: .*\n\Z"),
    r"--images - --jsonl": Promise(r'^\{"path": "photo.png", "decision": "NG", .*\}\n\{"path": "folder/000.png"'),
    r"test\.py \S+ --calibrate": Promise(r"the highest of \d+ calibration normal images", "threshold.json"),
    r"test\.py \S+ --verify": Promise(r"^verified: the run is as recorded$"),
    r"test\.py \S+$": Promise(r"^identical to the recorded metrics$"),
    r"test\.py \S+ --(vis|save_maps|intervals)": Promise(r"^identical to the recorded metrics$"),
    r"test\.py \S+ --vis": Promise(r"^overlays in ", "overlays/*.png"),
    r"test\.py \S+ --save_maps": Promise(r"^maps in ", f"{RUN}/maps.npz"),
    r"test\.py \S+ --intervals": Promise(r"^  95 % intervals"),
    r"test\.py \S+ --anomaly_map standardized": Promise("", "rd4ad-standardized/bottle/seed111/metrics.json"),
    r"test\.py \S+ --anomaly_map add": Promise("", "*-add/*/seed0/metrics.json"),
    r"test\.py \S+ --map_size own": Promise("", "rd4ad-own/bottle/seed111/metrics.json"),
    r"main\.py .*--tiles": Promise("", "tiles/bottle/seed111/metrics.json"),
    r"scripts\.coverage": Promise(r"^n 4, k 1, 200 draws"),
    r"scripts\.summarize (?!.*--verify)": Promise(r"· percent(\*\*)?$"),
    r"scripts\.summarize .*--verify": Promise(r"^(\d+) of \1 runs verified$"),
    r"scripts\.summarize .*--compare": Promise(r"settings compared"),
    r"scripts\.summarize .*--one_table": Promise(r"^setting +n  \w+ image AUROC"),
    r"scripts\.summarize .*--markdown": Promise(r"^\| "),
    r"scripts\.compare": Promise(r"what may be said"),
    r"scripts\.compare .*--json": Promise("", "all.json forest.svg"),
    r"scripts\.null_rates": Promise(r"DeLong"),
    r"scripts\.report RUNS$": Promise("", "RUNS/report.html RUNS/curves.csv"),
    r"scripts\.report .*--out page": Promise("", "page/report.html page/curves.csv"),
    r"scripts\.score_maps": Promise(r"0\.05"),
    r"scripts\.controls": Promise(r"nearest neighbor"),
    r"scripts\.overlay_strip": Promise(r"kB$", "*.png"),
    r"scripts\.validate_data": Promise(r"^errors: \d+, warnings: 0; checked \d+ images of \d classes$"),
    r"scripts\.development_split": Promise(r"images in data/elpv_dev", "data/elpv_dev/mono/train/good/*.png"),
    r"scripts\.paper": Promise(r"^tables? and runs: |^this table: ", "paper_*.md"),
    r"scripts\.sweep": Promise(r"^tables and runs: ", "ablation_*.md"),
    r"scripts\.check_variant": Promise(r"^rd4ad around res18: 0 of \d+ laws broken$"),
    r"scripts\.generated_cases": Promise(r"^masks +\d+ +\d+ +0$"),
    r"benchmarks\.run(?!.*anomalib)": Promise(r"(step|tricks|memory): "),
    r"benchmarks\.run.*anomalib": Promise(r"anomalib"),
    r"benchmarks\.run.* --out": Promise("", "*.json"),
    r"benchmarks\.sweep": Promise(r"15 classes, 1 epochs"),
    r"benchmarks\.(export_)?tables": Promise(r"^\| "),
}


@dataclass(frozen=True)
class Outcome:
    """What a command of Python did: its words, its exit code, what it printed, the files that are new or changed."""

    words: list[str]
    code: int
    out: str
    error: str
    written: set[Path]


def lay_out(folder: Path, page: Path, ready: Path) -> None:
    """All that the commands of a page name, below a folder."""
    shutil.copy(ROOT / "README.md", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    with (folder / "docs/results.md").open("a") as results:
        results.write("\n<!-- table:NAME -->\n<!-- /table:NAME -->\n")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for requirements in ROOT.glob("requirements*"):
        shutil.copy(requirements, folder)
    (folder / "scripts/setup.sh").write_text("")  # the environment is there

    classes = ("ball_screw",) if page.name == "results.md" else ("bottle", "cable")
    make_mvtec(folder / "D", classes, train=10, good=8)
    write_visa(folder / "D/1cls/pcb1")
    if page.name != "results.md":  # whose D holds the one folder of ball screws
        make_mvtec_ad_2(folder / "D", ("can",))
    make_real_iad(folder / "D", ("usb",))
    list_in_csv(folder / "D/images.csv", classes[0])
    write_cifar10(folder / "D/cifar-10-images")
    write_elpv(folder / "packages/elpv_dataset")
    make_mvtec(folder / "own", ("parts",), train=30, good=20, bad=5)
    good, test = folder / "own/parts/train/good", folder / "own/parts/test"
    for source, *targets in (
        (good, "parts/good"),
        (test, "parts/test"),
        (test / "disc", "parts/bad", "folder/disc"),
        (test / "good", "parts/other_day", "normal"),
        (folder / "own/parts/ground_truth", "parts/masks"),
    ):
        for target in targets:
            shutil.copytree(source, folder / target, dirs_exist_ok=True)
    shutil.copy(test / "disc/000.png", folder / "photo.png")
    shutil.copy(test / "good/000.png", folder / "folder")
    shutil.rmtree(folder / "own")
    new = folder / "parts/new"
    rng = np.random.default_rng(99)
    paint(new / "new 1.png", rng, defect=False)
    paint(new / "new 5.jpg", rng, defect=True)
    content = (new / "new 5.jpg").read_bytes()
    (new / "broken.jpg").write_bytes(content[: len(content) // 2])

    shutil.copytree(ready / "demo", folder / "data/demo")
    shutil.copytree(ready / "RUNS", folder / "RUNS")
    shutil.copytree(ready / "other", folder / "other")
    for name, run in (("A", "RUNS/mvtec/rd4ad"), ("B", "RUNS/mvtec/drd"), ("C", "RUNS/mvtec/rd4ad")):
        shutil.copytree(ready / run, folder / f"RUNS_{name}")
    if page.name == "usage.md":
        for name in ("rd4ad", "drd"):
            shutil.copytree(ready / "RUNS/mvtec" / name, folder / "runs/mvtec" / name)
    torch.save(published_state("res18"), folder / "FILE")
    maps = rng.random((4, 32, 32), dtype=np.float32)
    np.savez(folder / "maps.npz", maps=maps, masks=maps > 0.9)


def list_in_csv(file: Path, class_name: str) -> None:
    """A table of the images of a class in the MVTec layout beside it."""
    lines = ["path,class,split,label,mask"]
    for image in sorted((file.parent / class_name).glob("t*/*/*.png")):
        split, kind, _ = image.relative_to(file.parent / class_name).parts
        mask = "" if kind == "good" else f"{class_name}/ground_truth/{kind}/{image.stem}_mask.png"
        lines.append(f"{image.relative_to(file.parent).as_posix()},{class_name},{split},{kind},{mask}")
    file.write_text("\n".join(lines) + "\n")


def write_visa(folder: Path) -> None:
    """A class in the layout of the prepared VisA."""
    make_mvtec(folder.parent, (folder.name,), train=4, good=2, bad=2)
    for name in ("test", "ground_truth"):
        (folder / name / "disc").rename(folder / name / "bad")
    for mask in (folder / "ground_truth/bad").iterdir():
        mask.rename(mask.with_name(mask.name.replace("_mask", "")))


def write_cifar10(folder: Path) -> None:
    """CIFAR-10, unpacked: four training images and one test image of each class."""
    rng = np.random.default_rng(5)
    counts = {"train": 4, "test": 1}
    for split, count in counts.items():
        for name in cifar10.CIFAR10_CLASSES:
            for number in range(count):
                paint(folder / split / name / f"{number:05}.png", rng, defect=False, size=cifar10.SIDE)
    (folder / "readme.txt").write_text(cifar10.readme(sum(counts.values()) * len(cifar10.CIFAR10_CLASSES)))


def write_elpv(package: Path) -> None:
    """A stand-in for the package of ELPV: twelve cells of each third of its blocks."""
    rng = np.random.default_rng(6)
    lines = []
    for first in (1, 1 + elpv.BLOCK, 1 + 2 * elpv.BLOCK):
        for number in range(first, first + 16):
            name, defect = f"images/cell{number:04}.png", number % 4 > 1
            paint(package / "data" / name, rng, defect)
            lines.append(f"{name} {float(defect)} {elpv.ELPV_CLASSES[number % 2]}\n")
    (package / "__init__.py").write_text("")
    (package / "data/labels.csv").write_text("".join(lines))


@pytest.fixture(scope="module")
def small_demo() -> Iterator[None]:
    """A demo of few images."""
    with pytest.MonkeyPatch.context() as patch:
        for name, count in {"TRAIN": 4, "GOOD": 2, "PER_DEFECT": 2}.items():
            patch.setattr(demo, name, count)
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, small_demo: None) -> Path:
    """A folder with the demo, and finished runs in RUNS and other: with a threshold, and with the map of ResNets.

    Their test set has two kinds of defect.
    """
    root = tmp_path_factory.mktemp("ready")
    demo.prepare_demo(root / "demo")
    data = make_mvtec(root / "data", train=10, good=8)
    make_second_kind(data / "bottle", 2)
    for folder, variant, seed in (("RUNS", "rd4ad", 111), ("RUNS", "drd", 111), ("other", "rd4ad", 1)):
        given = ["--data_path", data, "--variant", variant, "--anomaly_map", "add", "--holdout", 0.2]
        assert train(*given, "--seeds", seed, "--epochs", 1, "--save_path", root / folder) == 0
    return root


def quickened(command: list[str]) -> list[str]:
    """The command with its placeholder filled in, and at its end the flags that make it quick."""
    shown = " ".join(command)
    tail = [word for pattern, words in QUICK.items() if re.search(pattern, shown) for word in words.split()]
    return [RUN if word == "RUN" else word for word in command] + tail


def python_commands(command: list[str], folder: Path) -> list[list[str]]:
    """The command, or for a script of the shell what it starts, quickened."""
    if command[0] == "python":
        return [quickened(command)]
    assert command[0] == "bash", f"{' '.join(command)}: is neither run nor in NOT_RUN"
    programs = ("python", "ruff", "mypy", "pytest")
    script = shlex.join(["exec", *quickened(command)])
    started = started_by(script, folder, *programs, tools=True)
    if expected := STARTED.get(" ".join(command)):
        assert [re.sub(r"-n \d+", "-n N", " ".join(words)) for words in started] == expected
        return []
    assert started and all(words[0] == "python" for words in started), command
    return [quickened(words) for words in started if " ".join(words) not in STARTED_ELSEWHERE]


def call(words: list[str], capsys: pytest.CaptureFixture[str]) -> Outcome:
    """A command of Python, in this process and in the folder that it is in."""
    before = stamps()
    arguments = words[3:] if words[1:3] == ["-W", "ignore"] else words[1:]
    main: Callable[[list[str]], int | None]
    if arguments[0] == "-m":
        main, arguments = importlib.import_module(arguments[1]).main, arguments[2:]
    else:
        main, arguments = {"main.py": main_command, "test.py": test_command}[arguments[0]].main, arguments[1:]
    capsys.readouterr()
    try:
        code = exit_code(lambda: main(arguments))
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    written = {path for path, stamp in stamps().items() if before.get(path) != stamp}
    return Outcome(words, code, printed.out, printed.err, written)


def stamps() -> dict[Path, tuple[int, int]]:
    """The time and size of every file below the folder that one is in."""
    files = (Path(folder, name) for folder, _, names in os.walk(".") for name in names)
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def problems(outcome: Outcome) -> Iterator[str]:
    """What a command did otherwise than its page says."""
    shown = " ".join(outcome.words)
    if outcome.code != promised_code(outcome):
        yield f"exit code {outcome.code}: {outcome.error or outcome.out}"
        return
    promises = [promise for pattern, promise in PROMISES.items() if re.search(pattern, shown)]
    if not promises:
        yield "has no row in PROMISES"
    for promise in promises:
        if not re.search(promise.says, outcome.out + outcome.error, re.MULTILINE):
            yield f"did not say {promise.says!r}: {outcome.out}"
        for pattern in promise.files.split():
            if not any(path.match(pattern) for path in outcome.written):
                yield f"wrote no {pattern}"
    if outcome.words[1] == "main.py" and "--help" not in outcome.words:
        config = flags.parse(outcome.words[2:])
        for name in ["*"] if config.classes == ("all",) else config.classes:
            for seed in config.seeds:
                if not list(config.sweep_folder.glob(f"{name}/seed{seed}/metrics.json")):
                    yield f"left no finished run in {config.sweep_folder}/{name}/seed{seed}"
    if "--into" in outcome.words:
        page = Path(outcome.words[outcome.words.index("--into") + 1])
        if page not in outcome.written:
            yield f"did not write {page}"
        if outcome.words[2].startswith("benchmarks.") and page.read_text() != (ROOT / page).read_text():
            yield f"{page} does not hold the table of its files"


def promised_code(outcome: Outcome) -> int:
    """The exit code that docs/usage.md gives, by what the command found."""
    if "scripts.validate_data" in outcome.words:
        return int(not re.search(r"^errors: 0,", outcome.out, re.MULTILINE))
    if "--images" not in outcome.words:
        return 0
    if "--jsonl" in outcome.words:
        decisions = re.findall(r'"decision": "(..)"', outcome.out)
    else:
        tables = [path for path in outcome.written if path.name == "predictions.csv"]
        decisions = [row["decision"] for table in tables for row in rows_of(table)]
    return 3 if "??" in decisions else 1 if "NG" in decisions else 0


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if shell_scripts(page)], ids=lambda path: path.name)
def test_the_commands_of_a_page_do_what_it_says(
    page: Path, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path, page, ready)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)  # takes a minute
    monkeypatch.setattr(benchmark, "measure_peaks", lambda *given: {"matrix product": 1.0, "convolution": 1.0})
    monkeypatch.syspath_prepend(tmp_path / "packages")
    broken, said = [], ""
    for documented in commands(page, tmp_path):
        shown = " ".join(documented)
        if shown in NOT_RUN or RUN_ONCE.get(shown, page.name) != page.name:
            continue
        for words in python_commands(documented, tmp_path):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"photo.png\nfolder/000.png\n")))
            outcome = call(words, capsys)
            said += outcome.out
            broken += [f"{shown} ({' '.join(words)}): {problem}" for problem in problems(outcome)]
    if page.name == "inspectors.md":
        broken += [form for form in shown_lines(page) if not re.search(form, said, re.MULTILINE)]
    assert not broken, "\n".join(broken)


def test_no_row_is_of_a_command_that_is_gone(tmp_path: Path) -> None:
    """The lists here name commands of the pages or of the scripts, and tests that exist."""
    shown = set()
    for number, page in enumerate(PAGES):
        folder = tmp_path / str(number)
        folder.mkdir()
        shown |= {" ".join(command) for command in commands(page, folder)}
    scripts = "\n".join(path.read_text() for path in sorted((ROOT / "scripts").glob("*.sh")))
    assert {*NOT_RUN, *STARTED, *RUN_ONCE} <= shown and set(RUN_ONCE.values()) <= {page.name for page in PAGES}
    assert all(command in scripts for command in STARTED_ELSEWHERE)
    everything = "\n".join(sorted(shown)) + scripts.replace('"${PYTHON:-python}"', "python")
    for pattern in (*QUICK, *PROMISES):
        assert re.search(pattern, everything, re.MULTILINE), pattern
    for reason in (*NOT_RUN.values(), *STARTED_ELSEWHERE.values()):
        file, _, name = next(word for word in reason.split() if word.startswith("tests/")).partition("::")
        assert (ROOT / file).is_file() and (not name or f"def {name}(" in (ROOT / file).read_text()), reason


def shown_lines(page: Path) -> list[str]:
    """A pattern for each line of a page's blocks of output."""
    return [pattern_of(line) for block in blocks(page.read_text(), "") for line in block.splitlines()]


def pattern_of(line: str) -> str:
    """The pattern of lines of the same words, with any numbers and times; `...` at the end stands for anything."""
    pattern = re.escape(line.removesuffix(" ...")).replace("threads", "threads?")
    pattern = re.sub(r"(\d+\\ min\\ )?\d+\\ s\b|\d+\\ min\b", lambda _: r"[\d.]+ (s|min)( \d+ s)?", pattern)
    pattern = re.sub(r"(?<![\[\\])\d+(\\\.\d+)?(?!\])", lambda _: r"\d+(\.\d+)?", pattern)
    pattern = re.sub(r"(\\ )+", lambda _: " +", pattern)
    return f"^{pattern}{'' if line.endswith(' ...') else '$'}"


@pytest.mark.slow
def test_a_sweep_prints_the_lines_that_the_usage_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_mvtec(Path("data/broken"), ("brick", "denim", "gear"), train=4, good=4, bad=2)
    (data / "denim/test/good/003.png").write_text("no image")
    assert train("--data_path", data, "--variant", "rd4ad", "--seeds", 0, 1, "--epochs", 2) == 1
    said = capsys.readouterr().out
    (block,) = (text for text in blocks((ROOT / "docs/usage.md").read_text(), "") if "denim seed" in text)
    for line in block.splitlines():
        assert re.search(pattern_of(line), said, re.MULTILINE), line
