"""Every failure is a line and an exit code: the system's errors, memory, signals, closed pipes, narrow terminals."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pytest
import torch
from toys import ROOT

import commandline
from commandline import Parser, Terminated, exit_code
from utils import write_atomically

# Started as a program: it has this project's exit codes and nothing that is slow to import.
PROGRAM = "import os, signal, sys, time\nfrom commandline import Parser, exit_code\ndef command():\n    {}\n{}"


def raising(problem: BaseException) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        raise problem

    return command


def program(body: str, options: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(body, f"sys.exit(exit_code(command{options}))")]


def started(command: list[str], **options: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, cwd=ROOT, text=True, **streams)


@pytest.mark.parametrize("number", sorted(commandline.REMEDIES))
def test_an_error_of_the_system_is_a_line_with_the_path_and_what_to_do(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raising(OSError(number, os.strerror(number), "runs/a"))) == 2
    error = capsys.readouterr().err
    assert error == f"error: runs/a: {os.strerror(number)}; {commandline.REMEDIES[number]}\n"


def test_both_paths_of_a_failed_rename_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: os.replace(tmp_path / "a", tmp_path / "b")) == 2
    assert f"error: {tmp_path / 'a'} -> {tmp_path / 'b'}: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("allocate", "amount"),
    [
        (lambda: np.empty(2**60, np.uint8), " (no 1.00 EiB more)"),
        (lambda: torch.empty(2**60, dtype=torch.uint8), " (no 1152921504606846976 bytes more)"),
        (
            raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")),
            " (no 2.00 GiB more)",
        ),
        (raising(MemoryError()), ""),
    ],
)
def test_too_little_memory_is_a_line_that_names_the_flags(
    allocate: Callable[[], Any], amount: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(allocate) == 2
    line = f"error: out of memory{amount}: give a smaller --batch_size or --image_size, or --cache none\n"
    assert capsys.readouterr().err == line


def test_a_user_error_has_its_traceback_with_debug_only(capsys: pytest.CaptureFixture[str]) -> None:
    def command(*flags: str) -> NoReturn:
        Parser().parse_args([*flags])
        raise ValueError("--rate: wrong\n--name: wrong")

    assert exit_code(command) == 2
    assert capsys.readouterr().err == "error: --rate: wrong\nerror: --name: wrong\n"
    assert exit_code(lambda: command("--debug")) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("error: --rate: wrong\nerror: --name: wrong\n")
    assert exit_code(command) == 2  # the flag holds for one command
    assert "Traceback" not in capsys.readouterr().err


def test_debug_leaves_nothing_in_the_namespace() -> None:
    assert vars(Parser().parse_args(["--debug"])) == {}


def test_our_own_mistake_keeps_its_traceback_and_asks_to_be_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raising(KeyError("epoch"))) == 70
    error = capsys.readouterr().err
    assert "KeyError: 'epoch'" in error
    assert error.splitlines()[-1].startswith("error: this is a mistake of the program, not yours: please report it")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_with_a_line_and_its_code(name: str, code: int) -> None:
    body = "print('ready', flush=True); time.sleep(60)"
    # the signal is not lost to the handler of the imports: a command does its `finally`
    process = started(program(f"try: {body}\n    finally: print('tidied')", ", resumes=True"))
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    output, error = process.communicate(timeout=20)
    assert (process.returncode, output) == (code, "tidied\n")
    assert error == "interrupted: run the same command again to continue from the last resume point\n"


def test_an_ignored_signal_stays_ignored() -> None:
    """As with nohup."""
    body = "os.kill(os.getpid(), signal.SIGHUP); print('done')"
    code = PROGRAM.format(body, "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsys.exit(exit_code(command))")
    process = started([sys.executable, "-c", code])
    assert (process.communicate(timeout=20)[0], process.returncode) == ("done\n", 0)


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        ("--fresh --epochs 3", " without --fresh"),
        ("--fresh=1", " without --fresh"),
        ("--fresh 0", ""),
        ("--resume 0 --fresh", " without --fresh and --resume 0"),
        ("--resume=no", " without --resume 0"),
        ("--resume 1", ""),
    ],
)
def test_the_command_that_goes_on_is_named_without_what_discards(arguments: str, without: str) -> None:
    line = commandline._how_to_go_on(arguments.split())
    assert line == f"interrupted: run the same command again{without} to continue from the last resume point"


@pytest.mark.parametrize("command", ["main.py", "test.py", "-m scripts.summarize", "-m benchmarks.tables"])
def test_ctrl_c_during_the_imports_is_a_line(command: str, tmp_path: Path) -> None:
    # a package that is slow to import and would swallow an exception, in place of torch and numpy
    for name in ("torch", "numpy"):
        slow = "try: time.sleep(60)\nexcept BaseException: raise ImportError\n"
        (tmp_path / f"{name}.py").write_text(f"import time\nprint('importing', flush=True)\n{slow}")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = started([sys.executable, *command.split(), "--help"], env=environment)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "interrupted\n")
    assert process.returncode == 130


def test_importing_the_project_from_elsewhere_leaves_signals_alone() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import commandline, signal; print(signal.getsignal(2))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True).stdout
    assert "default_int_handler" in output


def test_a_missing_package_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "torch.py").write_text("")
    process = started([sys.executable, "main.py"], env=os.environ | {"PYTHONPATH": str(tmp_path)})
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2
    assert error.count("\n") == 1
    assert "No module named 'a_package_that_is_missing': pip install -r requirements.txt" in error


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_leaves_stops_nothing(closed: str, tmp_path: Path) -> None:
    """As `| head -1`: the work goes on, and the exit code is that of the work."""
    done = tmp_path / "done"
    body = f"""
    for number in range(20000): print(number, 'x' * 20, file=sys.{closed}, flush=number == 0)
    open({str(done)!r}, 'w').close(); return 1"""
    process = started(program(body))
    stream = getattr(process, closed)
    assert stream.readline()
    stream.close()
    other = process.stderr if closed == "stdout" else process.stdout
    assert other is not None and other.read() == ""
    assert process.wait(20) == 1
    assert done.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_a_full_disk_swallows_is_an_error_after_the_work(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with open("/dev/full", "w") as full:
        process = started(program(f"print('table'); open({str(done)!r}, 'w').close()"), stdout=full)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 2
    assert done.exists()
    assert error == "error: standard output: No space left on device; it is not complete\n"


def test_closed_streams_stop_nothing() -> None:
    process = started(["bash", "-c", f'{sys.executable} -c "$0" >&- 2>&-', program("print('x' * 9)")[2]])
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_terminal_of_ascii_shows_other_letters_with_backslashes() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    body = "print('Prüfling \\u2026 \\udcff'); raise ValueError('müde')"
    process = started(program(body), env=environment)
    output, error = process.communicate(timeout=20)
    assert (process.returncode, output, error) == (2, "Pr\\xfcfling \\u2026 \\udcff\n", "error: m\\xfcde\n")


# --- full and read-only disks ---


@pytest.mark.parametrize("content", ["text " * 10000, lambda file: torch.save({"a": torch.zeros(10**5)}, file)])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError) as problem:
            write_atomically(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (problem.value.errno, problem.value.filename) == (errno.EFBIG, str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("operation", ["replace", "open", "mkdir"])
def test_a_disk_without_writing_is_an_error_that_names_the_file(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, operation, refuse)
    with pytest.raises(OSError) as problem:
        write_atomically(tmp_path / "a", "text")
    assert (problem.value.errno, problem.value.filename) == (errno.EROFS, str(tmp_path / "a"))


def test_a_mistake_of_a_writer_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ours"):
        write_atomically(tmp_path / "a", lambda _: raising(RuntimeError("ours"))())


@pytest.mark.parametrize("number", [1, 5, 9])
def test_a_signal_amid_torch_save_stays_one(number: int, tmp_path: Path) -> None:
    """torch.save closes its archive, which fails as it is not whole, with a RuntimeError."""

    class Interrupted:
        def __init__(self, file: BinaryIO) -> None:
            self.file, self.writes = file, 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes == number:
                raise Terminated(signal.SIGTERM)
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    state = {str(n): torch.zeros(10**4) for n in range(20)}
    with pytest.raises(Terminated):
        write_atomically(tmp_path / "a", lambda file: torch.save(state, Interrupted(file)))
    assert not list(tmp_path.iterdir())
