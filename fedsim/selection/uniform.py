"""Uniform selection: every free client that has examples is equally likely, without replacement."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fedsim.options import options
from fedsim.selection import SelectorState
from fedsim.selection.size import Size, first_distinct, quick_to_search, without
from fedsim.streams import SERVER, Streams


@options
class Uniform(Size):
    """`count` of the free clients, each set of that many equally likely.

    Clients are drawn with replacement, and the first distinct free ones are taken, which costs O(count)
    whatever the population; when more than a quarter of the free ones is wanted, all are permuted instead.
    """

    def start(self, sizes: Tensor) -> SelectorState:
        """Note which clients have examples, when some have none."""
        state = {"selections": torch.zeros((), dtype=torch.int64)}
        useful = sizes > 0
        return state if bool(useful.all()) else {**state, "clients": useful.nonzero().flatten().cpu()}

    def select(
        self,
        state: SelectorState,
        streams: Streams,
        round: int,  # noqa: A002
        population: int,
        busy: Collection[int],
    ) -> tuple[Tensor, SelectorState]:
        """See `Selector`."""
        clients, turn = state.get("clients"), int(state["selections"])
        useful = population if clients is None else len(clients)
        wanted = self.of(useful)
        owner = torch.tensor([SERVER])
        if 4 * wanted <= useful - len(busy):
            busy, draws = quick_to_search(busy), 2 * wanted + 16
            chosen: list[int] = []
            while len(chosen) < wanted:
                # A longer draw begins with the shorter one.
                drawn = streams.integers("selection", owner, (draws,), useful, round=round, step=turn)[0]
                drawn = drawn if clients is None else clients[drawn]
                chosen = first_distinct(drawn.tolist(), busy, wanted)
                draws *= 2
            taken = torch.tensor(chosen, dtype=torch.int64)
        else:
            taken = without(torch.arange(population) if clients is None else clients, busy)
            if len(taken) > wanted:
                order = streams.permutation("selection", owner, len(taken), round=round, step=turn)[0]
                taken = taken[order[:wanted]]
        return taken.sort().values, {**state, "selections": state["selections"] + 1}

    def observe(self, state: SelectorState, replies: object) -> SelectorState:  # noqa: ARG002
        """Learn nothing."""
        return state
