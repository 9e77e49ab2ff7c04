"""Who is late: a chain that makes workers slow for a while, and the bursts that a code is designed for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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


def bursty(earlier: Sequence[Mask], now: Mask, burst: int, window: int, most: int) -> bool:
    """Whether the stragglers of this round, bool [n], go with those of the rounds before, the last one last.

    The (B, W, lambda) model: among any W rounds in a row at most lambda workers are late, each within B rounds in a
    row. Krishnan et al. 2023, "Sequential gradient coding for straggler mitigation", section 2.
    """
    recent = list(earlier)[-(window - 1) :] if window > 1 else []
    if int(np.logical_or.reduce([now, *recent]).sum()) > most:
        return False
    long_ago = recent[: max(0, len(recent) - burst + 1)]
    return not (bool(long_ago) and bool((now & np.logical_or.reduce(long_ago)).any()))
