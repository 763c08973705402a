"""Tables over finished runs: computed, set beside published figures, written as text, Markdown, CSV and JSON."""

from summary.rendering import render, write_tables
from summary.results import FIGURES, collect, unfinished
from summary.tables import summarize

__all__ = ["FIGURES", "collect", "render", "summarize", "unfinished", "write_tables"]
