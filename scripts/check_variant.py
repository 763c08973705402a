"""Check a variant against the laws that every row of VARIANTS keeps: one line for each law.

    python -m scripts.check_variant NAME
    python -m scripts.check_variant NAME --net efficientnet_lite0

The variant is trained for a few steps on images that are made for it, around a teacher with random weights: nothing is
downloaded. Exit code 0: no law is broken (some may be not checked, with the reason); 1: one is; 2: a wrong argument.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from commandline import Parser, did_you_mean, exit_code
from methods import VARIANTS
from utils import set_determinism


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each law; returns the exit code."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m scripts.check_variant", description=__doc__, formatter_class=kind)
    parser.add_argument("variant", metavar="NAME", help="a row of VARIANTS")
    parser.add_argument("--net", metavar="NAME", default="res18", help="teacher (default: res18)")
    given = parser.parse_args(argv)
    if given.variant not in VARIANTS:
        hint = did_you_mean([given.variant], VARIANTS)
        raise ValueError(f"unknown variant {given.variant!r}: choose from {', '.join(VARIANTS)}{hint}")
    from scripts.variant_laws import LAWS, Trial, verdict  # with torch, whose import takes seconds

    set_determinism(True)
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(given.variant, given.net, Path(folder))
        trial.experiment().distiller  # noqa: B018 - a --net that does not go with the variant shows before the laws
        for law in LAWS.values():
            text = verdict(law, trial)
            broken += text.startswith("FAILED")
            print(f"{law.title}: {text}", flush=True)
    print(f"{given.variant} around {given.net}: {broken} of {len(LAWS)} laws broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
