"""Counts of images as published, from expected_counts.json beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parent / "expected_counts.json"


def published_counts(name: str) -> dict[str, Any]:
    """{class: {"train", "good", "bad"}} as published; empty for a benchmark without published counts.

    Those of mvtec_ad_2 also have "validation", and "private": the images of each of its two private test sets.
    """
    return json.loads(PUBLISHED.read_text(encoding="utf-8")).get(name, {})
