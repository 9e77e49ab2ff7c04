"""What crosses between server and clients: orders down, updates up, and windows that say when to look.

Nothing else crosses. A payload is a set of named tensors; its bytes are what the ledger counts. The configuration of
an order and the metrics of a reply are a few plain numbers beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError, InputError, one_line
from fedsim.core.graph import storable
from fedsim.core.near import name_one
from fedsim.core.plugins import is_ours, kind_of
from fedsim.core.streams import SERVER
from fedsim.exchange.aggregation import Aggregator, WeightedMean

Scalar = bool | int | float | str
Weighting = Literal["examples", "uniform"]
WEIGHTINGS = get_args(Weighting)
Late = Literal["cancel", "keep"]


@storable("order")
@dataclass(frozen=True)
class Order:
    """The same order to several clients.

    action: what they are to do; names a method of the client algorithm. clients: int64 [C], ascending. payload: vectors
    sent to each of them. config: plain settings. round: which round it belongs to, from 0: the version of the model
    that they start from. late: what becomes of a client that is still at work when the window closes: it is told to
    stop and its work is lost, or it works on and is taken in the window in which it finishes. encoded: bytes of the
    payload as it crosses where that is not the size of its tensors: one number, or int64 [C] where clients are sent
    parts of it. peers: to how many others the reply of each goes, where it goes to no server: one number or int64 [C];
    its bytes count as often. turn: what names the clients' draws where a client may be sent the same version twice; by
    default (-1) the round. counts: whether to answer is to take part in the round, as the ledger and the trace count
    it.
    """

    action: str
    clients: Tensor
    payload: Mapping[str, Tensor]
    config: Mapping[str, Scalar] = field(default_factory=dict)
    round: int = 0
    late: Late = "cancel"
    encoded: int | Tensor | None = None
    turn: int = -1
    counts: bool = True
    peers: int | Tensor = 1

    def __post_init__(self) -> None:
        if self.turn < 0:
            object.__setattr__(self, "turn", self.round)

    @property
    def nbytes(self) -> int | Tensor:
        """Payload bytes that each client is sent: one number, or int64 [C]."""
        return payload_bytes(self.payload) if self.encoded is None else self.encoded

    @property
    def total_bytes(self) -> int:
        """Payload bytes that all of its clients are sent."""
        nbytes = self.nbytes
        return int(nbytes.sum()) if isinstance(nbytes, Tensor) else nbytes * len(self.clients)

    def peers_of(self, clients: Tensor) -> Tensor:
        """To how many the replies of some of its clients, int64 [k], go: int64 [k]."""
        if not isinstance(self.peers, Tensor):
            return torch.full_like(clients, self.peers)
        return self.peers.to(clients.device)[torch.searchsorted(self.clients, clients)]


@storable("size")
@dataclass(frozen=True)
class Size:
    """What a vector takes as it crosses.

    numbers: how many cross. bits: of each. beside: bits of what crosses with them, such as their places or a scale: one
    number, or int64 [C] of the vectors of C clients.
    """

    numbers: int
    bits: int
    beside: int | Tensor = 0

    @classmethod
    def of(cls, vector: Tensor) -> Size:
        """What a tensor takes as it is."""
        return cls(vector.numel(), 8 * vector.element_size())

    @property
    def nbytes(self) -> int | Tensor:
        """Whole bytes of one vector: one number, or int64 [C]."""
        return -(-(self.numbers * self.bits + self.beside) // 8)


@storable("cost")
@dataclass(frozen=True)
class Cost:
    """What a client declares before it works.

    steps: local steps with gradients, int64 [C]. reply: what the vectors of one client's reply take, by name. queries:
    evaluations that a client asks for, which it is held to; first: at most so many more where it begins; extra: of all
    of them, those that are no part of the method's published count. effort: what it does beside, in the time of so many
    local steps, float64 [C].
    """

    steps: Tensor
    reply: Mapping[str, Size]
    queries: int = 0
    first: int = 0
    extra: int = 0
    effort: Tensor | None = None

    def beside(self, other: Cost) -> Cost:
        """With the steps and the effort of another, whose reply is not sent."""
        efforts = [effort for effort in (self.effort, other.effort) if effort is not None]
        return replace(self, steps=self.steps + other.steps, effort=sum(efforts[1:], efforts[0]) if efforts else None)

    @property
    def bytes_up(self) -> int:
        """Payload bytes of one client's reply."""
        return total_bytes(self.reply)


@dataclass(frozen=True)
class Update:
    """What a cohort's work comes to. payload: [C, ...] by name; metrics: [C] by name, never counted as traffic."""

    payload: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Replies:
    """The usable replies of a window, in ascending order of client; sums are taken in this order.

    clients: int64 [k]; where clients restart at once, one may occur twice. payload: [k, ...] by name. metrics: [k] by
    name. examples: int64 [k], how many examples each client has. failed: ids of clients whose update was not finite, or
    not of the shape that was asked for; they are left out everywhere else. round: the server's when the window closed.
    versions: int64 [k], the round of the order that each reply answers. durations: int64 [k], ticks of the clock (see
    `fedsim.core.clock`) from order to reply. orders, origin: the orders that were answered, and which of them each
    reply answers, one number a reply. spoiled: how many have failed on purpose alone (see `fedsim.devices.faults`), or
    because evaluations failed that may: which does not say that the work diverges. encoded: bytes that the payload of
    each took to cross, int64 [k]; None: those of its tensors.
    """

    clients: Tensor
    payload: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor]
    examples: Tensor
    failed: Tensor
    round: int
    versions: Tensor
    durations: Tensor
    orders: Sequence[Order]
    origin: Sequence[int]
    aggregator: Aggregator = field(default_factory=WeightedMean)
    spoiled: int = 0
    encoded: Tensor | None = None

    def __len__(self) -> int:
        return self.clients.shape[0]  # the length of a tensor takes five times as long

    @property
    def staleness(self) -> Tensor:
        """How many rounds the server has completed since each reply's order: int64 [k]."""
        return self.round - self.versions

    @property
    def nbytes(self) -> Tensor:
        """Bytes that the payload of each reply took to cross, once: int64 [k]."""
        if self.encoded is not None:
            return self.encoded
        each = sum(math.prod(rows.shape[1:]) * rows.element_size() for rows in self.payload.values())
        return torch.full_like(self.clients, each)

    def where(self, kept: Tensor) -> Replies:
        """The replies where `kept`, bool [k] on the CPU, says so; these themselves, where it says so of all."""
        if bool(kept.all()):
            return self  # a copy of all vectors would take longer than their sum
        return replace(
            self,
            clients=self.clients[kept],
            payload={name: rows[kept.to(rows.device)] for name, rows in self.payload.items()},
            metrics={name: rows[kept.to(rows.device)] for name, rows in self.metrics.items()},
            examples=self.examples[kept],
            versions=self.versions[kept],
            durations=self.durations[kept],
            origin=[origin for origin, keep in zip(self.origin, kept.tolist(), strict=True) if keep],
            encoded=None if self.encoded is None else self.encoded[kept],
        )

    def as_one(self, change: Tensor) -> Replies:
        """These as one reply of nobody's, whose change is this, [d]: what is known where only a sum of them is.

        Metrics are means by examples. How many examples there were, and how long anybody took, is not told.
        """
        means = {name: self.mean(name) for name in self.metrics} if len(self) else {}
        return replace(
            self,
            clients=torch.tensor([SERVER]),
            payload={"delta": change.unsqueeze(0)},
            metrics={name: torch.tensor([value], dtype=torch.float64) for name, value in means.items()},
            examples=torch.ones(1, dtype=torch.int64),
            versions=torch.tensor([self.round]),
            durations=torch.zeros(1, dtype=torch.int64),
            origin=self.origin[:1],
            encoded=None,
        )

    def sent(self, name: str) -> Tensor:
        """What each client had been sent under this name: [k, ...]."""
        return torch.stack([self.orders[origin].payload[name] for origin in self.origin])

    def weights(self, weighting: Weighting) -> Tensor:
        """Weights [k] that sum to one: by examples, or the same for all; numbers as of the payload.

        InputError: another weighting.
        """
        if weighting not in WEIGHTINGS:
            raise InputError("strategy.weighting", weighting, name_one(weighting, WEIGHTINGS))
        rows = next(iter(self.payload.values()))
        dtype = rows.dtype if rows.is_floating_point() else torch.float64
        like = self.examples if weighting == "examples" else torch.ones_like(self.examples)
        return (like.double() / like.sum()).to(rows.device, dtype)

    def combine(
        self, weights: Tensor, scale: float | Tensor = 1.0, name: str = "delta", rows: Tensor | None = None
    ) -> Tensor:
        """Scale * (sum_i w_i) * A(rows, w), [d], of the payload `name` or of `rows` [k, d] made from it.

        With the weighted mean as aggregator A that is scale * sum_i w_i rows_i; a robust one in its place says where
        the step points, while the weights go on saying how long it is. With no replies it is zero.
        """
        if rows is None:
            if name not in self.payload:
                carried = ", ".join(self.payload) or "nothing"
                raise BrokenPromiseError(f"the strategy combines {name}, and the replies carry {carried}")
            rows = self.payload[name]
        if len(self) == 0:
            return rows.new_zeros(rows.shape[1:])
        length = weights.sum()
        if not (isinstance(scale, float) and scale == 1.0):
            length = scale * length
        lent = (rows._version, weights._version)
        centre = self.aggregator(rows, weights)
        if (rows._version, weights._version) != lent:
            fault = "it changes the rows or the weights that it is handed; have it make others"
            raise broken("aggregation", "aggregators", self.aggregator, fault)
        if (
            not isinstance(centre, Tensor)
            or centre.shape != rows.shape[1:]
            or centre.dtype != rows.dtype
            or centre.device != rows.device
        ):
            fault = f"its centre of {shown(rows)} is {shown(centre)}; give one row of that type"
            raise broken("aggregation", "aggregators", self.aggregator, fault)
        if centre.requires_grad:
            raise broken("aggregation", "aggregators", self.aggregator, "its centre has a graph; detach it")
        if not is_ours(type(self.aggregator)) and not math.isfinite(float(centre.sum(dtype=torch.float64))):
            raise broken("aggregation", "aggregators", self.aggregator, "its centre of finite rows is not finite")
        return centre * length

    def mean(self, metric: str) -> float | None:
        """A metric's mean over the replies in which it is finite, weighted by examples; None where no reply carries it.

        NaN where it is finite in none.
        """
        if metric not in self.metrics or len(self) == 0:
            return None
        values = self.metrics[metric].double()
        weights = self.examples.to(values.device).double()
        if not math.isfinite(float(values.sum())):
            told = torch.isfinite(values)
            values, weights = values[told], weights[told]
        return float(weights @ values / weights.sum())


def joined(parts: Sequence[Replies]) -> Replies:
    """The replies of several windows as those of one, closing with the last."""
    if len(parts) == 1:
        return parts[0]
    last, order = parts[-1], torch.cat([part.clients for part in parts]).argsort(stable=True)
    full = [part for part in parts if len(part)] or [last]
    origins, orders = list[int](), list[Order]()
    for part in parts:
        origins += [len(orders) + origin for origin in part.origin]
        orders += part.orders

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order]

    def named(name: str) -> dict[str, Tensor]:
        held = [getattr(part, name) for part in full]
        return {key: torch.cat([part[key] for part in held])[order.to(first.device)] for key, first in held[0].items()}

    return replace(
        last,
        clients=rows("clients"),
        payload=named("payload"),
        metrics=named("metrics"),
        examples=rows("examples"),
        failed=torch.cat([part.failed for part in parts]).sort().values,
        versions=rows("versions"),
        durations=rows("durations"),
        orders=orders,
        origin=[origins[row] for row in order.tolist()],
        spoiled=sum(part.spoiled for part in parts),
        encoded=torch.cat([part.nbytes for part in parts])[order],
    )


def broken(option: str, group: str, plugin: object, fault: str) -> BrokenPromiseError:
    """What to raise where a plug-in of a group, which an option names, has broken a promise."""
    return BrokenPromiseError(f"{option}.kind = {kind_of(group, plugin)}: {fault}")


def shaped(value: object) -> bool:
    """Whether these are shapes by name."""
    return isinstance(value, Mapping) and all(
        isinstance(shape, tuple) and all(isinstance(length, int) for length in shape) for shape in value.values()
    )


def shown(value: object) -> str:
    """What a plug-in has returned, in a few words: the type and shape of a tensor, the types in a tuple."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(type(one).__name__ for one in value)})"
    if value is None or isinstance(value, bool | int | float | str):
        return one_line(repr(value), 60)
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def total_bytes(sizes: Mapping[str, Size]) -> int:
    """Bytes of one client's vectors, which are as long as anybody's."""
    return sum(int(size.nbytes) for size in sizes.values())


def payload_bytes(payload: Mapping[str, Tensor]) -> int:
    """Bytes of one client's payload: numbers times their size."""
    return sum(tensor.numel() * tensor.element_size() for tensor in payload.values())


def finite_rows(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Which rows are finite in all of some tensors [C, ...], or none: bool [C]. like: whose device and C they have."""
    finite = torch.ones(len(like), dtype=torch.bool, device=like.device)
    for rows in tensors:
        # A sum is finite only if its terms are; where it is not, the terms themselves decide.
        if not bool(torch.isfinite(rows.sum())):
            finite &= torch.isfinite(rows.reshape(len(rows), -1)).all(dim=1)
    return finite


def usable_rows(payload: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Which replies can be used, bool [C]: those with finite numbers, [C, ...] by name.

    And of those who have asked, queries int64 [C, 3] as of `JobResult`, who got a value: others know nothing.
    """
    return finite_rows(list(payload.values()), queries) & untold_rows(queries).logical_not()


def untold_rows(queries: Tensor) -> Tensor:
    """Which clients, of queries int64 [C, 3], have asked, and got no finite value: bool [C]."""
    return (queries[:, 0] > 0) & (queries[:, 2] == queries[:, 0])


@dataclass(frozen=True)
class Free:
    """Who could start now: clients that have examples, are available and not at work.

    mask: bool [N], never to be written to. count: how many of them there are.
    """

    mask: NDArray[np.bool_]
    count: int
