"""Selection in proportion to the number of examples, without replacement."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.options import options
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids, in_proportion
from fedsim.server.selection.size import FixedSize


@options
class Weighted(FixedSize):
    """One client after another, each of those left with probability proportional to its examples.

    A few of many cost O(wanted log N) after an O(N) start; otherwise O(N).
    """

    of_sizes: ClassVar[frozenset[str]] = frozenset({"ends"})

    def start(self, sizes: Tensor) -> SelectorState:
        """Add up the sizes: `ends`, int64 [N]."""
        ends = sizes.to(device="cpu", dtype=torch.int64).cumsum(dim=0)
        return {"selections": torch.zeros((), dtype=torch.int64), "ends": ends}

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:  # noqa: ARG002
        """See `FixedSize`."""
        return in_proportion(Draws.of(state, turn), "selection", state["ends"].numpy(), turn.free, turn.wanted)
