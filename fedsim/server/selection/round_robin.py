"""Round robin: one client after the other, in order of their numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.core.options import options
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Ids
from fedsim.server.selection.size import FixedSize


@options
class RoundRobin(FixedSize):
    """The next free clients in ascending order, from where the last selection stopped; after the last comes the first.

    Who is not free is passed over until the next lap. Nothing is drawn. O(N).
    """

    def start(self, sizes: Tensor) -> SelectorState:
        """Begin with client 0: `next`, []."""
        return {**super().start(sizes), "next": torch.zeros((), dtype=torch.int64)}

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:
        """See `Selector`."""
        chosen, after = super().select(state, turn, scores)
        wrapped = chosen[chosen < state["next"]]
        if len(chosen):
            after["next"] = (wrapped if len(wrapped) else chosen)[-1] + 1
        return chosen, after

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:  # noqa: ARG002
        """See `FixedSize`."""
        free = np.flatnonzero(turn.free.mask)
        ahead = np.searchsorted(free, int(state["next"]))
        return np.sort(np.concatenate((free[ahead:], free[:ahead]))[: turn.wanted])
