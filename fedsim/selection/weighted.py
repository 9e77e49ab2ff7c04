"""Selection in proportion to the number of examples, without replacement."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from fedsim.options import options
from fedsim.selection import SelectorState
from fedsim.selection.size import Size, first_distinct, quick_to_search, without
from fedsim.streams import SERVER, Streams


@options
class Weighted(Size):
    """One client after another, each of those left with probability proportional to its examples.

    Clients are drawn with replacement through the cumulative sizes, and the first distinct free ones are
    taken: that is the same law, in O(count log N) after an O(N) start. Whatever a bounded number of draws
    leaves open, because a few clients hold almost all examples or almost all are wanted, is settled in O(N):
    the smallest of E_i / size_i with E_i standard exponential come next (Efraimidis and Spirakis 2006). Draws
    that repeat a client say nothing about who comes next, so stopping early does not change the law.
    """

    def start(self, sizes: Tensor) -> SelectorState:
        """Add up the sizes."""
        ends = sizes.to(device="cpu", dtype=torch.int64).cumsum(dim=0)
        useful = (sizes > 0).sum().cpu()
        return {"selections": torch.zeros((), dtype=torch.int64), "ends": ends, "useful": useful}

    def select(
        self,
        state: SelectorState,
        streams: Streams,
        round: int,  # noqa: A002
        population: int,
        busy: Collection[int],
    ) -> tuple[Tensor, SelectorState]:
        """See `Selector`."""
        ends, turn, useful = state["ends"], int(state["selections"]), int(state["useful"])
        wanted = self.of(useful)
        owner = torch.tensor([SERVER])
        chosen: list[int] = []
        if 4 * wanted <= useful - len(busy):
            draws = 4 * wanted + 32
            places = streams.uniform("selection", owner, (draws,), round=round, step=turn, dtype=torch.float64)[0]
            examples = (places * int(ends[-1])).to(torch.int64)
            # NumPy's search does not wake threads for a few hundred numbers, which takes ten times as long.
            drawn = np.searchsorted(ends.numpy(), examples.numpy(), side="right")
            chosen = first_distinct(drawn.tolist(), quick_to_search(busy), wanted)
        taken = torch.tensor(chosen, dtype=torch.int64)
        if len(taken) < wanted:
            sizes = torch.diff(ends, prepend=ends.new_zeros(1))
            rest = without(without(torch.arange(population)[sizes > 0], busy), chosen)
            words = streams.uniform(
                "selection/rest", owner, (population,), round=round, step=turn, dtype=torch.float64
            )[0]
            # 1 - u is in (0, 1], so the logarithm is finite.
            waits = -torch.log1p(-words[rest]) / sizes[rest]
            taken = torch.cat((taken, rest[waits.argsort(stable=True)[: wanted - len(taken)]]))
        return taken.sort().values, {**state, "selections": state["selections"] + 1}

    def observe(self, state: SelectorState, replies: object) -> SelectorState:  # noqa: ARG002
        """Learn nothing."""
        return state
