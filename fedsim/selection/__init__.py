"""Selectors: which of the free clients work next.

A selector is pure, as strategies are: its state is a dictionary of tensors that goes in and comes out. Its
draws are named by the round and by how often it has selected, so that it goes on where a snapshot left it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from fedsim.streams import Streams

SelectorState = dict[str, Tensor]


class Selector(Protocol):
    """What a plug-in of the group `selectors` offers."""

    def check(self, population: int) -> None:
        """Raise `InputError` when the options ask for more clients than there are."""
        ...

    def start(self, sizes: Tensor) -> SelectorState:
        """Give the state before the first selection. sizes: examples of each client, int64 [N]."""
        ...

    def select(
        self,
        state: SelectorState,
        streams: Streams,
        round: int,  # noqa: A002
        population: int,
        busy: Collection[int],
    ) -> tuple[Tensor, SelectorState]:
        """Choose clients that have examples and are not busy: ids, int64 [k] ascending, and the new state.

        When fewer are free than were asked for, all of those. busy: best a set, which is quick to search.
        """
        ...

    def observe(self, state: SelectorState, replies: object) -> SelectorState:
        """Learn from the replies to the last selection: the new state."""
        ...
