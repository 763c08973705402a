"""What all commands share: a parser of flags, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line (exit code 2) and without abbreviations; `-` and `_` are alike in flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_underscores(argument) for argument in arguments], namespace)


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


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code. User errors are printed to stderr without a traceback, with code 2.

    User errors are ValueError, FileNotFoundError, FileExistsError and NotADirectoryError. Ctrl-C gives code 130.
    """
    try:
        return command() or 0
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as problem:
        for line in str(problem).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue from the last resume point", file=sys.stderr)
        return 130
