"""Predictions on new images: reading what can be read, lines and files of what was found."""

from pathlib import Path

STDIN = Path("-")  # in place of --images: the paths come from standard input
