"""Who is late: a chain that makes workers slow for a while, and the bursts that a code is designed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.core.errors import InputError

Mask = NDArray[np.bool_]


def gilbert_elliott(chances: NDArray[np.float64], enter: float, leave: float) -> Mask:
    """Who is slow in which of R rounds, bool [R, n]: each worker by a chain of its own.

    In each round a worker that is not slow becomes so with probability `enter`, and one that is ends it with
    probability `leave`; before the first round each is slow with its stationary probability enter / (enter + leave).
    chances: uniform numbers [R + 1, n], the first for that. Gilbert 1960, Elliott 1963.
    """
    slow = chances[0] < enter / (enter + leave)
    found = np.empty((len(chances) - 1, chances.shape[1]), dtype=bool)
    for number, chance in enumerate(chances[1:]):
        slow = np.where(slow, chance >= leave, chance < enter)
        found[number] = slow
    return found


@dataclass(frozen=True, eq=False)
class Needs:
    """Whom a round needs: all of `needed`, and all but `most` of those who are not `excused`; both bool [n]."""

    needed: Mask
    excused: Mask
    most: int

    def allow(self, late: Mask) -> bool:
        """Whether these may be late, bool [n]."""
        return not bool((late & self.needed).any()) and int((late & ~self.excused).sum()) <= self.most


@dataclass(frozen=True)
class Bursts:
    """The (B, W, lambda) model of stragglers.

    Among any `window` rounds in a row at most `most` workers are late, each within `burst` rounds in a row. Krishnan et
    al. 2023, "Sequential gradient coding for straggler mitigation", section 2.
    """

    burst: int
    window: int
    most: int

    @classmethod
    def held(cls, workers: int, burst: int, window: int, most: int) -> Bursts:
        """InputError: these are no bursts of so many workers."""
        if not 0 <= most <= workers:
            raise InputError("most", most, f"of {workers} workers 0 to {workers} may be late")
        if burst < 1:
            raise InputError("burst", burst, "a burst takes at least 1 round")
        if window <= burst:
            raise InputError("window", window, f"a window is longer than a burst: more than {burst}")
        return cls(burst, window, most)

    def needs(self, earlier: Sequence[Mask], workers: int) -> Needs:
        """Whom a round needs. earlier: who was late in the rounds before it, bool [n] each, the last one last.

        Who was late at least B rounds ago within the window must not be late again; who was since then, may; and of
        others as many as make up lambda.
        """
        nobody = np.zeros(workers, dtype=bool)
        recent = list(earlier)[-(self.window - 1) :] if self.window > 1 else []
        long_ago = recent[: max(0, len(recent) - self.burst + 1)]
        late = np.logical_or.reduce([nobody, *recent])
        return Needs(np.logical_or.reduce([nobody, *long_ago]), late, self.most - int(late.sum()))
