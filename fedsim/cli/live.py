"""What is drawn on a terminal again and again, below what is printed meanwhile, and taken away at the end."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import resource_tracker
from threading import Thread
from typing import TextIO

from rich.console import Console as AnyConsole
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live as RichLive
from rich.segment import ControlType, Segment

from fedsim.cli.console import Console

RATE = 4
"""Times a second that it is drawn."""
PARTING = 1.0
"""Seconds within which the last of what others have written is heard."""


class Live(RichLive):
    """Draws on standard error what `drawing` makes at that moment, and knows how a narrower terminal has folded it."""

    def __init__(self, drawing: RenderableType) -> None:
        self._lengths: list[int] = []
        self._width = 0
        self._drawing = drawing
        super().__init__(
            self,
            console=Console(stderr=True, soft_wrap=False),
            refresh_per_second=RATE,
            transient=True,
            # What goes to a file, or to another program, goes there.
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )

    def __rich_console__(self, console: AnyConsole, options: ConsoleOptions) -> RenderResult:
        """Draw, and remember how long the lines are."""
        lines = console.render_lines(self._drawing, options.update(height=None), pad=False)
        self._lengths = [sum(segment.cell_length for segment in line) for line in lines]
        for line in lines:
            yield from line
            yield Segment.line()

    def refresh(self) -> None:
        """Draw it again."""
        with self._lock:
            width = self.console.width
            if width < self._width:
                # A terminal that has become narrower has made several lines of one; these are to be taken away, too.
                further = sum(max(math.ceil(length / width), 1) - 1 for length in self._lengths)
                up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
                self.console.control(
                    Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up * further)
                )
            self._width = width
            super().refresh()


@contextmanager
def gathered(say: Callable[[str], None]) -> Iterator[TextIO]:
    """Within this block what other processes write to the terminal is said, line by line; it gives the terminal.

    So workers, and what they load, write above what is drawn, and not into it.
    """
    drawn_on = [number for number in (1, 2) if os.isatty(number)]
    if not drawn_on:
        yield sys.stderr
        return
    resource_tracker.ensure_running()  # which lives longer than this block, and is to write where it always has
    begin, end = os.pipe()
    kept = {number: os.dup(number) for number in drawn_on}
    listener = Thread(target=_listen, args=(begin, say), daemon=True)
    with open(os.dup(drawn_on[-1]), "w", encoding=sys.stderr.encoding, errors="backslashreplace") as terminal:
        for number in drawn_on:
            os.dup2(end, number)
        os.close(end)
        listener.start()
        try:
            yield terminal
        finally:
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
            listener.join(PARTING)


def _listen(begin: int, say: Callable[[str], None]) -> None:
    """Say what is written, until nobody has it open."""
    with open(begin, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            say(line.rstrip("\n"))


def clock(seconds: float | None) -> str:
    """A time that is left, as in 1:02:03 left; without one as long a text."""
    return "-:--:-- left" if seconds is None else f"{timedelta(seconds=math.ceil(seconds))} left"
