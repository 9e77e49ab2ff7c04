"""Windows over a grid: messages on their way, replies that no window has taken, and when a window closes.

What engines over a grid share; the wall clock says what time it is, or the grid, where its time is virtual.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import StalledError
from fedsim.engine.ledger import Ledger
from fedsim.engine.trace import Trace
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.messages import Free, Order, Replies, joined
from fedsim.exchange.windows import All, Enough, Every, First, Window
from fedsim.flower.nodes import GridError, Sent, answered, pauses
from fedsim.flower.virtual_grid import VirtualGrid


class Flight(Protocol):
    """A message on its way: an order to clients [k], sent at tick `start`."""

    @property
    def orders(self) -> Order: ...  # noqa: D102
    @property
    def clients(self) -> Tensor: ...  # noqa: D102
    @property
    def start(self) -> int: ...  # noqa: D102


OnItsWay = TypeVar("OnItsWay", bound=Flight)


@dataclass(frozen=True)
class Landed:
    """Replies to an order that are in and that no window has taken yet.

    due: the tick at which they came. finite: bool [k]. spoiled: bool [k], those whose failure is no divergence. nbytes,
    queries: int64 [k] and [k, 3], as of `JobResult`. beside: what else an engine keeps of each; empty: nothing.
    """

    orders: Order
    due: int
    replies: Replies
    finite: Tensor
    spoiled: Tensor
    nbytes: Tensor
    queries: Tensor
    beside: tuple[object, ...] = ()

    def where(self, kept: Tensor) -> Landed:
        """Those where `kept`, bool [k], says so."""
        rows = {name: getattr(self, name)[kept] for name in ("finite", "spoiled", "nbytes", "queries")}
        beside = tuple(one for one, keep in zip(self.beside, kept.tolist(), strict=bool(self.beside)) if keep)
        return replace(self, replies=self.replies.where(kept), beside=beside, **rows)


class Clock(ABC):
    """What time it is, in ticks since a grid's run began, and what has come by then. real: it is the wall's."""

    real: ClassVar[bool]

    def __init__(self) -> None:
        self.start(0)

    @abstractmethod
    def _ticks(self) -> int:
        """What time it is, since whenever."""

    def start(self, now: int) -> None:
        """Say that it is tick `now`."""
        self._origin = self._ticks() - now

    def read(self) -> int:
        """What time it is."""
        return self._ticks() - self._origin

    @abstractmethod
    def pull(self, names: Sequence[str]) -> Iterable[Message]:
        """The replies to these messages that are there; none comes again."""

    @abstractmethod
    def wait(self, names: Sequence[str], pause: float, until: int | None) -> None:
        """Let time go by until one of these replies may be there, at most to tick `until`."""


class WallClock(Clock):
    """The wall's time: who waits looks again after a pause."""

    real = True

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        super().__init__()

    def _ticks(self) -> int:
        return time.monotonic_ns()

    def pull(self, names: Sequence[str]) -> Iterable[Message]:
        """See `Clock`."""
        return self._grid.pull_messages(names)

    def wait(self, names: Sequence[str], pause: float, until: int | None) -> None:  # noqa: ARG002
        """See `Clock`."""
        time.sleep(pause if until is None else max(0.0, min(pause, seconds(until - self.read()))))


class GridClock(Clock):
    """The time of a virtual grid, which goes on while somebody waits, and only then."""

    real = False

    def __init__(self, grid: VirtualGrid) -> None:
        self._grid = grid
        super().__init__()

    def _ticks(self) -> int:
        return self._grid.now

    def pull(self, names: Sequence[str]) -> Iterable[Message]:
        """See `Clock`."""
        there = self._grid.wait(names, self._grid.now)
        return self._grid.pull_messages(there) if there else ()

    def wait(self, names: Sequence[str], pause: float, until: int | None) -> None:  # noqa: ARG002
        """See `Clock`."""
        self._grid.wait(names, None if until is None else until + self._origin)


class GridWindows(ABC, Generic[OnItsWay]):
    """Takes orders, sends each node those of its clients, and hands back the replies: an `Engine` but for `submit`.

    A reply has arrived when it is first seen. now: the tick as last looked at; while a time is waited for, not beyond
    it. in_flight: clients at work. ledger: payload bytes, as in one process. trace: who did what.
    """

    def __init__(self, grid: Grid, clock: Clock, aggregator: Aggregator, population: int, timeout: float) -> None:
        self.grid, self.clock, self.aggregator, self.timeout = grid, clock, aggregator, timeout
        self.now = 0
        self.ledger = Ledger()
        self.trace = Trace(population)
        self._begin()

    def _begin(self) -> None:
        """Nobody is at work, and nobody is known to be there."""
        self.in_flight = 0
        self._idle = np.zeros(len(self.trace.participation), dtype=np.bool_)
        self._flights: dict[Sent, OnItsWay] = {}
        self._landed: dict[str, list[Landed]] = defaultdict(list)  # by action
        self._latest: Order | None = None
        self._opened: int | None = None
        self._heard = self.now

    @abstractmethod
    def _land(self, arrived: Sequence[tuple[OnItsWay, Message]]) -> None:
        """Put what has come by, until a window takes it; what is not what was asked for has failed."""

    @abstractmethod
    def _nothing(self, orders: Order) -> dict[str, Tensor]:
        """The payload of no reply, [0, ...] by name."""

    def free(self) -> Free:
        """Who could start now: whoever is not at work."""
        return Free(self._idle, int(self._idle.sum()))

    def declared(self, orders: Order) -> None:  # noqa: ARG002
        """Nobody knows how long an order takes a real client."""
        return

    def collect(self, window: Window, round: int, until: int | None = None) -> Replies | None:  # noqa: A002
        """Wait for the window's close and return the replies that arrived in it.

        The window is about the action of the last orders. round: the server's. Where the window is still open at tick
        `until`, None is returned, and the next call goes on with the same window. StalledError: it will never close.
        GridError: a node has failed, or nobody has answered for too long.
        """
        orders = self._latest
        if orders is None:
            raise GridError("no order is on its way; submit one first")
        opened = self._opened = self.now if self._opened is None else self._opened
        length = None
        if not isinstance(window, Enough):
            length = window.seconds if isinstance(window, Every) else window.deadline
        end = None if length is None else opened + ticks(length)
        self._hold_closable(window, orders)
        for pause in pauses():
            looks = self._looks(window, orders)
            ends = (end, until, None if looks is None or looks <= self.now else looks)
            stop = min((tick for tick in ends if tick is not None), default=None)
            self._look(stop)
            in_time = until is None or self.now <= until
            if in_time and (self._is_full(window, orders) or (end is not None and self.now >= end)):
                break
            if until is not None and self.now >= until:
                return None
            if end is None:
                self._hold_alive(opened if isinstance(window, All) else max(opened, self._heard))
            self._pause(pause, stop)
        self._opened = None
        replies = self._take(window, orders, round)
        if orders.late == "cancel":
            self._cancel(orders)
        return replies

    def settled(self) -> bool:
        """Whether no reply that is in waits for another window."""
        return not any(self._landed.values())

    def _hold_closable(self, window: Window, orders: Order) -> None:
        """Refuse a window that such clients cannot have."""

    def _hold_alive(self, since: int) -> None:
        """Refuse to wait on after too long a silence, where nothing else ends it."""

    def _pause(self, pause: float, stop: int | None) -> None:
        """Wait a little, at most to tick `stop`."""
        self.clock.wait([sent.name for sent in self._flights], pause, stop)

    def _look(self, stop: int | None) -> None:
        """Read the clock, at most to tick `stop`, and take in the replies that have come."""
        clock = self.clock.read()
        self.now = max(self.now, clock if stop is None else min(clock, stop))
        arrived = self._arrived(self._flights)
        if arrived:
            self._land(arrived)
            self._heard = self.now

    def _arrived(self, flights: dict[Sent, OnItsWay]) -> list[tuple[OnItsWay, Message]]:
        """Take the flights that are answered out of these, each with its reply; what answers nothing is a stray."""
        found = list[tuple[OnItsWay, Message]]()
        for reply in self.clock.pull([sent.name for sent in flights]) if flights else ():
            sent = answered(reply, flights)
            if sent is None:
                self._tell(f"a reply of node {reply.metadata.src_node_id} answers nothing that it was sent")
                self.trace.strays += 1
            else:
                found.append((flights.pop(sent), reply))
        return found

    def _tell(self, text: str) -> None:
        """Keep what is wrong with a reply."""
        self.trace.complained(text)

    def _looks(self, window: Window, orders: Order) -> int | None:
        """When a window is to look who is late; None: when all are in."""
        landed = self._landed[orders.action]
        if not isinstance(window, Enough) or self._opened is None or not landed:
            return None
        return window.end(self._opened, min(one.due for one in landed))

    def _does_without(self, window: Window, orders: Order) -> bool:
        """Whether it has looked, and can do without whoever was late then."""
        looks = self._looks(window, orders)
        if not isinstance(window, Enough) or looks is None or self.now < looks:
            return False
        in_time = [landed.replies.clients for landed in self._landed[orders.action] if landed.due <= looks]
        return window.without(set(orders.clients.tolist()).difference(torch.cat(in_time).tolist()))

    def _is_full(self, window: Window, orders: Order) -> bool:
        """Whether the window need not stay open for its time. StalledError: it has none and nobody can fill it."""
        if isinstance(window, Every):
            return False
        arrived = sum(len(landed.replies) for landed in self._landed[orders.action])
        if (isinstance(window, First) and arrived >= window.count) or self._does_without(window, orders):
            return True
        if any(flight.orders.action == orders.action for flight in self._flights.values()):
            return False
        if isinstance(window, All | Enough) or orders.late == "cancel":
            return True
        if window.deadline is None:
            self._unfillable(arrived, window.count)
        return False

    def _unfillable(self, arrived: int, wanted: int) -> None:
        """Nobody is at work, and a window without a deadline waits for more replies."""
        text = f"{arrived} replies are in and nobody is at work: a window that waits for {wanted} never closes"
        raise StalledError(text)

    def _take(self, window: Window, orders: Order, round: int) -> Replies:  # noqa: A002
        """The replies that the window holds, by the time of their arrival, ties by client; counted."""
        ours = self._landed.pop(orders.action, [])
        if not ours:
            return self._silence(orders, round)
        due = np.concatenate([np.full(len(landed.replies), landed.due) for landed in ours])
        clients = torch.cat([landed.replies.clients for landed in ours]).numpy()
        count = window.count if isinstance(window, First) else len(clients)
        taken = torch.zeros(len(clients), dtype=torch.bool)
        taken[np.lexsort((clients, due))[:count]] = True
        parts = []
        for landed, kept in zip(ours, torch.split(taken, [len(landed.replies) for landed in ours]), strict=True):
            if bool(kept.any()):
                parts.append(self._settle(landed.where(kept), round))
            if not bool(kept.all()):
                self._landed[orders.action].append(landed.where(~kept))
        return joined(parts)

    def _settle(self, landed: Landed, round: int) -> Replies:  # noqa: A002
        """Count replies, free their clients, and leave out what is not finite."""
        clients, staleness = landed.replies.clients, round - landed.orders.round
        self._release(clients)
        failed = clients[~landed.finite]
        queries, extra, untold = landed.queries.sum(dim=0).tolist()
        self.ledger.queries += queries
        self.ledger.extra_queries += extra
        self.ledger.failed_queries += untold
        if landed.orders.counts:
            for client, finite in zip(clients.tolist(), landed.finite.tolist(), strict=True):
                self.trace.took(client, staleness, landed.due, self.now, finite=finite)
            self.ledger.clients += len(clients)
            self.ledger.failed += len(failed)
            self.ledger.late += len(clients) * (staleness > 0)
            self.ledger.staleness += len(clients) * staleness
        self.ledger.bytes_up += int((landed.nbytes * landed.orders.peers_of(clients)).sum())
        spoiled = int(landed.spoiled.sum())
        return replace(landed.replies.where(landed.finite), failed=failed, round=round, spoiled=spoiled)

    def _silence(self, orders: Order, round: int) -> Replies:  # noqa: A002
        """No replies, in the shape that some would have."""
        nobody = torch.zeros(0, dtype=torch.int64)
        payload = self._nothing(orders)
        return Replies(nobody, payload, {}, nobody, nobody, round, nobody, nobody, [], [], self.aggregator)

    def _cancel(self, orders: Order) -> None:
        """Stop to wait for who is late; nodes finish in vain what they have begun."""
        late = {name: flight for name, flight in self._flights.items() if flight.orders.action == orders.action}
        for name in late:
            del self._flights[name]
        stopped = [flight.clients for flight in late.values()]
        stopped += [landed.replies.clients for landed in self._landed.pop(orders.action, [])]
        for clients in stopped:
            for client in clients.tolist():
                self.trace.cancelled(client, self.now)
            self._release(clients)
            self.ledger.late += len(clients)

    def _release(self, clients: Tensor) -> None:
        self._idle[clients.numpy()] = True
        self.in_flight -= len(clients)
