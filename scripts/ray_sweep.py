"""Run a sweep on Ray: python -m scripts.ray_sweep [--address HOST:PORT] [flags of main.py]

Without an address Ray is started on this machine. The same as main.py with --ray, which the ablations and the papers'
tables take too. Needs requirements-ray.txt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from commandline import Parser, exit_code
from main import main as train


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, as main.py. Raises ValueError or OSError on user errors."""
    usage = "python -m scripts.ray_sweep [--address HOST:PORT] [flags of main.py]"
    parser = Parser(prog="scripts.ray_sweep", usage=usage, description="A sweep on Ray, each run a task")
    parser.add_argument("--address", default="local", help="a cluster's address (default: start Ray on this machine)")
    given, flags = parser.parse_known_args(argv)
    return train([*flags, "--ray", given.address])


if __name__ == "__main__":
    sys.exit(exit_code(main, resumes=True))
