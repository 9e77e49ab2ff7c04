"""Uniform selection: every free client is equally likely, without replacement."""

from __future__ import annotations

from torch import Tensor

from fedsim.core.options import options
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids, evenly
from fedsim.server.selection.size import FixedSize


@options
class Uniform(FixedSize):
    """As many of the free clients as wanted, each set of that many equally likely.

    A few of many cost O(wanted), whatever the population; otherwise O(N).
    """

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:  # noqa: ARG002
        """See `FixedSize`."""
        return evenly(Draws.of(state, turn), "selection", turn.free, turn.wanted)
