"""TOML and JSON that are not trusted: as much of them, and as deep, as files of ours can need."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.files import read_bytes

LARGEST = 2**22
"""Bytes that a TOML file may have."""
DEPTH = 32
"""Tables and lists may be in one another so many times; those of an experiment are five or six times."""
PLAIN = frozenset({bool, int, float, str, type(None)})
"""Kinds of what stands in tables and lists and has nothing in it."""
TOO_DEEP = f"tables and lists stand in one another more than {DEPTH} times"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file. OSError: see `read_bytes`. ValueError: see `parse_toml`."""
    return parse_toml(read_bytes(path, LARGEST).decode("utf-8-sig"))  # editors of Windows begin a file by a mark


def parse_toml(text: str) -> dict[str, Any]:
    """Read a text. tomllib.TOMLDecodeError: it is no TOML. ValueError: a number or a nesting that nobody can take."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    hold_shallow(found)
    return found


def parse_json(text: bytes) -> Any:
    """Read a text. ValueError: it is no JSON, which has no NaN, or a number or a nesting that nobody can take."""
    try:
        found = JSON.decode(text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    hold_shallow(found)
    return found


def hold_shallow(value: Any, depth: int = DEPTH) -> None:
    """Raise a ValueError where tables and lists stand in one another too often for what goes through them."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if inner and depth == 0:
        raise ValueError(TOO_DEEP)
    for part in inner:
        if type(part) not in PLAIN:  # most are, of a million rows
            hold_shallow(part, depth - 1)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


JSON = json.JSONDecoder(parse_constant=_refuse)
"""One for all texts: to make it takes longer than to read a row."""
