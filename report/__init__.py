"""Tables over finished runs: computed, set beside published figures, written as text, Markdown, CSV and JSON."""

from report.rendering import render, write_tables
from report.results import FIGURES, collect, unfinished
from report.tables import summarize

__all__ = ["FIGURES", "collect", "render", "summarize", "unfinished", "write_tables"]
