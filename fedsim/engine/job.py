"""Jobs, orders that can be executed together, and what comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError
from fedsim.core.graph import storable
from fedsim.exchange.messages import Cost, Order, Scalar, Update


@storable("job")
@dataclass(frozen=True)
class Job:
    """C clients and the order of each; the orders differ at most in their round, draws and the payload's numbers.

    orders: at least one. origin: int64 [C], which of them is whose; None: all have the first. clients: int64 [C].
    cost: as the algorithm has declared it. encoded: bytes of one reply, at most, when transforms have encoded it.
    """

    orders: tuple[Order, ...]
    origin: Tensor | None
    clients: Tensor
    cost: Cost
    encoded: int

    def __getitem__(self, rows: Tensor) -> Job:
        """The part of the clients in these rows, int64 [k]."""
        effort = None if self.cost.effort is None else self.cost.effort[rows]
        return replace(
            self,
            origin=None if self.origin is None else self.origin[rows],
            clients=self.clients[rows],
            cost=replace(self.cost, steps=self.cost.steps[rows], effort=effort),
        )

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def action(self) -> str:
        """What the clients are to do."""
        return self.orders[0].action

    @property
    def config(self) -> Mapping[str, Scalar]:
        """Plain settings that the server sent."""
        return self.orders[0].config

    @property
    def turn(self) -> int | Tensor:
        """The number under which the clients draw: one, or int64 [C]."""
        if self.origin is None:
            return self.orders[0].turn
        return self._of_each([orders.turn for orders in self.orders])

    @property
    def rounds(self) -> frozenset[int]:
        """The rounds of the orders."""
        return frozenset(orders.round for orders in self.orders)

    def received(self, name: str) -> Tensor:
        """A vector of the payload, [...] if all were sent the same one, else [C, ...].

        BrokenPromiseError: none is called so.
        """
        sent = self.orders[0].payload
        if name not in sent:
            named = ", ".join(sent) or "nothing"
            raise BrokenPromiseError(f"a client asks for {name}, and the order to {self.action} sends {named}")
        if self.origin is None:
            return sent[name]
        used, index = torch.unique(self.origin, return_inverse=True)
        return torch.stack([self.orders[number].payload[name] for number in used.tolist()])[index]

    def _of_each(self, numbers: list[int]) -> Tensor:
        assert self.origin is not None
        return torch.tensor(numbers, device=self.origin.device)[self.origin]


@storable("job-result")
@dataclass(frozen=True, eq=False)
class JobResult:
    """What a job came to, in the order of its clients.

    payload, metrics: [C, ...] by name. finite: bool [C], whether all of a client's payload is. nbytes: int64 [C], what
    the payload took to cross. queries: int64 [C, 3], evaluations that each asked for, and those of them outside the
    method's published count, and that gave no finite value. said: of clients whose evaluations failed, what the
    first one said.
    """

    payload: dict[str, Tensor]
    metrics: dict[str, Tensor]
    finite: Tensor
    nbytes: Tensor
    queries: Tensor
    said: Mapping[int, str] = field(default_factory=dict)

    def row(self, number: int) -> JobResult:
        """What one of the clients did, C = 1."""
        own = slice(number, number + 1)
        payload, metrics = ({name: rows[own] for name, rows in named.items()} for named in (self.payload, self.metrics))
        return JobResult(payload, metrics, self.finite[own], self.nbytes[own], self.queries[own])

    @cached_property
    def asked(self) -> list[list[int]]:
        """The queries as plain numbers."""
        asked: list[list[int]] = self.queries.tolist()
        return asked

    @cached_property
    def crossed(self) -> list[int]:
        """The bytes as plain numbers."""
        crossed: list[int] = self.nbytes.tolist()
        return crossed

    @cached_property
    def sound(self) -> bool:
        """Whether all of them are finite."""
        return bool(self.finite.all())


@dataclass(frozen=True, eq=False)
class CohortResult:
    """What one cohort came to, in its own order. clients: int64 [k]. update: as the transforms leave it.

    state: what the clients are to remember, [k, ...] by name. finite: bool [k], whose payload is finite, and who got a
    value, where they have asked. nbytes, queries: as of `JobResult`, int64 [k] and [k, 3].
    said: as of `JobResult`, where it is known.
    """

    clients: Tensor
    update: Update
    state: dict[str, Tensor]
    finite: Tensor
    nbytes: Tensor
    queries: Tensor
    said: Mapping[int, str] = field(default_factory=dict)


def gathered(parts: Sequence[Mapping[str, Tensor]], back: Tensor) -> dict[str, Tensor]:
    """The parts' rows, one after the other, put back into the order of the clients: the first is row back[0] of them.

    Rows of a single part that are in order already are handed on as they are.
    """
    if not parts or not parts[0]:
        return {}
    order = torch.arange(len(back), device=back.device)
    if len(parts) == 1 and back.device.type == "cpu" and torch.equal(back, order):
        return dict(parts[0])
    place = torch.empty_like(back)
    place[back] = order
    places = torch.split(place, [len(next(iter(part.values()))) for part in parts])
    found = {}
    for name, first in parts[0].items():
        rows = found[name] = first.new_empty((len(back), *first.shape[1:]))
        for part, own in zip(parts, places, strict=True):
            rows[own] = part[name]
    return found
