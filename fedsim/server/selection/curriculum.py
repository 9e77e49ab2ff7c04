"""Client curriculum: first the clients whose examples the model finds easy, then more and more of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.core.pacing import Linear, Schedule
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids
from fedsim.server.selection.size import FixedSize


@options
class ClientCurriculum(FixedSize):
    """Every client of a pool once, in random order, m at a time; then all are scored anew, and there is another pool.

        score_i = mean loss of client i's examples under the current model
        pool = the first n(u) free clients in order of their scores, u = clients selected so far

    n(u) is `pacing` with N clients for items and rounds * m for steps, so that from u = a rounds m on everybody is in.
    The last selection of a pool may be of fewer than m clients. To be scored the model goes to all clients that are
    free and 4 bytes come back from each: where n(u) are not fewer than them, or in random order, nobody is asked, for
    it would change nothing. O(N).

    Clients that score alike are in random order; who did not answer, or not with a number, is the last, in descending
    order the first.

    Who is not free when clients are scored is not in the pool, which is filled up with those who come next. Who is not
    free when its turn has come is passed over, and may be selected as long as others of the pool are left; then there
    is another pool. In an asynchronous run a pool is made of those who are not at work; selections fill up what is
    missing, and where a pool ends with fewer, the next one begins at the next selection.

    Vahidian et al. 2023, "When Do Curricula Work in Federated Learning?", client curriculum; their code scores all
    clients after each pool, even when all are in.
    """

    rounds: PositiveInt
    """How many the run is to have, or, where rounds are not of m clients, how many times m clients it is to select in
    all; later everybody stays in.
    """
    order: Literal["curriculum", "anti", "random"] = "curriculum"
    """Of the scores: ascending (curriculum), descending (anti), or none, at random."""
    pacing: Schedule = Linear()
    """n(u), how many clients are in after u selections."""
    score_examples: PositiveInt | None = None
    """On how many examples of each client its loss is measured, chosen at random. Not given: on all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == "random" and self.score_examples is not None:
            raise InputError(
                "score_examples", self.score_examples, 'nobody is asked with order = "random"; leave it out'
            )

    def least(self, population: int) -> int:  # noqa: ARG002
        """One: a pool ends with those who are left."""
        return 1

    def start(self, sizes: Tensor) -> SelectorState:
        """Nobody has been selected: `selected`, []; the pool is empty: `pool`, int64 [p], who is left, next first."""
        nobody = torch.zeros(0, dtype=torch.int64)
        return {**super().start(sizes), "selected": torch.zeros((), dtype=torch.int64), "pool": nobody}

    def candidates(self, state: SelectorState, turn: Turn) -> Tensor | None:
        """See `Selector`."""
        unasked = self.order == "random" or self._next(state, turn).size or self._room(state, turn) >= turn.free.count
        return None if unasked else torch.from_numpy(np.flatnonzero(turn.free.mask))

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:
        """See `Selector`. The pool has been asked for where it is empty; it may hold fewer than are wanted."""
        drawn = {**state, "selections": state["selections"] + 1}
        if not self._next(state, turn).size:
            drawn["pool"] = torch.from_numpy(self._pool(state, turn, scores))
        chosen = self.choose(drawn, turn, None)
        left = drawn["pool"][~np.isin(drawn["pool"], chosen)]
        return torch.from_numpy(chosen), {**drawn, "selected": state["selected"] + len(chosen), "pool": left}

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:  # noqa: ARG002
        """Take the next of the pool: at most `wanted`, ascending."""
        return np.sort(self._next(state, turn)[: turn.wanted])

    def _next(self, state: SelectorState, turn: Turn) -> Ids:
        """Who of the pool is free, in the order of their turns."""
        pool: Ids = state["pool"].numpy()
        return pool[turn.free.mask[pool]]

    def _room(self, state: SelectorState, turn: Turn) -> int:
        """n(u), how many clients are in."""
        population = len(turn.free.mask)
        return self.pacing.items(int(state["selected"]), self.rounds * self.of(population), population)

    def _pool(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:
        """The free clients that are in, in random order."""
        draws, free, room = Draws.of(state, turn), np.flatnonzero(turn.free.mask), self._room(state, turn)
        order = draws.permutation("selection/order", len(free))
        if self.order != "random" and room < len(free):
            if scores is None:
                raise ValueError("the candidates have not been asked for their losses")
            found = scores.numpy()[order]
            unknown = np.isnan(found)
            keys = (-found, ~unknown) if self.order == "anti" else (found, unknown)
            order = order[np.lexsort(keys)]
        pool = free[order[:room]]
        return pool[draws.permutation("selection/pool", len(pool))]
