"""The run's threshold as data, where it has one."""

from __future__ import annotations

import sys
from typing import Any

from run_files import METRICS, Run
from utils import read_json

THRESHOLD = "threshold.json"


def threshold_record(run: Run) -> dict[str, Any] | None:
    """The content of the run's threshold.json; None without one, or where it belongs to another checkpoint."""
    path = run.folder / THRESHOLD
    if not path.exists():
        return None
    record = read_json(path)
    if record["checkpoint_sha256"] != run.read(METRICS).get("checkpoint_sha256"):
        print(f"{path}: belongs to another checkpoint, so the export has no threshold", file=sys.stderr)
        return None
    return record
