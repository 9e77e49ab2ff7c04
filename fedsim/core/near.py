"""Words that nobody knows: which known one was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CLOSE = 0.6
"""How alike a written word and a known one are at least, of 1, for the known one to be offered."""


def meant(written: object, known: Iterable[str]) -> str:
    """A question to end a remedy with, `; did you mean ...?`, where a known word is like the written one; else ""."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(written).lower(), by_lower, n=1, cutoff=CLOSE)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def name_one(written: object, known: Iterable[str]) -> str:
    """The remedy for a word that is none of those known."""
    names = [*known]
    return f"name one of: {', '.join(names) or '(none)'}{meant(written, names)}"
