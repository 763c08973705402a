"""What the commands share: flags with `-` and `_` alike and never abbreviated, errors of one line, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line (exit code 2), no abbreviations, and `-` and `_` alike in long flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args([_underscored(argument) for argument in arguments], namespace)


def _underscored(argument: str) -> str:
    if not argument.startswith("--") or argument == "--":
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def boolean(text: str) -> bool:
    """0/1, no/yes, false/true -> bool. Raises ArgumentTypeError on anything else."""
    values = {"0": False, "1": True, "no": False, "yes": True, "false": False, "true": True}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r}: wants 0 or 1")
    return values[text.lower()]


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command: what a user can mend becomes lines on stderr and exit code 2; Ctrl-C becomes 130."""
    try:
        return command() or 0
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as problem:
        for line in str(problem).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last resume point", file=sys.stderr)
        return 130
