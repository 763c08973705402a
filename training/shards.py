"""--shard: the runs that this process takes, where each of several processes takes its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from utils import printable

Run = TypeVar("Run")
# (this process's number, the lowest one, the highest one, the step, the count) in the environment
ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))
TASKS = ("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE")  # (this process's number from 0, the count)


def share(runs: Sequence[Run], shard: str | None, environment: Mapping[str, str] = os.environ) -> list[Run]:
    """Every N-th run from the I-th for I/N, all of them for None; `auto` takes I and N from the environment.

    Raises ValueError for another text, and for auto where neither Slurm nor a launcher has set its variables or where
    an array of Slurm has gaps.
    """
    if shard is None:
        return list(runs)
    number, count = _from_environment(environment) if shard == "auto" else _parsed(shard)
    return list(runs[number - 1 :: count])


def _parsed(shard: str) -> tuple[int, int]:
    if found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard, re.ASCII):
        number, count = map(int, found.groups())
        if 1 <= number <= count:
            return number, count
    raise ValueError(f"--shard {printable(shard[:80])}: must be I/N with 1 <= I <= N, as 2/3, or auto")


def _from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    def known(names: Sequence[str]) -> list[int] | None:
        return [int(environment[name]) for name in names] if all(name in environment for name in names) else None

    if array := known(ARRAY):
        number, lowest, highest, step, count = array
        if (highest - lowest) // step + 1 != count:
            raise ValueError(
                f"--shard auto: an array of {count} from {lowest} to {highest} has gaps, which hide a task's place: "
                "give --array=1-N; finished runs are not run again"
            )
        return (number - lowest) // step + 1, count
    for names in TASKS:
        if task := known(names):
            return task[0] + 1, task[1]
    wanted = ", ".join((ARRAY[0], TASKS[0][0], TASKS[1][0]))
    raise ValueError(f"--shard auto: found none of {wanted} in the environment: give --shard I/N")
