"""Fastest first: clients whose last reply took the shortest time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.core.options import options
from fedsim.exchange.messages import Replies
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids, evenly, free_where, smallest
from fedsim.server.selection.size import FixedSize, noted

UNTRIED, UNANSWERED = -1, 2**63 - 1


@options
class Fastest(FixedSize):
    """Who has never been selected comes first, then who was fastest.

    Of the former each set is equally likely. The others are ordered by the duration of their last reply, ties by id;
    who has been selected and has never replied is the last. O(N).
    """

    def start(self, sizes: Tensor) -> SelectorState:
        """Nobody has been tried: `durations`, int64 [N], ticks."""
        return {**super().start(sizes), "durations": torch.full((len(sizes),), UNTRIED)}

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:
        """See `Selector`."""
        chosen, after = super().select(state, turn, scores)
        durations = state["durations"]
        tried = chosen[durations[chosen] == UNTRIED]
        if len(tried):
            after["durations"] = noted(durations, tried, torch.full_like(tried, UNANSWERED))
        return chosen, after

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:  # noqa: ARG002
        """See `FixedSize`."""
        durations = state["durations"].numpy()
        untried = free_where(turn.free.mask & (durations == UNTRIED))
        if untried.count > turn.wanted:
            return evenly(Draws.of(state, turn), "selection/untried", untried, turn.wanted)
        # The untried have the smallest number of all.
        free = np.flatnonzero(turn.free.mask)
        return np.sort(free[smallest(durations[free], turn.wanted)])

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        """Note how long they took."""
        return {**state, "durations": noted(state["durations"], replies.clients, replies.durations)}
