"""Run the settings of an ablation and compare them.

    python -m scripts.sweep ABLATION [SETTING ...] [flags of main.py]

ABLATIONS lists the ablations and their settings; all settings are the default. The user's flags override those of the
sweep. Finished runs are not run again, so the same command continues a sweep that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TypeVar

from commandline import Parser, did_you_mean, exit_code
from config import DISTILLATION_LOSSES, Config
from flags import parse
from main import say_what_is_left, train_shown
from methods import SKIPS
from model import TEACHERS, is_resnet
from report.comparison import compare_settings, render_comparison
from report.papers import SUBSETS, Setting
from report.rendering import update_tables
from report.results import Result, collect
from utils import terminal_width, write_atomically

Row = TypeVar("Row")


@dataclass(frozen=True)
class Ablation:
    """Title, flags of main.py for all settings, the settings, and those of `tables.SETTINGS` in which they differ."""

    title: str
    flags: str
    settings: tuple[Setting, ...]
    swept: tuple[str, ...] = ()


SWITCHES = [(scconv, simam, fmm) for fmm in (0, 1) for scconv in (0, 1) for simam in (0, 1)]

ABLATIONS = {
    "skips": Ablation(
        "skip connections of SK-RD4AD",
        "--variant sk_rd4ad",
        tuple(Setting(name, f"--skips {name}") for name in SKIPS),
    ),
    "losses": Ablation(
        "distillation losses, without and with the consistency loss, on SK-RD4AD",
        "--variant sk_rd4ad",
        tuple(
            Setting(f"{loss}{'+consistency' * layerloss}", f"--loss {loss} --layerloss {layerloss}")
            for layerloss in (0, 1)
            for loss in DISTILLATION_LOSSES
        ),
    ),
    "levels": Ablation(
        "levels that are trained and scored, on RD4AD; 0 is the finest",
        "--variant rd4ad",
        tuple(Setting(levels.replace(" ", "+"), f"--train_levels {levels} --levels {levels}") for levels in SUBSETS),
    ),
    "backbones": Ablation(
        "teachers, on SK-RD4AD",
        "--variant sk_rd4ad",
        tuple(
            Setting(net, f"--net {net} --preset published")  # the teacher alone varies
            for net in reversed([*filter(is_resnet, TEACHERS), "efficientnet_lite0"])
        ),
        swept=("net", "teacher_weights"),
    ),
    "masked": Ablation(
        "the parts of masked reverse distillation: SCConv, SimAM, FMM",
        "--variant masked",
        tuple(
            Setting(
                "+".join(name for name, on in zip(("scconv", "simam", "fmm"), parts, strict=True) if on) or "none",
                "--scconv {} --simam {} --fmm {}".format(*parts),
            )
            for parts in SWITCHES
        ),
    ),
}


@dataclass(frozen=True)
class Plan:
    """One setting to run: its Config, and the Config without the user's flags."""

    setting: Setting
    config: Config
    preset: Config


def plan(flags: str, setting: Setting, more: Sequence[str]) -> Plan:
    """The plan of a setting: the common flags, those of the setting, those of the user (`more`), and a folder name.

    The folder is named after variant and setting. Raises ValueError for --name, and the errors of main.py.
    """
    own = [*flags.split(), *setting.flags.split()]
    config = parse([*own, *more])
    if config.name is not None:
        raise ValueError("--name: a sweep names the folders of its settings itself; give another --save_path instead")
    if config.variants is not None:
        raise ValueError("--variants: a sweep names the variant of its settings itself; give --variant")
    changes = [part.split() for part in setting.flags.split("--") if part and not part.startswith("variant")]
    name = "_".join([config.variant, *("-".join(words) for words in changes)])
    return Plan(setting, replace(config, name=name), parse(own))


def run(plans: Sequence[Plan]) -> tuple[list[list[Result]], int]:
    """Train and score all runs that are not finished, by the engine that the flags ask for, and write their tables.

    Returns the finished runs of each setting, and the exit code. Raises ValueError where a setting has none.
    """
    runs = {run.run_folder: run for one in plans for run in one.config.runs()}  # tables may share settings
    sweep = train_shown(list(runs.values()), plans[0].config.shard)
    results = []
    for one in plans:
        update_tables(one.config.sweep_folder)
        found = collect([one.config.sweep_folder])
        results.append([result for result in found if bool(result.get("unified")) == one.config.unified])
    code = say_what_is_left(sweep)
    print(f"\ntables and runs: {', '.join(str(one.config.sweep_folder) for one in plans)}")
    if missing := [one.setting.label for one, found in zip(plans, results, strict=True) if not found]:
        raise ValueError(f"no run of {', '.join(missing)} is finished, and a table needs one of each")
    return results, code


def check_distinct(plans: Sequence[Plan]) -> None:
    """Raises ValueError where two settings would be the same run, because a flag overrides what the sweep varies."""
    labels: dict[str, str] = {}
    for one in plans:
        identity, label = repr(one.config.identity()), one.setting.label
        if identity in labels:
            raise ValueError(
                f"{labels[identity]} and {label} are the same run: a flag overrides what this sweep varies"
            )
        labels[identity] = label


def parse_words(
    kind: str, part: str, known: Mapping[str, Sequence[str]], prog: str, argv: Sequence[str] | None
) -> tuple[str, list[str], list[str]]:
    """The command line `NAME [PART ...] [flags of main.py]` -> the name, the parts of it that are named, the flags.

    `known` lists the parts of every name; `kind` and `part` say what they are. A name that is missing or unknown exits
    with one line that lists the names, and code 2.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    words = list(takewhile(lambda word: not word.startswith("-") or word in ("-h", "--help"), given))
    usage = f"python -m {prog} {kind.upper()} [{part.upper()} ...] [flags of main.py]"
    parser = Parser(prog=prog, usage=usage)
    parser.add_argument("name", metavar=kind.upper(), nargs="?", help=", ".join(known))
    rows = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in known.items())
    parser.add_argument("parts", metavar=part.upper(), nargs="*", help=rows)
    found = parser.parse_args(words)
    if found.name not in known:
        wrong = f"{kind} {found.name!r} is unknown" if found.name else f"name the {kind} first"
        hint = did_you_mean([found.name or ""], known)
        parser.error(f"{wrong}: choose from {', '.join(known)}{hint}")
    return found.name, found.parts, given[len(words) :]


def pick(known: Mapping[str, Row], wanted: Sequence[str], kind: str) -> list[Row]:
    """The rows with these names, each once, in the given order. Raises ValueError for an unknown name."""
    unknown = [name for name in wanted if name not in known]
    if unknown:
        hint = did_you_mean(unknown, known)
        raise ValueError(f"unknown {kind} {', '.join(unknown)}: choose from {', '.join(known)}{hint}")
    return [known[name] for name in dict.fromkeys(wanted)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    labels = {name: [setting.label for setting in row.settings] for name, row in ABLATIONS.items()}
    name, chosen, more = parse_words("ablation", "setting", labels, "scripts.sweep", argv)
    ablation = ABLATIONS[name]
    settings = {setting.label: setting for setting in ablation.settings}
    flags = f"--save_path runs/ablations {ablation.flags}"
    plans = [plan(flags, setting, more) for setting in pick(settings, chosen or labels[name], "setting")]
    check_distinct(plans)

    results, code = run(plans)
    groups = {one.setting.label: runs for one, runs in zip(plans, results, strict=True)}
    config = plans[0].config
    tables = [compare_settings(config.dataset, groups, ablation.swept)]
    page = config.save_path / config.dataset / f"ablation_{name}.md"
    write_atomically(page, f"{ablation.title}\n\n{render_comparison(tables, markdown=True)}\n")
    print(f"\n== {ablation.title}\n\n{render_comparison(tables, width=terminal_width())}\n\nthis table: {page}")
    return code


if __name__ == "__main__":
    sys.exit(exit_code(main, resumes=True))
