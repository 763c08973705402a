"""README and docs/: links, files, commands and flags are there, the recipes work, every table has its command."""

from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import PAGES, blocks, commands, prose
from PIL import Image
from toys import ROOT, TINY, MakeTree

import flags
import test as test_command
from commandline import Parser, exit_code
from config import Config
from report.papers import PAPERS
from scripts import controls, overlay_strip
from scripts.sweep import ABLATIONS

MADE_ON_FIRST_USE = ("data/", "runs/", "parts/")  # folders in commands that a checkout does not have
MADE = ("predict.py", "log.txt")  # files of an exported folder, of a run
# Recipes of docs/methods.md -> the variant that each adds.
NEW_PARTS = {"Add a variant": "drd_skips", "Add a loss": "rd_hardest", "Add a synthetic anomaly": "rd_cut_out"}

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


class Parsed(Exception):
    """Raised in place of what a command does after it has parsed its arguments."""


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        linked = page.parent / name if name else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


@page
def test_named_files_and_folders_exist(page: Path) -> None:
    own = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for name in re.findall(r"`([\w./-]+)`", prose(page)):
        is_code = "/" not in name and name.endswith((".py", ".sh", ".txt")) and name not in MADE
        if is_code or ("/" in name and name.split("/")[0] in own and not name.startswith(MADE_ON_FIRST_USE)):
            assert (ROOT / name).exists(), name


@page
def test_no_place_of_a_machine_is_named(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|mnt|opt)/", page.read_text())


@page
def test_every_table_has_the_command_that_writes_it(page: Path) -> None:
    text = page.read_text()
    markers = re.findall(r"^<!-- table:(\w+) -->$", text, re.MULTILINE)
    assert markers == re.findall(r"^<!-- /table:(\w+) -->$", text, re.MULTILINE)
    name = page.relative_to(ROOT).as_posix()
    for marker in markers:
        command = f"--into {name}" if marker == "speed" else f"--into {name} --marker {marker}"
        assert re.search(rf"{re.escape(command)}\b", text.replace("\\\n    ", "")), marker


def test_every_flag_of_main_is_explained() -> None:
    text = (ROOT / "docs/usage.md").read_text()
    for field in fields(Config):
        names = (field.name, *field.metadata["names"])
        assert any(f"`--{name}`" in text for name in names), field.name


@page
def test_every_command_has_the_flags_that_are_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real parsers read each command; what it would then do is not done."""
    parse = Parser.parse_args

    def only_parse(self: Parser, *arguments: Any) -> None:
        parse(self, *arguments)
        raise Parsed

    found = list(commands(page, tmp_path))
    assert found or page.name == "methods.md"
    problems = []
    for command in found:
        with monkeypatch.context() as patch:
            if command[1] == "main.py" or command[0] == "bash":
                problem = check_flags_of_main(command)
            else:
                patch.setattr(Parser, "parse_args", only_parse)
                problem = check_parser(command)
        said = capsys.readouterr().err
        if problem is not None:
            problems.append(f"{' '.join(command)}: {problem} {said}")
    assert not problems, "\n".join(problems)


def check_flags_of_main(command: list[str]) -> str | None:
    """What is wrong with a command whose flags are main.py's: main.py itself, or a script of the shell."""
    program, script, *words = command
    if not (ROOT / script).is_file():
        return "no such file"
    if script == "scripts/tests.sh":
        return None if not words or words == ["--quick"] and "--quick" in (ROOT / script).read_text() else "unknown"
    tables: dict[str, dict[str, set[str]]] = {
        "scripts/paper.sh": {name: set(tables) for name, tables in PAPERS.items()},
        "scripts/ablation.sh": {name: {s.label for s in ablation.settings} for name, ablation in ABLATIONS.items()},
    }
    if script in tables:
        known = tables[script].get(words.pop(0), set())
        while words and not words[0].startswith("--"):
            if words.pop(0) not in known:
                return f"not one of {', '.join(sorted(known)) or 'the known names'}"
    try:
        flags.parse(words)
    except (ValueError, SystemExit) as error:
        return None if words == ["--help"] else str(error)
    return None


def check_parser(command: list[str]) -> str | None:
    """What is wrong with a command of a parser of its own."""
    program, *words = command
    if program == "pip":
        missing = [
            name for flag, name in zip(words, words[1:], strict=False) if flag == "-r" and not (ROOT / name).is_file()
        ]
        return f"no {missing[0]}" if missing else None
    try:
        module = importlib.import_module(words[1]) if words[0] == "-m" else test_command
        module.main(words[2:] if words[0] == "-m" else words[1:])
    except Parsed:
        return None
    except (ModuleNotFoundError, SystemExit) as error:
        return str(error)
    return "did not parse its arguments first"


def apply_recipe(title: str, project: Path) -> tuple[str, list[str]]:
    """Put the code of a recipe of docs/methods.md where it says; return its command, and those in its sentences."""
    section = (ROOT / "docs/methods.md").read_text().partition(f"### {title}\n")[2]
    section = re.split(r"^##", section, maxsplit=1, flags=re.MULTILINE)[0]
    for block in blocks(section, "python"):
        place, _, code = block.partition("\n")
        if appended := re.fullmatch(r"# at the end of (\S+)", place):
            with (project / appended[1]).open("a") as file:
                file.write("\n\n" + code)
        else:
            new = re.fullmatch(r"# (\S+), a new file", place)
            assert new, place
            (project / new[1]).write_text(code)
    (command,) = blocks(section, "sh")
    return command, re.findall(r"`(python [^`]+)`", section)


def run_recipe(title: str, data: Path, folder: Path) -> Path:
    """The run folder that a recipe's commands leave behind, in a copy of the project with the recipe's code."""
    project = folder / "project"
    ignored = shutil.ignore_patterns(".*", "runs", "data", "tests", "docs", "__pycache__")
    shutil.copytree(ROOT, project, ignore=ignored)
    command, others = apply_recipe(title, project)
    words = command.split()
    words[words.index("D")] = str(data)
    training = [*words[1:], *([] if "--class" in words else ["--class", "bottle"]), "--epochs", "1", *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    checks = [[*other.split()[1:], "--net", "efficientnet_lite0"] for other in others]
    for arguments in (training, *checks):
        started = [sys.executable, *arguments]
        done = subprocess.run(started, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (run,) = project.glob("runs/*/*/bottle/seed111")
    assert (run / "metrics.json").is_file()
    return run


def test_every_recipe_is_tried_here() -> None:
    section = (ROOT / "docs/methods.md").read_text().partition("\n## Add your own\n")[2].partition("\n## ")[0]
    assert {*re.findall(r"^### (.+)$", section, re.MULTILINE)} == {*NEW_PARTS, "Add a data set"}


@pytest.mark.slow
@pytest.mark.parametrize(("title", "name"), NEW_PARTS.items())
def test_a_new_part_is_a_row(title: str, name: str, mvtec_tree: MakeTree, tmp_path: Path) -> None:
    run = run_recipe(title, mvtec_tree(), tmp_path)
    assert run.parent.parent.name == name
    assert ("hardest" in (run / "train.csv").read_text().splitlines()[0]) == (title == "Add a loss")


@pytest.mark.slow
def test_a_new_data_set_is_a_reader_and_a_row(mvtec_tree: MakeTree, tmp_path: Path) -> None:
    root = mvtec_tree()
    rows = []
    for image in sorted((root / "bottle").glob("t*/*/*.png")):
        split, defect, _ = image.relative_to(root / "bottle").parts
        mask = f"ground_truth/{defect}/{image.stem}_mask.png" if defect != "good" else ""
        name = image.relative_to(root / "bottle").as_posix()
        rows.append({"image": name, "split": split, "defect": defect.replace("good", ""), "mask": mask})
    with (root / "bottle/list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run = run_recipe("Add a data set", root, tmp_path)
    with (run / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [row["defect"] for row in predictions].count("disc") == 3 and len(predictions) == 6


@pytest.fixture
def runs(mvtec_tree: MakeTree, tmp_path: Path, train_command: Callable[..., int]) -> Iterator[Path]:
    """The folder of finished toy runs of two classes."""
    root = mvtec_tree(classes=("bottle", "cable"), train=4)
    arguments = ["--data_path", root, "--variant", "rd4ad", "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train_command(*arguments) == 0
    yield tmp_path / "runs"


def test_the_python_of_the_usage_page_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks((ROOT / "docs/usage.md").read_text(), "python")
    run, folder = runs / "mvtec/rd4ad/bottle/seed111", tmp_path / "mvtec/bottle/test/disc"
    capsys.readouterr()
    for written, there in (("RUN", run), ("folder", folder), ("photo.png", folder / "000.png")):
        code = code.replace(repr(written).replace("'", '"'), repr(str(there)))
    exec(code, {})
    one, place, *many = capsys.readouterr().out.splitlines()
    assert one.startswith("None ") and one.endswith(" None") and place.startswith("(64, 64) ")
    assert len(many) == 3 and float(many[0]) == pytest.approx(float(one.split()[1]), rel=1e-5)


def test_a_strip_of_overlays_shows_images_chosen_by_name(runs: Path, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    assert exit_code(lambda: overlay_strip.main([str(runs), "--out", str(strip), "--side", "64"])) == 0
    image = np.asarray(Image.open(strip).convert("RGB"))
    columns = 2  # one defect in each of two classes
    gaps, lines = overlay_strip.GAP, overlay_strip.LINE
    assert image.shape == (lines + 3 * 64 + 2 * gaps, lines + columns * 64 + overlay_strip.WIDE_GAP, 3)
    shown = image[lines : lines + 64, lines : lines + 64].astype(int)
    stored = np.asarray(Image.open(tmp_path / "mvtec/bottle/test/disc/000.png")).astype(int)
    assert np.abs(shown - stored).mean() < 8  # a palette is not exact
    command = [str(runs), "--out", str(strip), "--defects", "scratch"]
    assert exit_code(lambda: overlay_strip.main(command)) == 2


def test_the_controls_are_written_into_a_page_beside_finished_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "page.md"
    text.write_text("before\n<!-- table:controls -->\n<!-- /table:controls -->\nafter\n")
    arguments = f"--data_path {tmp_path / 'mvtec'} --net efficientnet_lite0 --image_size 64 --workers 0".split()
    place = ["--into", str(text), "--marker", "controls"]
    assert exit_code(lambda: controls.main([*arguments, "--beside", str(runs), *place])) == 0
    rows = [line.split("|")[1].strip() for line in text.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == ["-" * len(rows[0]), *["pixel z-score"] * 3, *["nearest neighbor"] * 3, "rd4ad, 1 seed"]
    assert text.read_text().startswith("before\n") and text.read_text().endswith("after\n")
    capsys.readouterr()
    assert exit_code(lambda: controls.main([*arguments, "--into", str(text), "--marker", "other"])) == 2
    assert "<!-- table:other -->" in capsys.readouterr().err


def test_the_citation_file_has_what_its_format_asks_for() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] in (ROOT / "pyproject.toml").read_text()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all("name" in author or "family-names" in author for author in reference["authors"])


def test_every_promise_names_a_test_that_exists() -> None:
    named = re.findall(r"`tests/(test_\w+\.py)(?:::(test_\w+))?`", (ROOT / "docs/promises.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert (ROOT / "tests" / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(), name
