"""README and docs/ as tests read them: their blocks, and their commands as bash would start them, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from toys import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "bash", "pip")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; of none with ''."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block[2] for block in found if block[1] == language]


def shell_scripts(page: Path) -> list[str]:
    """The page's shell blocks, and the commands in its inline code, in order.

    Recipes for adding rows are left out: their commands need the rows, and have tests of their own.
    """
    text = re.sub(r"^## Add your own\n.*?(?=^## )", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    inline = rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`"
    found = re.finditer(rf"^```(\w*)\n(.*?)^```$|{inline}", text, re.DOTALL | re.MULTILINE)
    return [match[3] or match[2] for match in found if match[3] or match[1] == "sh"]


def started_by(script: str, folder: Path, *programs: str, tools: bool = False) -> list[list[str]]:
    """The calls of these programs that a script makes in a folder, each as its words; none of them is carried out.

    Any other program is missing there, unless the script has the system's `tools`.
    """
    kept = folder / ".recorded"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for name in programs:
        (kept / name).write_text('#!/bin/sh\n{ printf "%s\\037" "${0##*/}" "$@"; printf "\\036"; } >> "$RECORD"\n')
        (kept / name).chmod(0o755)
    bash = shutil.which("bash")
    assert bash is not None
    path = [str(kept), *([os.environ["PATH"]] if tools else [])]
    variables = {"PATH": os.pathsep.join(path), "RECORD": str(kept / "record")}
    done = subprocess.run([bash, "-eu"], input=script, env=variables, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    record = (kept / "record").read_text() if (kept / "record").is_file() else ""
    return [call.split("\037")[:-1] for call in record.split("\036")[:-1]]


def commands(page: Path, folder: Path) -> Iterator[list[str]]:
    """The commands of a page, loops and variables expanded, patterns by the files below the folder by then."""
    activate = folder / ".venv/bin/activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.touch()
    for script in shell_scripts(page):
        yield from started_by(script, folder, *PROGRAMS)
