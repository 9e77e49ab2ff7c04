"""The terminal as what is laid out for it is written to it: see `fedsim.core.terminal`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich import console
from rich.segment import Segment

from fedsim.core.terminal import printable


class Console(console.Console):
    """A console of rich's on which texts steer nothing, whatever they hold: neither as escapes nor as rich's markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is to be written, with the texts made printable."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


class _Printable(logging.Formatter):
    """Log records of libraries, in the words of the handler that Python has for them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_written = warnings.formatwarning


def _formatted(*given: Any, **named: Any) -> str:
    return printable(_written(*given, **named))


def guard() -> None:
    """Have warnings and log records of libraries go through `printable`, too, and letters that a terminal lacks."""
    warnings.formatwarning = _formatted
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # what a test puts in their place need not have it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
