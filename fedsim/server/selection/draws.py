"""How clients are drawn: evenly, or in proportion to a weight; without replacement, by named draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.messages import Free
from fedsim.server.selection.base import SelectorState, Turn

Ids = NDArray[np.int64]
OWNER = torch.tensor([SERVER])


@dataclass(frozen=True)
class Draws:
    """What one selection draws: numbers named by a purpose, the round, and how many selections were before it."""

    streams: Streams
    round: int
    selections: int

    @staticmethod
    def of(state: SelectorState, turn: Turn) -> Draws:
        """The draws of the selection that is due."""
        return Draws(turn.streams, turn.round, int(state["selections"]))

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """Numbers in [0, 1): float64 [count]."""
        drawn = self.streams.uniform(
            purpose, OWNER, (count,), turn=self.round, step=self.selections, dtype=torch.float64
        )
        return drawn[0].numpy()

    def integers(self, purpose: str, count: int, high: int) -> Ids:
        """Numbers in [0, high): int64 [count]. A longer draw begins with the shorter one."""
        return self.streams.integers(purpose, OWNER, (count,), high, turn=self.round, step=self.selections)[0].numpy()

    def permutation(self, purpose: str, size: int) -> Ids:
        """An order of 0 .. size-1: int64 [size]."""
        return self.streams.permutation(purpose, OWNER, size, turn=self.round, step=self.selections)[0].numpy()


def free_where(mask: NDArray[np.bool_]) -> Free:
    """Those of a mask [N], counted."""
    return Free(mask, int(np.count_nonzero(mask)))


def first_distinct(drawn: Ids, count: int) -> Ids:
    """Take the first `count` different numbers of `drawn`, in their order, or fewer when there are not as many."""
    _, places = np.unique(drawn, return_index=True)
    return drawn[np.sort(places)[:count]]


def smallest(values: NDArray[np.float64] | Ids, count: int) -> Ids:
    """Places of the `count` smallest, ties to the first: int64 [count], from the smallest on; O(n)."""
    if count < len(values):
        eligible = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    else:
        eligible = np.arange(len(values))
    return eligible[np.argsort(values[eligible], kind="stable")[:count]]


def evenly(draws: Draws, purpose: str, free: Free, wanted: int) -> Ids:
    """Choose `wanted` of those free, at most all but one, each set equally likely: ids, ascending.

    Clients are drawn with replacement and the first different ones that are free are taken, which costs O(wanted)
    whatever the population; where fewer than a quarter are free, they are listed first, and where more than a quarter
    of them is wanted, they are permuted.
    """
    population = len(free.mask)
    listed = None if 4 * free.count >= population and 4 * wanted <= free.count else np.flatnonzero(free.mask)
    if listed is not None and 4 * wanted > free.count:
        return np.sort(listed[draws.permutation(purpose, free.count)[:wanted]])
    chosen, count = np.empty(0, dtype=np.int64), 2 * wanted * population // free.count + 16
    while len(chosen) < wanted:
        if listed is None:
            drawn = draws.integers(purpose, count, population)
            chosen = first_distinct(drawn[free.mask[drawn]], wanted)
        else:
            chosen = first_distinct(listed[draws.integers(purpose, count, free.count)], wanted)
        count *= 2
    return np.sort(chosen)


def in_proportion(draws: Draws, purpose: str, ends: NDArray[np.float64] | Ids, free: Free, wanted: int) -> Ids:
    """Choose `wanted` of those free, one after another, each of those left with probability proportional to its weight.

    ends: cumulative weights [N]. Gives ids, ascending; who has no weight comes after all others, in order of id.

    Clients are drawn with replacement through the cumulative weights, and the first different ones that are free are
    taken: that is the same law, in O(wanted log N). Whatever a bounded number of draws leaves open, because a few
    clients hold almost all weight or almost all are wanted, is settled in O(N): the smallest of E_i / weight_i with E_i
    standard exponential come next (Efraimidis and Spirakis 2006). Draws that repeat a client say nothing about who
    comes next, so stopping early does not change the law.
    """
    chosen = np.empty(0, dtype=np.int64)
    if 4 * wanted <= free.count:
        places = (draws.uniform(purpose, 4 * wanted + 32) * ends[-1]).astype(ends.dtype)
        # NumPy's search does not wake threads for a few hundred numbers, which takes ten times as long.
        drawn = np.searchsorted(ends, places, side="right")
        # A product that is rounded up to the whole weight lies behind the last client.
        drawn = drawn[drawn < len(ends)]
        chosen = first_distinct(drawn[free.mask[drawn]], wanted)
    if len(chosen) < wanted:
        left = free.mask.copy()
        left[chosen] = False
        rest = np.flatnonzero(left)
        weights = np.diff(ends, prepend=ends.dtype.type(0))[rest]
        # 1 - u is in (0, 1], so the logarithm is finite.
        waits = -np.log1p(-draws.uniform(f"{purpose}/rest", len(rest)))
        waits = np.divide(waits, weights, out=np.full(len(rest), np.inf), where=weights > 0)
        chosen = np.concatenate((chosen, rest[smallest(waits, wanted - len(chosen))]))
    return np.sort(chosen)
