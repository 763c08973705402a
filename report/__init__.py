"""Tables over finished runs: computed, compared with published metrics, written as text, Markdown, CSV and JSON."""

from report.rendering import render, update_tables, write_tables
from report.results import METRIC_TITLES, collect, one_line, unfinished
from report.tables import summarize

__all__ = ["METRIC_TITLES", "collect", "one_line", "render", "summarize", "unfinished", "update_tables", "write_tables"]
