"""What crosses between server and clients: orders down, updates up, and windows that say when to look.

Nothing else crosses. A payload is a set of named tensors; its bytes are what the ledger counts. The configuration of
an order and the metrics of a reply are a few plain numbers beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedsim.aggregation import Aggregator, WeightedMean
from fedsim.errors import FedsimError

Scalar = bool | int | float | str
Weighting = Literal["examples", "uniform"]


@dataclass(frozen=True)
class Orders:
    """The same order to several clients.

    action: what they are to do; names a method of the client algorithm. clients: int64 [C], ascending. payload: vectors
    sent to each of them. config: plain settings. round: which round it belongs to,
    from 0. encoded: bytes of the payload as transforms have encoded it, if they have.
    """

    action: str
    clients: Tensor
    payload: Mapping[str, Tensor]
    config: Mapping[str, Scalar] = field(default_factory=dict)
    round: int = 0
    encoded: int | None = None

    @property
    def nbytes(self) -> int:
        """Payload bytes that each client is sent."""
        return payload_bytes(self.payload) if self.encoded is None else self.encoded


@dataclass(frozen=True)
class All:
    """A window that closes when every order of its action has been answered: a synchronous round."""


Window = All


@dataclass(frozen=True)
class Cost:
    """What a client declares before it works. steps: int64 [C]; bytes_up: payload bytes of one client's reply."""

    steps: Tensor
    bytes_up: int


@dataclass(frozen=True)
class Update:
    """What a cohort's work comes to. payload: [C, ...] by name; metrics: [C] by name, never counted as traffic."""

    payload: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Replies:
    """The finite replies of a window, in ascending order of client; sums are taken in this order.

    clients: int64 [k]. payload: [k, ...] by name. metrics: [k] by name. examples: int64 [k], how many examples each
    client has. failed: ids of clients whose update was not finite; they are left out everywhere else.
    """

    clients: Tensor
    payload: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor]
    examples: Tensor
    failed: Tensor
    aggregator: Aggregator = field(default_factory=WeightedMean)

    def __len__(self) -> int:
        return len(self.clients)

    def weights(self, weighting: Weighting) -> Tensor:
        """Weights [k] that sum to one: by examples, or the same for all."""
        rows = next(iter(self.payload.values()))
        like = self.examples if weighting == "examples" else torch.ones_like(self.examples)
        return (like / like.sum()).to(rows.device, rows.dtype)

    def combine(
        self, weights: Tensor, scale: float | Tensor = 1.0, name: str = "delta", rows: Tensor | None = None
    ) -> Tensor:
        """Scale * (sum_i w_i) * A(rows, w), [d], of the payload `name` or of `rows` [k, d] made from it.

        With the weighted mean as aggregator A that is scale * sum_i w_i rows_i; a robust one in its place says where
        the step points, while the weights go on saying how long it is. With no replies it is zero.
        """
        rows = self.payload[name] if rows is None else rows
        if len(self) == 0:
            return rows.new_zeros(rows.shape[1:])
        return scale * weights.sum() * self.aggregator(rows, weights)

    def mean(self, metric: str) -> float | None:
        """A metric's mean weighted by examples; None where no reply carries it."""
        if metric not in self.metrics or len(self) == 0:
            return None
        values = self.metrics[metric].double()
        weights = self.examples.to(values.device).double()
        return float(weights @ values / weights.sum())


class BrokenPromiseError(FedsimError):
    """A client algorithm did something else than its `cost` had declared."""


def payload_bytes(payload: Mapping[str, Tensor]) -> int:
    """Bytes of one client's payload: numbers times their size."""
    return sum(tensor.numel() * tensor.element_size() for tensor in payload.values())


def finite_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Which rows [C] are finite in all of some tensors [C, ...]: bool [C]."""
    finite = torch.ones(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    for rows in tensors:
        # A sum is finite only if its terms are; where it is not, the terms themselves decide.
        if not bool(torch.isfinite(rows.sum())):
            finite &= torch.isfinite(rows.reshape(len(rows), -1)).all(dim=1)
    return finite
