"""The command line: a flag for each field of the Config, and the published flags, which are translated.

A flag is the name of its field; `-` and `_` are the same, and abbreviations are not accepted.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from commandline import Parser, boolean
from config import GROUPS, Config, field_types, kind_of

METAVARS = {int: "N", float: "X", Path: "PATH"}
RES_TO_SKIPS = {
    0: "none",
    1: "none",
    2: "E3",
    3: "both",
}  # as in the published help text; the published code treats 1 and 2 like 3
L2_TO_LOSS = {0: "cosine", 1: "mse", 2: "mse+cosine"}


def parse(argv: Sequence[str] | None = None) -> Config:
    """The command line -> Config: the flags override a saved --config, which overrides the defaults.

    An unknown flag exits with one line and code 2. Raises ValueError or FileNotFoundError for invalid values.
    """
    given = vars(_parser().parse_args(argv))
    saved = given.pop("config", None)
    if "variant" in given and "variants" in given:
        raise ValueError("--variant and --variants: give one of them")
    if "device" in given and "devices" in given:
        raise ValueError("--device and --devices: give one of them")
    if given.pop("cut", 0):
        raise ValueError("--cut: the published code parses this flag and never uses it; it has no CutPaste")
    for flag, field_name, table in (("res", "skips", RES_TO_SKIPS), ("L2", "loss", L2_TO_LOSS)):
        if flag in given:
            number = given.pop(flag)
            if field_name in given and given[field_name] != table[number]:
                raise ValueError(
                    f"--{flag} {number} means --{field_name} {table[number]}; found {given[field_name]} too"
                )
            given[field_name] = table[number]
    return Config(**{**(Config.load(saved) if saved else {}), **given})


def _parser(shows_all: bool = True) -> Parser:
    """The flags of main.py; the help of those that are not common is left out unless `shows_all`."""
    fields = dataclasses.fields(Config)
    few = [f for f in fields if f.metadata["common"]]
    parser = Parser(
        prog="main.py",
        usage="python main.py [flags]",
        description="Train and score reverse distillation, one model per class and seed. In flags - and _ are alike.",
        epilog=None if shows_all else f"These are {len(few)} of {len(fields)} flags: --help all shows every one.",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_Help, help="show the common flags; --help all: every flag")
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for f in fields:
        add_option(groups[f.metadata["group"]], f.name)
    published = parser.add_argument_group("published flags, which are translated")
    parser.add_argument(
        "--config", type=path, metavar="PATH", help="start from a run's config.json; flags given here override it"
    )
    published.add_argument("--res", type=int, choices=RES_TO_SKIPS, help="--skips: 0, 1 none; 2 E3 only; 3 E3 and E2")
    published.add_argument("--L2", type=int, choices=L2_TO_LOSS, help="--loss: 0 cosine; 1 mse; 2 half of each")
    published.add_argument("--cut", type=int, help="accepted at 0 only: the published code never uses it")
    if not shows_all:
        shown = {"help", *(f.name for f in few)}
        for action in parser._actions:
            action.help = action.help if action.dest in shown else argparse.SUPPRESS
    return parser


class _Formatter(argparse.HelpFormatter):
    """A flag with several spellings has its values named once: `--seeds, --seed N [N ...]`."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, str(action.metavar or action.dest))}"


class _Help(argparse.Action):
    """Print the help of the common flags, or with the word `all` of every flag, and end."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", metavar="all", **options)

    def __call__(self, parser: argparse.ArgumentParser, _: Any, words: Any, flag: str | None = None) -> NoReturn:
        if words not in (None, "all"):
            parser.error(f"{flag} {words}: give {flag} or {flag} all")
        _parser(shows_all=words == "all").print_help()
        parser.exit()


def parse_some(prog: str, description: str | None, names: Sequence[str], argv: Sequence[str] | None) -> Config:
    """The command line of a command that has only the flags of the named fields -> Config. Errors as in `parse`."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=prog, description=description, formatter_class=kind, argument_default=argparse.SUPPRESS)
    for name in names:
        add_option(parser, name)
    return Config(**vars(parser.parse_args(argv)))


def add_option(parser: argparse._ActionsContainer, name: str) -> None:
    """Add the flag of one field to a parser, or to a group of a parser."""
    f = next(f for f in dataclasses.fields(Config) if f.name == name)
    kind = kind_of(field_types()[name])
    options: dict[str, Any] = {"type": path if kind is Path else kind, "metavar": METAVARS.get(kind, "NAME")}
    if kind is bool:
        options = {"type": boolean, "nargs": "?", "const": True, "metavar": "0|1"}
    elif typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        options = {"type": item, "nargs": "+", "metavar": METAVARS.get(item, "NAME")}
    if f.metadata["choices"]:
        options["metavar"] = "{" + ",".join(f.metadata["choices"]) + "}"
    text = f.metadata["help"] + ("" if f.default is None else f" (default: {_format_default(f.default)})")
    names = [f"--{name}" for name in (f.name, *f.metadata["names"])]
    parser.add_argument(*names, dest=f.name, help=text.replace("%", "%%"), **options)


def path(text: str) -> Path:
    """A path; the empty text, which Path takes for the folder one is in, is refused. Raises ArgumentTypeError."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def _format_default(default: Any) -> str:
    if isinstance(default, bool):
        return str(int(default))
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
