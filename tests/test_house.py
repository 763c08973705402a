"""Imports run one way, from the commands down; nothing imports main.py but scripts that run it, and tests."""

from __future__ import annotations

import ast
from pathlib import Path

from toys import ROOT

# From the ground up: a module imports only from lower floors, or from its own package.
FLOORS = [
    {"utils", "commandline"},
    {"model", "scoring", "readers"},
    {"methods", "dataset"},
    {"config", "engine", "feature_cache"},
    {"flags", "run_files"},
    {"report"},
    {"detector"},
    {"calibration"},
    {"experiment"},
    {"training", "verification", "export"},
    {"prediction", "submission"},
    {"main", "test"},
    {"scripts", "benchmarks"},
]
PACKAGES = tuple(path.parent.name for path in ROOT.glob("*/__init__.py"))
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    """The first parts of the names of all modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_imports_run_one_way() -> None:
    files = [
        *ROOT.glob("*.py"),
        *(path for name in PACKAGES for path in (ROOT / name).glob("*.py")),
    ]
    assert len(files) > 50
    for path in files:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imported(path) & set(FLOOR_OF):
            assert other == own or FLOOR_OF[other] < FLOOR_OF[own], f"{path.name} must not import {other}"


def test_the_model_knows_no_files_of_data() -> None:
    for path in (ROOT / "model").glob("*.py"):
        assert not imported(path) & {"PIL", "cv2", "argparse", "skimage"}, path.name


def test_a_misspelt_flag_needs_no_torch() -> None:
    assert not imported(ROOT / "commandline.py") & {"torch", "numpy", "config"}


def test_at_most_a_dozen_files_lie_at_the_top() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 12
    for path in ROOT.glob("*.py"):
        assert path.stem in FLOOR_OF, f"{path.name} has no floor"
