"""What all commands share: a parser of flags, errors in one line, exit codes.

A command imports this module before anything slow: from then on Ctrl-C is answered in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, ClassVar, NoReturn

DONE, USER_ERROR, OUR_ERROR = 0, 2, 70  # 1 is left to commands that compare; 128 + a signal's number after a signal

# What to do about an error of the operating system, where its text alone does not say.
REMEDIES = {
    errno.ENOSPC: "free some space there or give another folder, then run the same command again",
    errno.EDQUOT: "free some of your quota or give another folder, then run the same command again",
    errno.EROFS: "give a folder that can be written to",
    errno.EACCES: "get the right to it, or give another path",
    errno.EPERM: "get the right to it, or give another path",
    errno.ENAMETOOLONG: "give a shorter path or name",
    errno.ELOOP: "mend the symbolic link, or give another path",
    errno.EIO: "the disk or the network behind it fails: copy what is there, then give another path",
    errno.ESTALE: "the network folder was exchanged meanwhile: mount it again",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a path whose parents are folders",
    errno.EFBIG: "the file grew past a limit of the disk or of ulimit -f: raise it or give another folder",
    errno.EMFILE: "too many open files: raise ulimit -n, or give fewer --workers",
    errno.ENFILE: "too many open files on this machine: try again later",
    errno.ENOENT: "give a path that exists",
}
LESS_MEMORY = "give a smaller --batch_size or --image_size, or --cache none"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # as torch says it


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line (exit code 2) and without abbreviations; `-` and `_` are alike in flags.

    Every parser has --debug, which leaves nothing in the namespace: `exit_code` reads it.
    """

    debug: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.add_argument("--debug", action=_Debug, help="show the traceback of every error")

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}\n")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        if flags:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"unknown {' '.join(flags)}{did_you_mean(flags, known) or f': see {self.prog} --help'}")
        if unknown:
            self.error(f"unexpected {' '.join(unknown)}: see {self.prog} --help")
        return found

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_underscores(argument) for argument in arguments], namespace)


class _Debug(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, **options | {"nargs": 0, "default": argparse.SUPPRESS})

    def __call__(self, *_: Any) -> None:
        Parser.debug = True


def did_you_mean(words: Sequence[str], known: Iterable[str]) -> str:
    """The known words that are most like these, as the end of an error: `; did you mean --epochs?`. Empty without."""
    import difflib

    near = [match for word in words for match in difflib.get_close_matches(word, list(known), n=1)]
    return f"; did you mean {' '.join(dict.fromkeys(near))}?" if near else ""


def _with_underscores(argument: str) -> str:
    """--data-path=a-b -> --data_path=a-b"""
    if not argument.startswith("--") or argument == "--":
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def boolean(text: str) -> bool:
    """0/1, no/yes, false/true -> bool. Raises ArgumentTypeError for other text."""
    values = {"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r}: must be 0 or 1")
    return values[text.lower()]


def exit_code(command: Callable[[], int | None], resumes: bool = False) -> int:
    """Run a command and return its exit code; errors are printed to stderr.

    2            a user error (ValueError, OSError) or too little memory: one line, a traceback only with --debug
    70           any other exception is our mistake: the traceback and a line that asks to report it
    128 + n      ended by signal n: Ctrl-C 130, SIGTERM 143, SIGHUP 129; `resumes`: the line says how to go on

    A closed standard output (`| head`) stops nothing: what is printed after that is dropped. Text that the terminal's
    encoding lacks is printed with backslashes.
    """
    Parser.debug = False
    with _signals_raise(), _Output() as output:
        code = _run(command, resumes)
    return code or output.code


def _run(command: Callable[[], int | None], resumes: bool) -> int:
    try:
        return command() or DONE
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
        print(_how_to_go_on(sys.argv[1:]) if resumes else "interrupted", file=sys.stderr)
        return 128 + number
    except Exception as problem:
        lines = explain(problem)
        if Parser.debug or lines is None:
            traceback.print_exc()
        for line in lines or ["this is a mistake of the program, not yours: please report it with the lines above"]:
            print(f"error: {line}", file=sys.stderr)
        return OUR_ERROR if lines is None else USER_ERROR


def explain(problem: Exception) -> list[str] | None:
    """The lines that tell a user of an error: what and where it is, what to do. None where it is our own mistake."""
    text = str(problem)
    if is_out_of_memory(problem):
        amount = re.search(r"(?:[Tt]ried|[Uu]nable) to allocate ([\d.]+ \w+)", text)
        return [f"out of memory{f' (no {amount[1]} more)' if amount else ''}: {LESS_MEMORY}"]
    if isinstance(problem, RuntimeError) and "can't start new thread" in text:
        return ["the system starts no more threads: give fewer --workers"]
    if isinstance(problem, OSError) and problem.errno is not None and problem.strerror:
        place = " -> ".join(os.fsdecode(name) for name in (problem.filename, problem.filename2) if _is_path(name))
        remedy = REMEDIES.get(problem.errno)
        return [": ".join(filter(None, (place, problem.strerror))) + (f"; {remedy}" if remedy else "")]
    if isinstance(problem, ModuleNotFoundError):
        return [f"{problem}: pip install -r requirements.txt brings what is needed"]
    if isinstance(problem, (ValueError, OSError)):
        return text.splitlines() or [type(problem).__name__]
    return None


def one_line_of(problem: BaseException) -> str | None:
    """`explain` in one line; None where it is our own mistake, or no error."""
    lines = explain(problem) if isinstance(problem, Exception) else None
    return None if lines is None else "; ".join(lines)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory was too small, that of the machine or of a GPU."""
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and any(words in str(problem).lower() for words in OUT_OF_MEMORY)
    )


def _is_path(name: object) -> bool:
    return isinstance(name, (str, bytes, os.PathLike))


def _how_to_go_on(arguments: Sequence[str]) -> str:
    """The line after an interruption. The same command would discard with --fresh or --resume 0: then without them."""
    words = " ".join(map(_with_underscores, arguments)).replace("=", " ").split()
    following = dict(zip(words, [*words[1:], ""], strict=False))
    off = ("0", "no", "false")
    discarding = [flag for flag in ("--fresh",) if flag in following and following[flag].lower() not in off]
    discarding += ["--resume 0"] if following.get("--resume", "").lower() in off else []
    without = f" without {' and '.join(discarding)}" if discarding else ""
    return f"interrupted: run the same command again{without} to continue from the last resume point"


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, by its number: it ends a command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated meanwhile, and Ctrl-C KeyboardInterrupt; what is ignored (nohup) stays so."""

    def terminate(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    wanted: dict[int, Any] = {signal.SIGTERM: terminate, signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = terminate
    if threading.current_thread() is not threading.main_thread():
        wanted = {}  # only the main thread may choose
    before = {number: signal.getsignal(number) for number in wanted}
    changed = [number for number in wanted if before[number] in (signal.SIG_DFL, _leave)]
    for number in changed:
        signal.signal(number, wanted[number])
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


class _Output:
    """sys.stdout and sys.stderr meanwhile: printing raises nothing, and stops nothing."""

    def __enter__(self) -> _Output:
        self._before = sys.stdout, sys.stderr
        self.streams = [_Stream(stream) for stream in self._before]
        sys.stdout, sys.stderr = self.streams
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self.streams:
            stream.flush()
        if self.streams[0].problem is not None:
            print(f"error: standard output: {self.streams[0].problem.strerror}; it is not complete", file=sys.stderr)
            self.streams[1].flush()
        sys.stdout, sys.stderr = self._before

    @property
    def code(self) -> int:
        """2 where standard output was lost, unless its reader closed it; else 0."""
        return USER_ERROR if self.streams[0].problem is not None else DONE


class _Stream:
    """A text stream that drops what cannot be written. `problem` says why, unless its reader closed it.

    A stream that is missing (`>&-`) drops everything.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.problem: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, output: Callable[[], object]) -> None:
        try:
            output()
        except OSError as problem:
            if not isinstance(problem, BrokenPipeError):
                self.problem = self.problem or problem
            # what waits in the buffer would raise again when the interpreter ends: let it go nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _leave(number: int, _: FrameType | None) -> None:
    """Ctrl-C while modules are imported or after the work: nothing is under way, and no traceback would help.

    An exception would do for most imports; some are left half done by it and fail later, at another place.
    """
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _missing_package(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
    """A package that is not installed is one line."""
    if not isinstance(problem, ModuleNotFoundError):
        return sys.__excepthook__(kind, problem, trace)
    print(*(f"error: {line}" for line in explain(problem) or ()), file=sys.stderr)
    raise SystemExit(USER_ERROR)


def _is_a_command() -> bool:
    """Whether Python was started for a command of this project; sys.argv[0] is -m until python -m has found it."""
    here = os.path.dirname(os.path.abspath(__file__))
    return bool(sys.argv) and (
        sys.argv[0] == "-m" or os.path.abspath(sys.argv[0]) in (os.path.join(here, n) for n in ("main.py", "test.py"))
    )


if _is_a_command():
    sys.excepthook = _missing_package
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is ignored in a background job
        signal.signal(signal.SIGINT, _leave)
