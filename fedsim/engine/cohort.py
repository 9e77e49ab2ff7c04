"""A cohort: the clients that are executed together, as a client algorithm sees them.

Everything has a leading axis of clients; an algorithm never loops over them and never learns who they are beyond the
ids that its named draws need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.engine.assignment import Assignment
from fedsim.engine.batches import Plan, plan_batches, steps_of
from fedsim.engine.dropout import Draw
from fedsim.engine.network import Batch, Network
from fedsim.engine.stack import Stack
from fedsim.exchange import BrokenPromiseError, Scalar
from fedsim.streams import Index, Streams

if TYPE_CHECKING:
    from fedsim.problems.supervised import Supervised

GATHER = 2**22
"""How many input numbers are gathered from the data at once: few calls, and they stay in the cache."""


class Cohort:
    """C clients of a supervised problem at work.

    clients: int64 [C], sorted by local steps, longest first. examples: int64 [C]. state: what they remember,
    [C, ...] by name; `keep` replaces it. config: of their order. streams: named draws. draws: the number under which
    each of them draws, one or int64 [C].
    """

    def __init__(
        self,
        problem: Supervised,
        network: Network,
        streams: Streams,
        assignment: Assignment,
        state: Mapping[str, Tensor],
    ) -> None:
        self._problem, self.network, self.streams, self._assignment = problem, network, streams, assignment
        self.clients, self.state = assignment.clients, dict(state)
        self.examples = problem.examples[self.clients]
        self.draws: Index = assignment.draws
        self.steps_taken = torch.zeros_like(self.clients)

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def round(self) -> int:
        """The round of the order, from 0; for algorithms that are not the same in every round."""
        rounds = self._assignment.rounds
        if len(rounds) > 1:
            raise BrokenPromiseError(f"an algorithm that is the same in every round asked for it: {sorted(rounds)}")
        return next(iter(rounds))

    @property
    def config(self) -> Mapping[str, Scalar]:
        """Plain settings that the server sent."""
        return self._assignment.config

    def received(self, name: str) -> Tensor:
        """A vector of the order's payload; broadcasts against [C, d]."""
        return self._assignment.received(name)

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
            draws=self.draws,
            dtype=problem.dtype,
        )
        self.steps_taken = self.steps_taken + steps_of(self.examples, epochs, steps, batch_size)
        yield from self._gather(_at_least_two_wide(plan))

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
                    Draw(self.streams, self.clients[:count], first(self.draws, count), number),
                )
            step = last


def _at_least_two_wide(plan: Plan) -> Plan:
    """The plan with padding where batches have one example.

    Of a single client's single row, products would be made by another kernel than of several clients' rows, with other
    last bits.
    """
    if plan.index.shape[1] != 1:
        return plan
    weight = torch.cat((plan.weight, torch.zeros_like(plan.weight)), dim=1)
    return replace(plan, index=plan.index.repeat(1, 2), weight=weight)


def first(index: Index, count: int) -> Index:
    """The numbers of the first `count` clients of a cohort."""
    return index[:count] if isinstance(index, Tensor) else index
