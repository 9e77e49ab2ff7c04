"""Rows as columns in a few bytes, and texts that a page's script takes apart again."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DIGITS = 5
"""Significant digits of a number that is no whole one: more are not to be seen in a picture, nor in a table."""

Column = list[float | int | None] | float | int | None
"""A value a row, or one that all rows have."""


def columns(rows: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> dict[str, Column]:
    """The columns of rows by name; None where a row lacks it, or had no finite number.

    names: of which columns, by default of all. A column that is the same in all rows is its value alone.
    """
    known = dict.fromkeys(name for row in rows for name in row) if names is None else names
    return {name: column([row.get(name) for row in rows]) for name in known}


def column(values: Iterable[float | int | None]) -> Column:
    """Values, rounded; where all are the same that value alone."""
    short = [shortened(value) for value in values]
    return short[0] if short and all(value == short[0] for value in short) else short


def shortened(value: float | int | None) -> float | int | None:
    """A number to `DIGITS` significant digits, whole ones as they are; None where it is not finite."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def compressed(text: str) -> str:
    """A text as deflate in Base64, in which no letter means anything to HTML."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def as_json(value: Any) -> str:
    """JSON without spaces. ValueError: a number is not finite, which no browser reads."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
