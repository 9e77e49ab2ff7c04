"""Poisson selection: a coin for each client, so that nobody's part depends on who else takes part."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.server.selection.base import Selector, SelectorState, Turn
from fedsim.server.selection.draws import Draws


@options
class Poisson(Selector):
    """Each free client with probability q, by a coin of its own; a round may have any number of clients, and none.

    That is the sampling which accounts of differential privacy assume. O(N).
    """

    fraction: Annotated[float, Field(gt=0, le=1)]
    """q, the chance of a client in a round in which it may be chosen."""
    groups: PositiveInt = 1
    """Client c may be chosen in every groups-th round only, from round c mod groups on."""

    synchronous: ClassVar[bool] = True

    def check(self, population: int) -> None:
        """Refuse groups of nobody."""
        if self.groups > population:
            raise InputError("selection.groups", self.groups, f"there are only {population} clients; lower it")

    def of(self, population: int) -> int:
        """All may be chosen."""
        return population

    def least(self, population: int) -> int:  # noqa: ARG002
        """Perhaps nobody."""
        return 0

    def expected(self, population: int) -> float:
        """Q N over the groups."""
        return self.fraction * population / self.groups

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:  # noqa: ARG002
        """See `Selector`. Where fewer are wanted, those of the lowest coins."""
        coins = Draws.of(state, turn).uniform("selection", len(turn.free.mask))
        chosen = turn.free.mask & (coins < self.fraction)
        chosen &= np.arange(len(chosen)) % self.groups == turn.round % self.groups
        ids = np.flatnonzero(chosen)
        if len(ids) > turn.wanted:
            ids = np.sort(ids[np.argsort(coins[ids], kind="stable")[: turn.wanted]])
        return torch.from_numpy(ids), {**state, "selections": state["selections"] + 1}
