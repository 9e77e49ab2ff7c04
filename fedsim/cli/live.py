"""What is drawn on a terminal again and again, below what is printed meanwhile, and taken away at the end."""

from __future__ import annotations

import math
import sys
from datetime import timedelta

from rich.console import Console as AnyConsole
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live as RichLive
from rich.segment import ControlType, Segment

from fedsim.cli.console import Console

RATE = 4
"""Times a second that it is drawn."""


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


def clock(seconds: float | None) -> str:
    """A time that is left, as in 1:02:03 left; without one as long a text."""
    return "-:--:-- left" if seconds is None else f"{timedelta(seconds=math.ceil(seconds))} left"
