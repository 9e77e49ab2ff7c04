"""Lines for a terminal: what comes from outside must not steer it.

File names, keys and cells hold whatever somebody has put there: escape sequences that set a terminal's title or
colours, and letters that turn the direction of writing around. All that fedsim prints goes through `tell`, or through
`fedsim.cli.console.Console` where it is laid out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

_noting = ContextVar("_noting", default=True)


def printable(text: str) -> str:
    r"""A text in which letters that are not printable, but for tabs and line ends, are written as \x1b and the like.

    Printable is what Unicode calls so: no control, format or surrogate characters, and no space but the usual one.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _escaped(letter) for letter in text)


def tell(text: str, to: Literal["stdout", "stderr"] = "stdout") -> None:
    """Print a text, at once, so that whatever it holds steers nothing."""
    print(printable(text), file=getattr(sys, to), flush=True)


def note(text: str) -> None:
    """Tell on standard error what is good to know and no more; see `without_notes`."""
    if _noting.get():
        tell(f"fedsim: {text}", "stderr")


@contextmanager
def without_notes() -> Iterator[None]:
    """Within this block nothing is noted."""
    before = _noting.set(False)
    try:
        yield
    finally:
        _noting.reset(before)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
