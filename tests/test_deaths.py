"""Commands that die before a file operation and are started again end like undisturbed ones; the short form."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from toys import ROOT

from scripts import soak


@pytest.mark.slow
def test_a_command_that_died_ends_like_an_undisturbed_one() -> None:
    command = [sys.executable, "-m", "scripts.deaths", "--every", "17"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    deaths = [int(count) for count in re.findall(r": (\d+) deaths, 0 wrong", done.stdout)]
    assert len(deaths) == 5 and sum(deaths) >= 10, done.stdout


@pytest.mark.parametrize("leaks", [False, True])
def test_a_soak_notices_what_is_never_closed(
    leaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = []
    monkeypatch.setattr(soak, "one_run", lambda seed: opened.append(open(os.devnull)) if leaks else None)  # noqa: SIM115
    monkeypatch.setattr(soak, "resources", lambda: {"memory, MiB": 100, "files": len(opened)})
    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(soak, "make_images", lambda root: None)
    assert soak.main(["--runs", "8"]) == int(leaks)
    assert capsys.readouterr().out.endswith("grew: files\n" if leaks else "nothing grew\n")
    for file in opened:
        file.close()


@pytest.mark.slow
def test_runs_in_one_process_hold_nothing() -> None:
    command = [sys.executable, "-m", "scripts.soak", "--runs", "8"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.endswith("nothing grew\n")
