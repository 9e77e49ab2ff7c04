"""The client's half of methods in which everybody repeats the same steps along directions known by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.core.options import BatchSize, options
from fedsim.core.streams import Streams
from fedsim.engine.client import Client
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Scalar
from fedsim.exchange.transforms import Shapes
from fedsim.nets.network import Batch
from fedsim.nets.stack import Stack
from fedsim.zeroth_order.directions import Keys, Sliceable, part
from fedsim.zeroth_order.failures import mean_told
from fedsim.zeroth_order.perturbation import perturb_
from fedsim.zeroth_order.scalar_codes import finite
from fedsim.zeroth_order.search import batches
from fedsim.zeroth_order.shared_seed import Contributions

AT_ONCE = 2**20
"""Numbers of models beside their own that clients evaluate at once; above, one copy of theirs is moved in place."""


@options
class Replica(Client):
    """A client that keeps a replica of the model, and asks for values only.

    The state is the replica, d numbers, and one for the round that it is the model of.
    """

    values_only: ClassVar[bool] = True
    takes_slopes: ClassVar[bool] = True

    batch_size: BatchSize = "full"
    """Examples that a step's values are about, each step an independent batch; full: all of the client's, and all that
    a black box knows.
    """

    def state(self, dimension: int) -> Shapes:
        """The replica, and its round plus one, 0 before the client has joined."""
        return replica_state(dimension)

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The replica, a direction, and the points on either side with the copies that are evaluated."""
        return 10 * dimension

    def steps_of(self, examples: Tensor, batches: int) -> Tensor:
        """The local steps of a reply with so many batches, int64 [C]: none, where values are about everything."""
        return torch.zeros_like(examples) + (0 if self.batch_size == "full" else batches)

    def batches(self, cohort: Cohort, steps: int) -> list[Batch | None]:
        """What the values of each step are about."""
        return list(batches(cohort, self.batch_size, steps))


def replica_state(dimension: int) -> dict[str, tuple[int, ...]]:
    """What a client keeps of a replica: its numbers, and its round plus one, 0 before the client has joined."""
    return {"replica": (dimension,), "version": ()}


def caught_up(cohort: Cohort, log: Contributions) -> Tensor:
    """The model of the order's round, [C, d], replayed from each client's replica, and kept in its place."""
    config, version = cohort.config, cohort.state["version"]
    replica, since = cohort.state["replica"], version - 1
    fresh = since < float(config["from"])
    if bool(fresh.any()):
        replica = torch.where(fresh.unsqueeze(1), cohort.received("params"), replica)
        since = torch.where(fresh, float(config["at"]), since)
    log.apply_(replica, float(config["lr"]), kind_of(config), since)
    cohort.keep(replica=replica, version=torch.full_like(version, cohort.round + 1))
    return replica


def kind_of(config: Mapping[str, Scalar]) -> Sliceable:
    """The kind of directions that an order names."""
    kind: Any = config["directions"]
    named: Sliceable = kind
    return named


@dataclass(frozen=True)
class Directions:
    """Random directions by name: one that all clients share, or one each."""

    streams: Streams
    keys: Keys
    kind: Sliceable

    def drawn_for(self, x: Tensor) -> Tensor:
        """The directions, [J, d], for models x [k, d]."""
        return part(self.kind, self.streams, self.keys, 0, x.shape[1], dtype=x.dtype, device=x.device)

    def add_(self, stack: Stack, distance: float) -> Stack:
        """Move the models of a stack along them in place, block by block; return it."""
        perturb_(stack.leaves, self.streams, self.keys, distance, kind=self.kind)
        return stack


def slopes(cohort: Cohort, batch: Batch | None, x: Tensor, v: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Central differences (f(x + mu v) - f(x - mu v)) / (2 mu), 0 where not finite, and the mean of both values: [k].

    x: [k, d]. v: [d], or [k, d]. Where one value failed, the mean is the other.
    """
    shift = mu * v
    return _differences(cohort.query(torch.stack((x + shift, x - shift), dim=1), batch), mu)


def slopes_along(
    cohort: Cohort, batch: Batch | None, x: Tensor, directions: Directions, mu: float
) -> tuple[Tensor, Tensor]:
    """`slopes` of x [k, d] along directions that are not drawn yet, with the same bits.

    On batches of large models, in the memory of one evaluation: v is drawn twice and never whole, and nothing but one
    stack of the models is moved.
    """
    if batch is None or 2 * x.numel() <= AT_ONCE:
        return slopes(cohort, batch, x, directions.drawn_for(x), mu)
    # One side after the other from x itself, not back by 2 mu v, so that no rounding is left of the first.
    sides = [cohort.evaluate(directions.add_(cohort.stack(x), distance), batch) for distance in (mu, -mu)]
    return _differences(torch.stack(sides, dim=1), mu)


def _differences(values: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Slopes and means, [k], of values [k, 2] on both sides."""
    return finite((values[:, 0] - values[:, 1]) / (2.0 * mu)), mean_told(values)
