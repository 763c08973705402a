"""One HTML page over finished runs, for researchers and for inspectors, and the points of its curves."""

from report.page.render import PAGE, write_page

__all__ = ["PAGE", "write_page"]
