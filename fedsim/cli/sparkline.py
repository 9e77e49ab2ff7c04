"""Curves in a line of letters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-=^"
"""Lower and higher letters for an encoding that has no blocks, as code pages of Windows."""
MOST = 512
"""Values of a curve that are kept; of more, means of two, four and so on."""


class Curve:
    """Values as they come, of which so many are kept as anybody can see."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._each = 1
        self._next: list[float] = []

    def add(self, value: float) -> None:
        """Take one more; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._next.append(value)
        if len(self._next) == self._each:
            self.values.append(_mean(self._next))
            self._next = []
        if len(self.values) == MOST:
            self.values = [_mean(self.values[place : place + 2]) for place in range(0, MOST, 2)]
            self._each *= 2


def sparkline(values: Sequence[float], width: int, encoding: str) -> str:
    """Draw finite values in at most so many letters, from the lowest to the highest; of more values their means."""
    letters = letters_of(encoding)
    count = min(len(values), width)
    cuts = [place * len(values) // count for place in range(count + 1)] if count else []
    means = [_mean(values[begin:end]) for begin, end in pairwise(cuts)]
    if not means:
        return ""
    low, high = min(means), max(means)
    if not high > low:
        return letters[len(letters) // 2] * count
    # Halves first, since the difference of two numbers may be none.
    shares = [(mean / 2 - low / 2) / (high / 2 - low / 2) for mean in means]
    return "".join(letters[min(int(share * len(letters)), len(letters) - 1)] for share in shares)


def letters_of(encoding: str) -> str:
    """The letters that an encoding has for curves."""
    try:
        BLOCKS.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return PLAIN
    return BLOCKS


def _mean(values: Sequence[float]) -> float:
    return math.fsum(value / len(values) for value in values)
