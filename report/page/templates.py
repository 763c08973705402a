"""The templates of the page and of its drawings."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from utils import printable

HERE = Path(__file__).parent


def make_environment() -> jinja2.Environment:
    """Templates in which every text is escaped, and shown in one line (`printable`) whatever bytes it has."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )


def read_asset(name: str) -> str:
    """The text of a style or script beside the templates."""
    return (HERE / name).read_text(encoding="utf-8")
