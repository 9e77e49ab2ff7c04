"""Clients at work: their flights by time of arrival, and which of them are computed together.

A flight is computed when a window needs it, with the earliest due others that may be executed with it. When that
happens changes nothing: a reply depends on its order, its client's data and what the client remembers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from operator import attrgetter
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.clock import ticks
from fedsim.core.graph import storable
from fedsim.engine.job import Job, JobResult, gathered
from fedsim.exchange.messages import Order
from fedsim.exchange.windows import Enough, Every, First, Window

CLIENT = attrgetter("client")


@storable("flight")
@dataclass(eq=False, slots=True)
class Flight:
    """One client at work on an order; with its row of the result once that is computed.

    job: what it was sent out with; steps: its own of the job's. start, due: ticks. number: counts flights. fault: the
    kind of fault on demand that befalls it, None if none does. peers: to how many its reply goes.
    """

    job: Job
    client: int
    steps: int
    start: int
    due: int
    number: int
    fault: str | None
    result: JobResult | None = None
    row: int = 0
    peers: int = 1

    @property
    def crossed(self) -> int:
        """Bytes that its reply took to cross, once; it is computed."""
        assert self.result is not None
        return self.result.crossed[self.row]

    @property
    def order(self) -> Order:
        """What the client was told to do."""
        return self.job.orders[0]


Queued = tuple[int, int, int, Flight]
"""When a flight is due, its client and its number, which tell all apart, so that flights are never compared."""


@storable("flights")
@dataclass
class Flights:
    """The flights of one action.

    pending: by time of arrival, a heap. waiting: those not yet computed, by what may be executed together, then by
    number. latest: what the last orders came to. opened: when the window was opened that is open. nothing: the payload
    of no reply, [0, ...] by name, once it is known.
    """

    pending: list[Queued] = field(default_factory=list)
    waiting: dict[Hashable, dict[int, Flight]] = field(default_factory=dict)
    latest: Job | None = None
    opened: int | None = None
    nothing: dict[str, Tensor] | None = None

    @property
    def late(self) -> str | None:
        """What becomes of those that are not in when a window closes, as the last orders say; None: there were none."""
        return None if self.latest is None else self.latest.orders[0].late

    def put(self, flight: Flight) -> None:
        """Have a flight arrive when it is due."""
        heappush(self.pending, (flight.due, flight.client, flight.number, flight))

    def take(self, window: Window, opened: int) -> list[Flight]:
        """Take out what the window, open since a tick, would hold, if nothing else were sent."""
        if isinstance(window, Enough):
            return self._enough(window, opened)
        limit = window.seconds if isinstance(window, Every) else window.deadline
        last = None if limit is None else opened + ticks(limit)
        count = window.count if isinstance(window, First) else len(self.pending)
        taken: list[Flight] = []
        while self.pending and len(taken) < count and (last is None or self.pending[0][0] <= last):
            taken.append(heappop(self.pending)[3])
        return taken

    def _enough(self, window: Enough, opened: int) -> list[Flight]:
        """Those who are there when the window looks, or all."""
        everybody = [heappop(self.pending)[3] for _ in range(len(self.pending))]
        in_time = [flight for flight in everybody if flight.due <= window.end(opened, everybody[0].due)]
        if not window.without(self._missing(in_time)):
            return everybody
        for flight in everybody[len(in_time) :]:
            self.put(flight)
        return in_time

    def _missing(self, taken: Sequence[Flight]) -> set[int]:
        """Who is not among those who were sent the last orders."""
        assert self.latest is not None
        return set(self.latest.clients.tolist()).difference(flight.client for flight in taken)

    def closing(
        self, window: Window, opened: int, taken: Sequence[Flight], now: int, failing: Iterable[int]
    ) -> int | None:
        """When the window closes that these flights were taken for; None: never, as things are.

        failing: ticks at which others of the action will break off.
        """
        latest = taken[-1].due if taken else opened
        if isinstance(window, Every):
            return opened + ticks(window.seconds)
        if isinstance(window, First) and len(taken) == window.count:
            return max(now, latest)
        if isinstance(window, Enough):
            missing = self._missing(taken)
            if taken and missing and window.without(missing):
                return max(now, window.end(opened, taken[0].due))
            return max(latest, now, *failing)
        deadline = None if window.deadline is None else opened + ticks(window.deadline)
        if self.pending or (isinstance(window, First) and self.late == "keep"):
            return deadline
        # Everybody has answered, or will fail: the server sees a connection break.
        end = max(latest, now, *failing)
        return end if deadline is None else min(end, deadline)

    def together(self, flight: Flight, needed: Iterable[Flight], key: Hashable, room: int) -> list[Flight]:
        """Take from those that wait what is executed with a flight: of those needed all that may be, which it is among.

        And the earliest due others, as many as there is room for, where their work will not be cancelled. key: what
        may be executed together.
        """
        waiting = self.waiting[key]
        own = [other for other in needed if other.number in waiting]
        group, room = own, room - len(own)
        if room > 0 and len(waiting) > len(own) and flight.order.late == "keep":
            mine = {other.number for other in own}
            others = [other for other in waiting.values() if other.number not in mine]
            if len(others) > room:
                others = sorted(others, key=attrgetter("due", "client"))[:room]
            group = own + others
        for other in group:
            del waiting[other.number]
        if not waiting:
            del self.waiting[key]
        return group


def origins(flights: Iterable[Flight]) -> tuple[list[Order], list[int]]:
    """The different orders of flights, in the order in which they come, and which of them is whose."""
    orders = {id(flight.order): flight.order for flight in flights}
    places = {own: place for place, own in enumerate(orders)}
    return list(orders.values()), [places[id(flight.order)] for flight in flights]


def job_of(group: Sequence[Flight], device: torch.device) -> Job:
    """The flights as one job, in their order; they may be executed together."""
    orders, origin = origins(group)
    steps = torch.tensor([flight.steps for flight in group], dtype=torch.int64, device=device)
    return Job(
        orders=tuple(orders),
        origin=torch.tensor(origin, device=device) if len(orders) > 1 else None,
        clients=torch.tensor([flight.client for flight in group], dtype=torch.int64, device=device),
        cost=replace(group[0].job.cost, steps=steps, effort=None),
        encoded=group[0].job.encoded,
    )


def landed(flights: Sequence[Flight], part: Literal["payload", "metrics"]) -> dict[str, Tensor]:
    """The flights' rows of the named tensors of their results, in the flights' order; there is one flight at least."""
    members: dict[JobResult, list[int]] = {}
    for place, flight in enumerate(flights):
        assert flight.result is not None
        members.setdefault(flight.result, []).append(place)
    rows = [flight.row for flight in flights]
    held = [
        {name: _rows(values, [rows[place] for place in places]) for name, values in getattr(result, part).items()}
        for result, places in members.items()
    ]
    if len(held) == 1:
        return held[0]
    back = torch.tensor([place for places in members.values() for place in places]).argsort()
    return gathered(held, back)


def integers(values: list[int]) -> Tensor:
    """The numbers as int64 [k]."""
    # Through NumPy, which reads a short list in a third of the time.
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _rows(values: Tensor, rows: list[int]) -> Tensor:
    """Rows of a tensor; without a copy where it is one of them, or they are all in order."""
    if len(rows) == 1:
        return values[rows[0] : rows[0] + 1]
    if len(rows) == values.shape[0] and rows == list(range(len(rows))):
        return values
    return values[integers(rows).to(values.device)]
