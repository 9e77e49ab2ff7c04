"""A cohort: the clients that are executed together, as a client algorithm sees them.

Everything has a leading axis of clients; an algorithm never loops over them and never learns who they are beyond the
ids that its named draws need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.engine.batches import Plan, plan_batches, steps_of
from fedsim.engine.dropout import Draw
from fedsim.engine.network import Batch, Network
from fedsim.engine.stack import Stack
from fedsim.exchange import Orders, Scalar
from fedsim.streams import Streams

if TYPE_CHECKING:
    from fedsim.problems.supervised import Supervised

GATHER = 2**22
"""How many input numbers are gathered from the data at once: few calls, and they stay in the cache."""


class Cohort:
    """C clients of a supervised problem at work on one order.

    clients: int64 [C], sorted by local steps, longest first. examples: int64 [C]. state: what they remember,
    [C, ...] by name; `keep` replaces it. round, config: of the order. streams: named draws.
    """

    def __init__(
        self,
        problem: Supervised,
        network: Network,
        streams: Streams,
        orders: Orders,
        clients: Tensor,
        state: Mapping[str, Tensor],
    ) -> None:
        self._problem, self.network, self.streams, self._orders = problem, network, streams, orders
        self.clients, self.state = clients, dict(state)
        self.examples = problem.examples[clients]
        self.steps_taken = torch.zeros_like(clients)

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def round(self) -> int:
        """The round of the order, from 0."""
        return self._orders.round

    @property
    def config(self) -> Mapping[str, Scalar]:
        """Plain settings that the server sent."""
        return self._orders.config

    def received(self, name: str) -> Tensor:
        """A vector of the order's payload; broadcasts against [C, d]."""
        return self._orders.payload[name]

    def stack(self, rows: Tensor) -> Stack:
        """A vector [d], or rows [C, d], as a stack of C rows, copied."""
        return self.network.layout.stack(rows, len(self))

    def keep(self, **state: Tensor) -> None:
        """Remember rows [C, ...] until these clients take part again."""
        self.state.update(state)

    def batches(
        self, *, epochs: int | None = None, steps: int | None = None, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """The mini-batches of E epochs, or of so many independent steps; see `fedsim.engine.batches`.

        Batch s is for the first len(batch) rows of the cohort, those that have more than s steps to take.
        """
        problem = self._problem
        plan = plan_batches(
            self.streams,
            self.clients,
            problem.order,
            problem.begin[self.clients],
            self.examples,
            epochs=epochs,
            steps=steps,
            batch_size=min(batch_size or problem.largest, problem.largest),
            round=self.round,
            dtype=problem.dtype,
        )
        self.steps_taken = self.steps_taken + steps_of(self.examples, epochs, steps, batch_size)
        yield from self._gather(plan)

    def _gather(self, plan: Plan) -> Iterator[Batch]:
        x, y, shape = self._problem.x, self._problem.y, plan.index.shape
        numbers = max(1, x[0].numel() * shape[1])
        step = 0
        while step < len(plan.active):
            last, first_row = step, plan.start[step]
            while last < len(plan.active) and (
                last == step or (plan.start[last] + plan.active[last] - first_row) * numbers <= GATHER
            ):
                last += 1
            end_row = plan.start[last - 1] + plan.active[last - 1]
            index = plan.index[first_row:end_row]
            xs = x.index_select(0, index.view(-1)).view(*index.shape, *x.shape[1:])
            ys = y.index_select(0, index.view(-1)).view(index.shape)
            for number in range(step, last):
                begin, count = plan.start[number], plan.active[number]
                rows = slice(begin - first_row, begin - first_row + count)
                yield Batch(
                    xs[rows],
                    ys[rows],
                    plan.weight[begin : begin + count],
                    Draw(self.streams, self.clients[:count], self.round, number),
                )
            step = last
