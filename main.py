"""Train reverse distillation on one class at a time, score it once, leave a run folder behind.

python main.py --dataset demo --net efficientnet_lite0 --epochs 10        the flags: python main.py --help
"""

from __future__ import annotations

from commandline import exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from config import Config
from flags import parse
from report.closing import close_tables
from report.rendering import count
from training.shards import share
from training.terminal import first_line, in_one_line, list_runs

if TYPE_CHECKING:  # what needs torch, whose import takes seconds, is imported where it is used
    from training.sweep import Sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run every class and seed that is not finished yet, then print and save the table over all of them.

    A misspelt flag and the first line of output need no torch. Returns the exit code: 0, or 1 where some run is not
    finished.
    """
    config = parse(argv)
    sweep = train_shown(list_runs(config), config.shard)
    if sweep.made:
        print(f"\n{close_tables(sweep.runs, oracle=config.print_max)}")
        if config.dataset == "folder" and len(sweep.runs) == 1 and sweep.complete:
            print(f"next: python test.py {shlex.quote(str(sweep.runs[0].run_folder))} --images FOLDER")
    return say_what_is_left(sweep)


def train_shown(runs: Sequence[Config], shard: str | None) -> Sweep:
    """Train and score the runs of the shard, or all; the first line is printed before torch is imported."""
    own = share(runs, shard)
    if not own:
        raise ValueError(f"--shard {shard}: there are {count(len(runs), 'run')} only, none of them for this one")
    with in_one_line(first_line(own, None if shard is None else len(runs))) as ending:
        from training.engines import describe_engine, train_all

        ending.append(f", on {describe_engine(own[0])}")
    return train_all(own)


def say_what_is_left(sweep: Sweep) -> int:
    """Say which runs are other processes' and which have failed; the exit code: 0, or 1 where there are some."""
    if sweep.busy:
        left = "1 run is" if len(sweep.busy) == 1 else f"{len(sweep.busy)} runs are"
        print(f"{left} not in the tables, since other processes write them: run the command again later")
    for problem in dict.fromkeys(sweep.failures.values()):
        titles = ", ".join(sweep.titles[number - 1] for number, text in sweep.failures.items() if text == problem)
        print(f"error: {titles}: {problem}", file=sys.stderr)
    if sweep.failures:
        failed = f"{len(sweep.failures)} of {count(len(sweep.runs), 'run')} failed"
        print(f"{failed}: run the same command again once that is mended", file=sys.stderr)
    return 0 if sweep.complete else 1


if __name__ == "__main__":
    sys.exit(exit_code(main, resumes=True))
