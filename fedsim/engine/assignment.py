"""Work for clients: of several orders, those that can be executed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.core.graph import storable
from fedsim.exchange.messages import Order, Scalar, Size


@storable("job")
@dataclass(frozen=True)
class Assignment:
    """C clients and the order of each; the orders differ at most in their round, draws and the payload's numbers.

    orders: at least one. origin: int64 [C], which of them is whose; None: all have the first. clients: int64 [C].
    steps: int64 [C], the local steps that each has declared. reply: the vectors of one reply as its algorithm has
    declared them. encoded: bytes of these, at most, when transforms have encoded them. queries: evaluations that each
    has declared. effort: what each does beside, in local steps, float64 [C].
    """

    orders: tuple[Order, ...]
    origin: Tensor | None
    clients: Tensor
    steps: Tensor
    reply: Mapping[str, Size]
    encoded: int
    queries: int = 0
    effort: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Assignment:
        """The part of the clients in these rows, int64 [k]."""
        return replace(
            self,
            origin=None if self.origin is None else self.origin[rows],
            clients=self.clients[rows],
            steps=self.steps[rows],
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
    def draws(self) -> int | Tensor:
        """The number under which the clients draw: one, or int64 [C]."""
        if self.origin is None:
            return self.orders[0].draws
        return self._of_each([orders.draws for orders in self.orders])

    @property
    def rounds(self) -> frozenset[int]:
        """The rounds of the orders."""
        return frozenset(orders.round for orders in self.orders)

    def received(self, name: str) -> Tensor:
        """A vector of the payload, [...] if all were sent the same one, else [C, ...]."""
        if self.origin is None:
            return self.orders[0].payload[name]
        used, index = torch.unique(self.origin, return_inverse=True)
        sent = torch.stack([self.orders[number].payload[name] for number in used.tolist()])
        return sent[index]

    def _of_each(self, numbers: list[int]) -> Tensor:
        assert self.origin is not None
        return torch.tensor(numbers, device=self.origin.device)[self.origin]
