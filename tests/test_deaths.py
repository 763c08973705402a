"""Commands that die before a file operation and are started again end like undisturbed ones; the short form."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from toys import ROOT


@pytest.mark.slow
def test_a_command_that_died_ends_like_an_undisturbed_one() -> None:
    command = [sys.executable, "-m", "scripts.deaths", "--every", "17"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    deaths = [int(count) for count in re.findall(r": (\d+) deaths, 0 wrong", done.stdout)]
    assert len(deaths) == 5 and sum(deaths) >= 10, done.stdout
