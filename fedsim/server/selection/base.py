"""Selectors: which of the free clients work next.

A selector is pure, as strategies are: its state is a dictionary of tensors that goes in and comes out. Its
draws are named by the round and by how often it has selected, so that it goes on where a snapshot left it.

In a synchronous run a selection takes `of(N)` clients; in an asynchronous one it fills up what is missing until that
many are at work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.plugins import refuse_misspelt
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Free, Replies

SelectorState = dict[str, Tensor]


@dataclass(frozen=True)
class Turn:
    """The situation in which clients are selected.

    wanted: how many are to start, at least one. round: from 0. streams: the run's named draws.
    """

    streams: Streams
    round: int
    free: Free
    wanted: int


class Selector(ABC):
    """Which of the free clients work next.

    reports: names that the clients' replies are to carry for it beside what their algorithm sends: `utility`, [k, 1],
    the root of the mean squared loss of the client's examples under the model that it was sent (4 bytes up).
    of_sizes: names in its state that `start` makes of the numbers of examples, and that nothing changes later.
    synchronous: it goes with rounds that wait for all who were chosen, and with no others.
    """

    reports: ClassVar[frozenset[str]] = frozenset()
    of_sizes: ClassVar[frozenset[str]] = frozenset()
    synchronous: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Selector)

    @property
    def score_examples(self) -> int | None:
        """On how many of a candidate's examples its loss is measured; None: on all."""
        return None

    def check(self, population: int) -> None:  # noqa: B027
        """Raise `InputError` when the options ask for more clients than there are."""

    @abstractmethod
    def of(self, population: int) -> int:
        """How many clients of this population work at once."""

    def least(self, population: int) -> int:
        """How many of them a selection takes at least, where so many are free; 0: perhaps nobody."""
        return self.of(population)

    def expected(self, population: int) -> float:
        """How many of them a selection takes on average, where all are free."""
        return float(self.of(population))

    def start(self, sizes: Tensor) -> SelectorState:  # noqa: ARG002
        """Give the state before the first selection. sizes: examples of each client, int64 [N].

        By default the number of selections so far, by which their draws are named.
        """
        return {"selections": torch.zeros((), dtype=torch.int64)}

    def resize(self, state: SelectorState, sizes: Tensor) -> SelectorState:
        """Give the state where there are more clients than before, or their numbers of examples are better known.

        sizes: as they are now, int64 [N]; clients of before keep their numbers, and new ones follow. Before the first
        selection it comes to what `start` gives. By default new clients have what `start` gives them; what `of_sizes`
        names comes anew, and everything else stays. Columns of clients are known by their length, which is N in a state
        that begins: who remembers the clients otherwise, such as a queue of all, says here what becomes of it.
        """
        begun = self.start(sizes)
        return {
            name: begun[name] if name in self.of_sizes else _over(begun[name], kept) for name, kept in state.items()
        }

    def candidates(self, state: SelectorState, turn: Turn) -> Tensor | None:  # noqa: ARG002
        """Whose loss under the current model to ask for first: free clients, int64 [m] ascending; None: nobody's."""
        return None

    @abstractmethod
    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:
        """Choose free clients: ids, int64 [k] ascending, and the new state; all that are free where they are too few.

        A selector may choose fewer than are wanted, but as many as it says it takes at least. scores: float64 [m], the
        mean losses of those candidates, NaN where none came; None if nobody was asked.
        """

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:  # noqa: ARG002
        """Learn from a window's replies: the new state; by default nothing is learnt."""
        return state


def _over(begun: Tensor, kept: Tensor) -> Tensor:
    """What is kept, in the first places of what begins where that is larger."""
    if begun.dim() != kept.dim() or any(most < had for most, had in zip(begun.shape, kept.shape, strict=True)):
        return kept
    whole = begun.clone()
    whole[tuple(slice(had) for had in kept.shape)] = kept
    return whole
