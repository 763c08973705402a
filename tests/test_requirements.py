"""requirements.txt and what is derived from it: the lowest versions, and the lock file with hashes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from toys import ROOT

SCRIPT = ROOT / "scripts/lowest_versions.sh"


def requirements(name: str) -> list[Requirement]:
    """The requirements of a file, without those of the files that it names."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def lowest_versions(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), "--print", str(path)], capture_output=True, text=True, cwd="/")


def test_the_lowest_versions_are_those_of_the_file() -> None:
    done = lowest_versions(ROOT / "requirements.txt")
    assert (done.returncode, done.stderr) == (0, "")
    found = [Requirement(line) for line in done.stdout.splitlines()]
    wanted = requirements("requirements.txt")
    assert len(wanted) > 10 and [r.name for r in found] == [r.name for r in wanted]
    for lowest, requirement in zip(found, wanted, strict=True):
        (pin,), (bound,) = lowest.specifier, requirement.specifier
        assert (pin.operator, pin.version) == ("==", bound.version) and bound.operator in (">=", "==")


def test_spaces_comments_and_empty_lines_are_no_part_of_a_version(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("# all\n\na-b >= 1.2   # why\nc==0.1.0.post1\n")
    assert lowest_versions(tmp_path / "some.txt").stdout.splitlines() == ["a-b==1.2", "c==0.1.0.post1"]


@pytest.mark.parametrize("line", ["numpy", "numpy>=2,<3", "numpy~=2.1", "numpy>2", "-r other.txt", "numpy>=2 ; x"])
def test_a_line_without_a_lowest_version_is_an_error(line: str, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text(f"tqdm>=4\n{line}\n")
    done = lowest_versions(tmp_path / "some.txt")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'some.txt'}: want NAME>=VERSION or NAME==VERSION, found {line}\n"


def test_the_lock_file_pins_every_requirement_by_hash_and_names_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--index|--find-links|@ ", text) and not re.search(r"(?<![\w.])/[a-z]+/", text)
    pinned = {}
    for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
        name, version = entry.partition(" ")[0].split("==")
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), name
        pinned[name] = version
    files = sorted(path.name for path in ROOT.glob("requirements*.txt") if path.name != "requirements-ray.txt")
    assert files == ["requirements-dev.txt", "requirements-export.txt", "requirements-extra.txt", "requirements.txt"]
    for name in files:
        for requirement in requirements(name):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_an_environment_is_made_anew_where_its_requirements_have_changed(tmp_path: Path) -> None:
    """scripts/setup.sh, with a stand-in for Python: installed once, again after a change, and after the change back."""
    (tmp_path / "python").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = - ]; then cat > /dev/null; fi\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    (tmp_path / "python").chmod(0o755)
    command = f'set -euo pipefail; . "{ROOT}/scripts/setup.sh" some.txt; echo "$PATH"'
    path = f"{tmp_path}:/usr/bin:/bin"

    def installs(content: str) -> bool:
        (tmp_path / "some.txt").write_text(content)
        variables = {"PATH": path, "PYTHON": "python", "VENV": "own"}
        done = subprocess.run(["bash", "-c", command], env=variables, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"{tmp_path}/own/bin:")
        return "installing some.txt" in done.stdout

    assert [installs(content) for content in ("a==1", "a==1", "a==2", "a==1")] == [True, False, True, True]
