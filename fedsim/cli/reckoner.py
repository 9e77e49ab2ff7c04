"""How long a run will take, from how far it was when.

Rows come with what was done until then (rounds, or virtual seconds) and the wall time. Some take longer than others:
those with a judgement, and those with attacks. So the pace is taken over whole periods, from one row with the most
measures to a later one:

left = wall_b + (wall_b - wall_a) / (done_b - done_a) * (total - done_b) - now

where b is the last such row and a the one half as far. What comes before the first row, as a compiler's work, is left
out.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from dataclasses import dataclass, field

FEW = 8
"""Rows of the longest kind up to which all count, and not those of the last half alone."""


@dataclass
class Reckoner:
    """Rows so far, of a run that ends at `total`."""

    total: float
    rows: int = 0
    _first: tuple[float, float] | None = None
    _last: tuple[float, float] = (0.0, 0.0)
    _measures: int = -1
    """The most that a row after the first had."""
    _first_measures: int = 0
    _marks: list[tuple[float, float]] = field(default_factory=list)
    """Rows with so many."""
    _steps: list[tuple[float, float]] = field(default_factory=list)
    """What rows added before the second of these."""

    def add(self, done: float, wall: float, measures: int) -> None:
        """Take a row: how far the run was, when, and how many columns it has."""
        row = (done, wall)
        self.rows += 1
        if self._first is None:
            self._first, self._first_measures = row, measures
        else:
            if measures > self._measures:
                self._measures, self._marks = measures, []
            if len(self._marks) < 2:
                self._steps.append((done - self._last[0], wall - self._last[1]))
            if measures == self._measures:
                self._marks.append(row)
        self._last = row

    def left(self, since: float = 0.0) -> float | None:
        """Seconds until the end, so many after the last row; None: nobody can know yet."""
        if self._first is None or not self._marks:
            return None
        done, wall = self._marks[-1]
        if len(self._marks) > 1:
            begin = self._marks[0][0]
            half = bisect_right(self._marks, ((begin + done) / 2, float("inf"))) - 1
            start = self._marks[max(half, 0) if len(self._marks) > FEW else 0]
            gone, took = done - start[0], wall - start[1]
        else:
            gone, took = done - self._first[0], wall - self._first[1]
            shorter = self._steps[:-1]
            if shorter and self._first_measures < self._measures:
                # The first row is a part of this period, and took as long as the others, had nothing to be made ready.
                gone += statistics.median(step for step, _ in shorter)
                took += statistics.median(seconds for _, seconds in shorter)
        if not gone > 0:
            return None
        return max(wall + took / gone * (self.total - done) - self._last[1] - since, 0.0)
