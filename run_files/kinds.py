"""What the values in a run's files must be, in words and as tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> Kind:
        return Kind(f"{self.words} or null", lambda value: value is None or self.fits(value))


def is_whole(value: Any, least: int = -(2**63)) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """NaN is none; neither is true, nor an integer that no float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return low <= value <= high and abs(value) < 2**1023


def is_table(value: Any, fits: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and fits(v) for k, v in value.items())


TEXT = Kind("a text that is not empty", lambda value: isinstance(value, str) and bool(value))
WHOLE = Kind("a whole number of at most 64 bits", is_whole)
COUNT = Kind("a whole number, at least 0", lambda value: is_whole(value, 0))
POSITIVE = Kind("a whole number, at least 1", lambda value: is_whole(value, 1))
SECONDS = Kind("a finite number, at least 0", lambda value: is_number(value, 0))
NUMBER = Kind("a finite number", is_number)
FRACTION = Kind("a fraction in 0..1", lambda value: is_number(value, 0, 1))
TABLE = Kind("a table by name", is_table)
TEXTS = Kind("a table of texts by name", lambda value: is_table(value, TEXT.fits))
METRIC = FRACTION.or_null()
METRIC_TABLE = Kind("a table of metrics, which are fractions in 0..1 or null", lambda v: is_table(v, METRIC.fits))


def check(
    record: Mapping[str, Any], needed: Mapping[str, Kind], further: Mapping[str, Kind] | None = None, place: str = ""
) -> None:
    """Raises ValueError for the first field that is missing or is not of its kind; unknown ones may be there."""
    for name, kind in needed.items():
        if name not in record:
            raise ValueError(f"{place}{name} is missing, which must be {kind.words}")
    for name, kind in {**needed, **(further or {})}.items():
        if name in record and not kind.fits(record[name]):
            raise ValueError(f"{place}{name} must be {kind.words}, found {short(record[name])}")


def table(value: Any, what: str) -> dict[str, Any]:
    """The value, a table by name. Raises ValueError."""
    if not is_table(value):
        raise ValueError(f"{what} must be {TABLE.words}, found {short(value)}")
    return value


def short(value: Any) -> str:
    """A value in an error, in one line that is not too long."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, (Mapping, list, tuple)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
