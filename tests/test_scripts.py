"""The one-command scripts of ablations and papers, on small trees in the layouts they are for, one epoch each.

Each script is run by bash; what it would start is started here, in this process, where the teacher stays loaded. Two
are let through to a Python of their own.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import ROOT, MakeTree, line_beginning, paint

from commandline import exit_code
from dataset import BENCHMARKS
from report.papers import PAPERS
from scripts.sweep import ABLATIONS

Run = Callable[..., str]
SCRIPTS = {"ablation.sh": list(ABLATIONS), "paper.sh": list(PAPERS)}
QUICK = "--net efficientnet_lite0 --image_size 64 --batch_size 4 --workers 0 --device cpu --epochs 1".split()


def bash(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / script), *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd="/")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A script with quick settings and further flags -> what it prints at the end: the title and the table."""
    recorder = tmp_path / "recorder"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    recorder.chmod(0o755)

    def command(script: str, *arguments: object) -> str:
        words = list(takewhile(lambda argument: not str(argument).startswith("--"), arguments))
        flags = [*QUICK, "--save_path", tmp_path / "runs", *arguments[len(words) :]]
        started = bash(script, *words, *flags, PYTHON=str(recorder))
        assert started.returncode == 0, started.stderr
        folder, dash_m, module, *given = started.stdout.splitlines()
        assert (folder, dash_m) == (str(ROOT), "-m")
        code = exit_code(lambda: importlib.import_module(module).main(given))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out[printed.out.rindex("tables and runs: ") :]

    return command


@pytest.fixture
def mvtec(mvtec_tree: MakeTree) -> Path:
    return mvtec_tree(train=4, good=2, bad=2)


def rows(table: str) -> list[str]:
    """The first words of the table's lines, below its dashes, each once."""
    below = table.partition("\n---")[2].partition("\n\n")[0].splitlines()[1:]
    return list(dict.fromkeys(line.split()[0] for line in below))


def check_quick_settings_are_owned_up_to(table: str) -> None:
    text = " ".join(table.split())
    assert "another teacher: not comparable (ours efficientnet_lite0, published" in text
    assert "departs from the published settings:" in text and "epochs 1 instead of" in text
    assert "image_size 64 instead of 256" in text


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_name_or_an_unknown_one_is_one_line_that_lists_the_names(script: str) -> None:
    for arguments in ([], ["nothing"]):
        done = bash(script, *arguments, PYTHON=sys.executable)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f"choose from {', '.join(SCRIPTS[script])}\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_installs_anything(script: str) -> None:
    assert "setup.sh" not in (ROOT / "scripts" / script).read_text()
    assert os.access(ROOT / "scripts" / script, os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ABLATIONS} - {"backbones"}))
def test_an_ablation_ends_with_the_comparison_of_its_settings(name: str, mvtec: Path, run: Run, tmp_path: Path) -> None:
    table = run("ablation.sh", name, "--data_path", mvtec, "--class", "all")
    assert rows(table) == [setting.label for setting in ABLATIONS[name].settings]
    assert "lacks" not in table and "differ in net" not in table
    page = (tmp_path / f"runs/mvtec/ablation_{name}.md").read_text(encoding="utf-8")
    assert all(f"| {setting.label} " in page for setting in ABLATIONS[name].settings)


def test_some_settings_of_an_ablation(mvtec: Path, run: Run) -> None:
    table = run("ablation.sh", "skips", "both", "none", "--data_path", mvtec)
    assert rows(table) == ["both", "none"]


@pytest.mark.slow
def test_one_teacher_in_a_python_of_its_own(mvtec: Path, tmp_path: Path) -> None:
    flags = [word for word in QUICK if word not in ("--net", "efficientnet_lite0")]
    arguments = ["--data_path", mvtec, *flags, "--save_path", tmp_path / "runs"]
    done = bash("ablation.sh", "backbones", "efficientnet_lite0", *arguments, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("tables and runs: ") :]
    assert rows(table) == ["efficientnet_lite0"] and "differ" not in table


@pytest.mark.slow
def test_rd4ad_in_a_python_of_its_own(mvtec: Path, tmp_path: Path) -> None:
    arguments = ["--data_path", mvtec, "--class", "bottle", *QUICK, "--save_path", tmp_path / "runs"]
    done = bash("paper.sh", "rd4ad", *arguments, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("tables and runs: ") :]
    assert rows(table) == ["bottle", "mean"]
    # RD4AD on bottle: image AUROC 100, pixel AUROC 98.7, AUPRO 96.6
    assert line_beginning(table, "bottle", "image", "AUROC").endswith(" 100.00 –")
    assert line_beginning(table, "bottle", "pixel", "AUROC").endswith(" 98.70 –")
    assert line_beginning(table, "bottle", "AUPRO", "per", "image").endswith(" 96.60 –")
    assert line_beginning(table, "bottle", "AUPRO", "1").endswith(" not published –")
    check_quick_settings_are_owned_up_to(table)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("drd", {"image": "99.46", "pixel": "98.39", "AUPRO per": "not published"}),
        ("mrkd", {"image": "98.90", "pixel": "98.40", "AUPRO per": "95.30"}),
        ("rdpp", {"image": "99.44", "pixel": "98.25", "AUPRO per": "94.99"}),
        ("anomalib", {"image AUROC": "98.50", "image F1-max": "97.60", "pixel": "96.90"}),
    ],
)
def test_a_methods_own_table(name: str, published: dict[str, str], mvtec: Path, run: Run) -> None:
    table = run("paper.sh", name, "--data_path", mvtec, "--class", "all")
    assert rows(table) == ["bottle", "mean"]
    for metric, value in published.items():
        assert line_beginning(table, "mean (1 of 15)", metric).endswith(f" {value} –")
    check_quick_settings_are_owned_up_to(table)


@pytest.mark.slow
def test_sk_rd4ad_on_mvtec_with_the_best_epoch_beside_the_last(mvtec: Path, run: Run) -> None:
    table = run("paper.sh", "sk_rd4ad", "--data_path", mvtec, "--epochs", 2, "--print_epoch", 1)
    *_, last, best, published, _ = line_beginning(table, "mean (1 of 15)", "pixel").split()
    assert float(best) >= float(last) and published == "98.06"
    assert line_beginning(table, "bottle", "image").endswith(" not published –")
    text = " ".join(table.split())
    assert "best on test: ours too" in text
    assert "the published loop over all classes sets the consistency weight to 0.005" in text
    assert "the best of 200 epochs on the test set (oracle)" in text


def fill(folder: Path, masks: Path | None = None) -> None:
    """A class of four training and 2 + 2 test images, named as VisA and VAD do, with masks where these are wanted."""
    rng = np.random.default_rng(0)
    for place, number in (("train/good", 4), ("test/good", 2)):
        for i in range(number):
            paint(folder / place / f"{i:03}.png", rng, defect=False)
    for i in range(2):
        mask = paint(folder / "test/bad" / f"{i:03}.png", rng, defect=True)
        if masks is not None:
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{i:03}.png")


@pytest.mark.slow
def test_sk_rd4ad_on_visa_and_vad(tmp_path: Path, run: Run) -> None:
    fill(tmp_path / "visa/1cls/pcb1", tmp_path / "visa/1cls/pcb1/ground_truth/bad")
    table = run("paper.sh", "sk_rd4ad", "visa", "--data_path", tmp_path / "visa")
    assert rows(table) == ["pcb1", "mean"]
    assert line_beginning(table, "pcb1", "AUPRO", "per", "image").endswith(" 93.70 –")
    assert line_beginning(table, "mean (1 of 12)", "pixel").endswith(" 98.50 –")
    fill(tmp_path / "vad")
    table = run("paper.sh", "sk_rd4ad", "vad", "--data_path", tmp_path / "vad")
    assert rows(table) == ["vad"]
    assert line_beginning(table, "vad", "image", "AUROC").endswith(" 87.00 –")
    check_quick_settings_are_owned_up_to(table)


def test_rdpp_on_btad(tmp_path: Path, mvtec_tree: MakeTree, run: Run) -> None:
    table = run("paper.sh", "rdpp", "btad", "--data_path", mvtec_tree(["01"], train=4, good=2, bad=2, root="btad"))
    assert line_beginning(table, "mean (1 of 3)", "image").endswith(" 95.63 –")


@pytest.mark.slow
def test_the_tables_of_icck(mvtec: Path, run: Run, tmp_path: Path) -> None:
    """All on MVTec AD at once: settings that tables share are run once."""
    last = run("paper.sh", "icck", 1, 3, 4, 5, 6, 7, "--data_path", mvtec)
    found = {}
    for part in last.split("ICCK table ")[1:]:
        found[part[0]] = part
        check_quick_settings_are_owned_up_to(part)
    assert list(found) == ["1", "3", "4", "5", "6", "7"]
    assert line_beginning(found["1"], "bottle", "image").endswith(" 100.00 –")
    assert line_beginning(found["3"], "mean (1 of 15)", "AUPRO", "per").endswith(" 95.90 –")
    assert rows(found["4"]) == ["res18", "res50", "wide_res50"]
    assert line_beginning(found["4"], "res18 (1 of 15)", "image").endswith(" 98.20 –")
    assert line_beginning(found["5"], "without_fmm (1 of 15)", "pixel").endswith(" 98.10 –")
    assert rows(found["6"]) == ["baseline", "simam", "scconv", "both"]
    assert line_beginning(found["6"], "scconv (1 of 15)", "image").endswith(" 99.10? –")
    assert rows(found["7"]) == ["0", "1", "2", "0+1", "0+2", "1+2", "0+1+2"]
    assert line_beginning(found["7"], "0+1+2 (1 of 15)", "AUPRO", "per").endswith(" 95.90 –")
    folders = [
        folder.name
        for folder in (tmp_path / "runs/mvtec").iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    assert len(folders) == 1 + 2 + 1 + 3 + 6  # the full model, then 4, 5, 6 and 7 without it


def test_icck_on_cifar10(mvtec_tree: MakeTree, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files' own layout has its own tests: here a folder stands in for them."""
    stand_in = replace(BENCHMARKS["mvtec"], title="CIFAR-10", classes=BENCHMARKS["cifar10"].classes)
    monkeypatch.setitem(BENCHMARKS, "cifar10", stand_in)
    table = run("paper.sh", "icck", 2, "--data_path", mvtec_tree(["cat"], train=4, good=2, bad=2))
    assert rows(table) == ["cat", "mean"]
    assert line_beginning(table, "cat", "image").endswith(" not published –")
    assert line_beginning(table, "mean (1 of 10)", "image").endswith(" 90.90 –")
    assert "only the mean is certain" in " ".join(table.split())
