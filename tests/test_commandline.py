"""Every failure is one line and an exit code; a traceback only for our own mistakes, and with --debug."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toys import ROOT

from commandline import OUR_ERROR, Parser, exit_code


def fail(problem: BaseException) -> int:
    def command() -> int:
        raise problem

    return exit_code(command)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), ["/full/x", "No space left", "free some space"]),
        (OSError(errno.EROFS, "Read-only file system", "/cd/x"), ["/cd/x", "Read-only", "can be written"]),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), ["/root/x", "Permission denied"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), ["too long", "shorter"]),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/loop"), ["/loop", "symbolic link"]),
        (MemoryError(), ["out of memory", "--batch_size"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."), ["out of memory"]),
        (ValueError("--epochs -1: must be at least 0"), ["--epochs -1"]),
        (FileNotFoundError("/nowhere: no such file"), ["/nowhere"]),
    ],
)
def test_a_users_error_is_one_line(
    problem: BaseException, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(problem) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(word in error for word in words)


def test_our_own_mistake_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(KeyError("x")) == OUR_ERROR
    error = capsys.readouterr().err
    assert "Traceback" in error and "report it" in error


def test_debug_shows_the_traceback_of_a_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        Parser(prog="x").parse_args(["--debug"])
        raise ValueError("wrong")

    assert exit_code(command) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("error: wrong\n")
    assert fail(ValueError("wrong")) == 2
    assert "Traceback" not in capsys.readouterr().err


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_in_one_line_that_says_how_to_go_on(number: signal.Signals) -> None:
    code = "import os, sys, commandline; sys.argv = ['main.py', '--fresh']\n"
    code += f"sys.exit(commandline.exit_code(lambda: os.kill(os.getpid(), {int(number)}), resumes=True))"
    done = run_python(code)
    assert done.returncode == 128 + number
    assert (
        done.stderr
        == "interrupted: run the same command again without --fresh to continue from the last resume point\n"
    )


def test_a_closed_output_stops_no_work(tmp_path: Path) -> None:
    code = "import sys, commandline\ndef work():\n    for i in range(100000): print(i)\n"
    code += "    open(sys.argv[1], 'w').close()\nsys.exit(commandline.exit_code(work))"
    command = [sys.executable, "-c", code, str(tmp_path / "done")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0 and (tmp_path / "done").exists()


def test_a_terminal_that_knows_ascii_only_gets_backslashes() -> None:
    code = "import sys, commandline; sys.exit(commandline.exit_code(lambda: print('0 ± 1')))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run_python(code, stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 \\xb1 1\n", "")


def test_a_full_disk_behind_standard_output_is_told() -> None:
    code = "import sys, commandline; sys.exit(commandline.exit_code(lambda: print('x')))"
    with open("/dev/full", "w") as full:
        done = run_python(code, stdout=full)
    assert done.returncode == 2 and done.stderr.startswith("error: standard output") and done.stderr.count("\n") == 1
