"""Train reverse distillation on one class at a time, score it once, leave a run folder behind.

python main.py --dataset demo --net efficientnet_lite0 --epochs 10        the flags: python main.py --help
"""

from __future__ import annotations

from commandline import exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import shlex
import sys
from collections.abc import Sequence

import report
from flags import parse
from report.rendering import count
from training.terminal import first_line, in_one_line, list_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run every class and seed that is not finished yet, then print and save the table over all of them.

    A misspelt flag and the first line of output need no torch, whose import takes seconds. Returns the exit code: 0, or
    1 where some run is not finished.
    """
    config = parse(argv)
    runs = list_runs(config)
    with in_one_line(first_line(config, runs)) as ending:
        from training.sweep import Sweep
        from utils import choose_device, describe_device, keep_freed_memory, set_determinism

        device = choose_device(config.device)
        ending.append(f", on {describe_device(device)}")
    set_determinism(config.deterministic)
    if config.fast:
        keep_freed_memory()
    sweep = Sweep(runs, device)
    sweep.run()

    if len(sweep.failures) + len(sweep.busy) < len(runs):
        print(f"\n{report.update_tables(config.sweep_folder, oracle=config.print_max)}")
        print(f"\ntables and runs: {config.sweep_folder}")
        if config.dataset == "folder" and len(runs) == 1 and sweep.complete:
            print(f"next: python test.py {shlex.quote(str(runs[0].run_folder))} --images FOLDER")
    if sweep.busy:
        left = "1 run is" if len(sweep.busy) == 1 else f"{len(sweep.busy)} runs are"
        print(f"{left} not in the tables, since other processes write them: run the command again later")
    for problem in dict.fromkeys(sweep.failures.values()):
        titles = ", ".join(title for title, found in sweep.failures.items() if found == problem)
        print(f"error: {titles}: {problem}", file=sys.stderr)
    if sweep.failures:
        failed = f"{len(sweep.failures)} of {count(len(runs), 'run')} failed"
        print(f"{failed}: run the same command again once that is mended", file=sys.stderr)
    return 0 if sweep.complete else 1


if __name__ == "__main__":
    sys.exit(exit_code(main, resumes=True))
