"""Rounds of secure aggregation: who has left at which stage, what crosses and how long that takes, and the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError, warn
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.engine.virtual import VirtualEngine
from fedsim.exchange.messages import Order, Replies, Weighting
from fedsim.exchange.secure import (
    WIDE,
    Counts,
    Mask,
    Masks,
    Sealed,
    Secure,
    Traffic,
    fewest,
    graph,
    keys,
    shares,
    unmasking,
)
from fedsim.exchange.transforms import BLOCK, Noise
from fedsim.exchange.windows import All, Window
from fedsim.problems.base import Problem
from fedsim.running.promises import at_once, goes_by_losses


@dataclass(frozen=True)
class Summed:
    """What becomes of a window's replies. replies: one, the mean of them, or none. why: it is none.

    metrics: void, 1 where that is so, else 0; clipped_numbers, the share of all numbers that were cut.
    """

    replies: Replies
    metrics: Mapping[str, float]
    why: str | None = None


@dataclass(frozen=True)
class Under:
    """A round under way.

    clients: ids of all who were asked, int64 [m]. turn: names its draws. neighbours: bool [m, m]. shared: bool [m].
    needed: how many holders of the shares of each must be left. why: it is void from the start; None: it is not.
    """

    clients: Tensor
    turn: int
    neighbours: Mask
    shared: Mask
    needed: int
    why: str | None


class Secured:
    """The secure aggregation of a run. weighting: how the strategy weighs changes. ring: bits of a number."""

    def __init__(
        self, options: Secure, engine: VirtualEngine, streams: Streams, weighting: Weighting, ring: int
    ) -> None:
        self._options, self._engine, self._streams = options, engine, streams
        self._weighting, self._ring = weighting, ring
        self._under: Under | None = None

    def submit(self, orders: Order) -> Order:
        """Have clients exchange keys and shares, and send the orders to those who have: these orders.

        Every stage waits for the slowest. Where too few have shared, nobody is sent any.
        """
        options, clients, turn = self._options, orders.clients, orders.turn
        count = len(clients)
        neighbours = graph(clients, options.degree(count), self._streams, turn)
        shared = ~self._leave("before", clients, turn, options.leave_before)
        needed, left = options.needed(count), fewest(neighbours, shared, shared)
        why = None if left >= needed else f"{left} of {needed} shares"
        self._under = Under(clients, turn, neighbours, shared, needed, why)
        first, second = keys(neighbours), shares(neighbours, shared)
        head = self._crossed(clients, first) + self._crossed(clients, second)
        tail = self._engine.fleet.crossing(clients.numpy(), *_both(unmasking(neighbours, shared)))
        orders = replace(orders, clients=clients[torch.from_numpy(shared & (why is None))])
        self._engine.submit(orders, head, head if why else tail)
        return orders

    def summed(self, replies: Replies) -> Summed:
        """Unmask the sum of a window's replies, which answer the last orders."""
        under = self._under
        assert under is not None, "replies are summed once, after their orders"
        self._under = None
        answered = torch.isin(under.clients, replies.clients).numpy()
        why = under.why or self._short(under, answered)
        if why is None:
            left = answered & ~self._leave("after", under.clients, under.turn, self._options.leave_after)
            self._crossed(under.clients, unmasking(under.neighbours, under.shared & left))
            why = self._short(under, left)
        if why is not None:
            nobody = torch.zeros(len(replies), dtype=torch.bool)
            return Summed(replies.where(nobody), {"void": 1.0}, f"secure aggregation had {why}")
        weights = replies.examples if self._weighting == "examples" else torch.ones_like(replies.examples)
        rows, cut = self.encoded(replies, weights, under.turn)
        masks = self.masks(under, answered)
        sums = masks.unmasked(masks.masked(rows))
        whole = int(sums[-1]) if self._weighting == "examples" else len(replies)
        change = replies.payload["delta"]
        mean = torch.from_numpy(self._options.mean(sums[: change.shape[1]], whole)).to(change.device, change.dtype)
        metrics = {"void": 0.0, "clipped_numbers": cut / max(1, change.numel())}
        return Summed(replies.as_one(mean), metrics)

    def encoded(self, replies: Replies, weights: Tensor, turn: int) -> tuple[NDArray[Any], int]:
        """The clients' weighted levels as words [k, n], and how many numbers were cut. weights: int64 [k].

        Where they weigh by examples the last column has the weights.
        """
        options, changes = self._options, replies.payload["delta"]
        word = np.uint32 if self._ring <= WIDE else np.uint64
        width = changes.shape[1]
        rows = np.empty((len(replies), width + (self._weighting == "examples")), word)
        height, cut = max(1, BLOCK // max(1, width)), 0
        for begin in range(0, len(rows), height):
            part = slice(begin, begin + height)
            own = replies.clients[part].to(changes.device)
            drawn = self._streams.uniform("secure/rounding", own, (width,), turn=turn)
            levels, clipped = options.levels(changes[part], drawn)
            rows[part, :width] = (levels.cpu() * weights[part].unsqueeze(1)).numpy()
            cut += int(clipped.sum())
        if self._weighting == "examples":
            rows[:, width] = weights.numpy()
        return rows, cut

    def masks(self, under: Under, answered: Mask) -> Masks:
        """The masks of a round, of those who have shared."""
        shared = under.shared
        among = under.neighbours[np.ix_(shared, shared)]
        clients = under.clients.numpy()[shared].tolist()
        return Masks(self._streams, under.turn, self._ring, clients, among, answered[shared])

    def _short(self, under: Under, left: Mask) -> str | None:
        """What is missing where these are left; None: nothing."""
        found = fewest(under.neighbours, under.shared, left)
        return None if found >= under.needed else f"{found} of {under.needed} shares"

    def _leave(self, name: str, clients: Tensor, turn: int, rate: float) -> Mask:
        """Who leaves, bool [m], each with this probability."""
        drawn = self._streams.uniform(f"secure/{name}", clients, turn=turn, dtype=torch.float64)
        found: Mask = drawn.numpy() < rate
        return found

    def _crossed(self, clients: Tensor, traffic: Traffic) -> int:
        """Count what a stage takes, and give the ticks that it takes."""
        self._engine.ledger.bytes_up += int(traffic.up.sum())
        self._engine.ledger.bytes_down += int(traffic.down.sum())
        return self._engine.fleet.crossing(clients.numpy(), *_both(traffic))


def _both(traffic: Traffic) -> tuple[Counts, Counts]:
    return traffic.down, traffic.up


def ring_of(experiment: Experiment, problem: Problem) -> int:
    """The bits of a number under masks, for any cohort. InputError: sums could wrap."""
    options: Secure = experiment.aggregation
    most = min(at_once(experiment.selection, problem.num_clients), problem.num_clients)
    if experiment.strategy.summed == "uniform":
        return options.ring_for(most)
    return options.ring_for(int(problem.sizes.sort(descending=True).values[:most].sum()))


def sealing(experiment: Experiment, problem: Problem) -> tuple[Sealed, ...]:
    """What is done last to replies, where they are summed under masks."""
    if not isinstance(experiment.aggregation, Secure):
        return ()
    return (Sealed(ring=ring_of(experiment, problem), weighed=experiment.strategy.summed == "examples"),)


def check_secure(experiment: Experiment, problem: Problem) -> None:
    """Refuse (InputError) what cannot be done with a sum alone."""
    strategy, selector = experiment.strategy, experiment.selection
    options: Secure = experiment.aggregation
    if strategy.summed is None:
        kind = kind_of("strategies", strategy)
        more = sorted(strategy.up - {"delta"})
        reads = f"{kind} is sent {', '.join(more)} beside the change" if more else f"{kind} looks at single replies"
        raise InputError("aggregation.kind", "secure", f"{reads}, and only a sum of changes arrives; take fedavg")
    if goes_by_losses(selector, problem.sizes):
        kind = kind_of("selectors", selector)
        raise InputError("selection.kind", kind, "it is told clients' losses, and only sums arrive; take uniform")
    for number, transform in enumerate(experiment.transforms):
        if not transform.summable:
            kind = kind_of("transforms", transform)
            remedy = "it has an encoding of its own for each client, whose sum means nothing; leave it out"
            raise InputError(f"transforms.{number}.kind", kind, remedy)
        if isinstance(transform, Noise):
            warn(f"transforms.{number}.kind = noise: it is rounded afterwards, and only about normal in the sum")
    if problem.trained is not None:
        remedy = 'it rounds running statistics as well; set problem.normalisation.statistics = "frozen"'
        raise InputError("aggregation.kind", "secure", remedy)
    options.hold(at_once(selector, problem.num_clients))
    ring_of(experiment, problem)


def hold_window(orders: Order, window: Window) -> None:
    """Refuse (InputError) rounds that do not wait for a cohort as one."""
    if not isinstance(window, All) or orders.late != "cancel":
        remedy = "clients share masks with those of their round, which waits for all or until a deadline"
        raise InputError("aggregation.kind", "secure", f"{remedy}; leave strategy.first out, or take fedavg")


def secured(experiment: Experiment, problem: Problem, engine: object) -> Secured | None:
    """The secure aggregation of an experiment, if it has one. InputError: clients are elsewhere."""
    weighting = experiment.strategy.summed
    if not isinstance(experiment.aggregation, Secure) or weighting is None:
        return None
    if not isinstance(engine, VirtualEngine):
        remedy = "Flower's nodes do not mask what they send; run it with fedsim.run, or take Flower's SecAgg+ there"
        raise InputError("aggregation.kind", "secure", remedy)
    return Secured(experiment.aggregation, engine, Streams(experiment.seed), weighting, ring_of(experiment, problem))
