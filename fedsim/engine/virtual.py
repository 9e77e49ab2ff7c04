"""The engine of this process: a virtual clock, a queue of replies, and work that is done when a window needs it.

A reply is computed when it is first needed, together with the earliest due others that may be executed with it, up to
the memory budget; so an asynchronous run, too, is executed in stacked cohorts. When that happens changes nothing: a
reply depends on its order, its client's data and what the client remembers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import repeat
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.clock import SECOND, seconds, ticks
from fedsim.core.errors import StalledError
from fedsim.core.graph import storable
from fedsim.devices import Fleet
from fedsim.devices.faults import WELL, Fate, Fault, Injection
from fedsim.engine.assignment import Assignment
from fedsim.engine.executor import Executor, Work
from fedsim.engine.ledger import Ledger
from fedsim.engine.trace import Trace
from fedsim.exchange.actions import SCORE, UTILITY
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.messages import Free, Order, Replies, finite_rows, payload_bytes
from fedsim.exchange.windows import Every, First, Window

CLIENT = attrgetter("client")
NO_MATTER = np.zeros(0)
NOBODY = torch.zeros(0, dtype=torch.int64)


@storable("flight")
class _Flight:
    """One client at work on an order; with its row of the results once these are computed.

    fault: the kind of fault on demand that befalls it, None if none does.
    """

    __slots__ = ("assignment", "client", "due", "fault", "number", "orders", "row", "start", "steps", "work")

    def __init__(
        self, assignment: Assignment, client: int, steps: int, start: int, due: int, number: int, fault: str | None
    ) -> None:
        self.assignment, self.orders = assignment, assignment.orders[0]
        self.client, self.steps = client, steps
        self.start, self.due, self.number, self.fault = start, due, number, fault
        self.work: Work | None = None
        self.row = 0


_Queued = tuple[int, int, int, _Flight]
"""When a flight is due, its client and its number, which tell all apart, so that flights are never compared."""


@storable("flights")
@dataclass
class _Sky:
    """The flights of one action.

    pending: by time of arrival, a heap. waiting: those not yet computed, by what may be executed together, then by
    number. latest: what the last orders came to. opened: when the window was opened that is open. nothing: the payload
    of no reply, [0, ...] by name, once it is known.
    """

    pending: list[_Queued] = field(default_factory=list)
    waiting: dict[Hashable, dict[int, _Flight]] = field(default_factory=dict)
    latest: Assignment | None = None
    opened: int | None = None
    nothing: dict[str, Tensor] | None = None


class VirtualEngine:
    """Takes orders, moves virtual time and hands back replies; see `fedsim.running.simulation`.

    fleet: the clients' devices. faults: what goes wrong on purpose; None: nothing does. now: the virtual clock, in
    ticks. in_flight: clients at work. ledger: what crossed so far. trace: who did what.
    """

    def __init__(
        self, executor: Executor, aggregator: Aggregator, fleet: Fleet, faults: Injection | None = None
    ) -> None:
        self.executor, self.aggregator, self.fleet, self.faults = executor, aggregator, fleet, faults
        self._kinds: Mapping[str, Fault] = {} if faults is None else faults.kinds
        self.now = 0
        self.ledger = Ledger()
        self.trace = Trace(executor.problem.num_clients)
        self._sizes = executor.problem.sizes.numpy()
        self._begin()

    def _begin(self) -> None:
        """Nobody is at work."""
        self._idle = np.ones(len(self._sizes), dtype=np.bool_)
        self._idle_count = len(self._sizes)
        self.in_flight = 0
        self._skies: dict[str, _Sky] = {}
        self._action = ""
        self._failing: list[tuple[int, int, _Flight]] = []  # (tick, client, ...), a heap: they will break off then
        self._mending: list[tuple[int, int]] = []  # (tick, client), a heap: they will be free again
        self._copies: list[tuple[int, int, str]] = []  # (tick, bytes, fault), a heap: replies that will come again
        self._stored = 0  # replies that are computed and not yet collected
        self._sent = 0  # orders to single clients so far

    @property
    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return seconds(self.now)

    def free(self) -> Free:
        """Who could start now."""
        available = self.fleet.available(self.now)
        if available is None:
            return Free(self._idle.copy(), self._idle_count)
        mask = self._idle & available
        return Free(mask, int(mask.sum()))

    def declared(self, orders: Order) -> Tensor | None:
        """The seconds that this order takes its clients, float64 [C]; None where that is random."""
        assignment = self.executor.assign(orders)
        work = np.zeros(self.executor.problem.num_clients)
        clients = orders.clients.numpy()
        work[clients] = self.executor.work(assignment).cpu().numpy()
        down = _of_each(orders)
        if not isinstance(down, int):
            everybody = np.zeros(self.executor.problem.num_clients)
            everybody[clients] = down
            down = everybody
        known = self.fleet.declared(work, down, assignment.encoded)
        return None if known is None else torch.from_numpy(known[clients] / SECOND)

    def submit(self, orders: Order) -> None:
        """Send orders; the clients begin at once."""
        assignment = self.executor.assign(orders)
        sky = self._skies.setdefault(orders.action, _Sky())
        sky.latest, self._action = assignment, orders.action
        clients = orders.clients.numpy()
        if not len(clients):
            return
        self.ledger.bytes_down += orders.total_bytes
        work = self.executor.work(assignment).cpu().numpy() if self.fleet.counts_steps else NO_MATTER
        durations = self.fleet.durations(clients, work, _of_each(orders), assignment.encoded, orders.draws)
        failures = self.fleet.failures(clients, durations, orders.draws)
        self._idle[clients] = False
        self._idle_count -= len(clients)
        self.in_flight += len(clients)
        fates: Iterable[Fate] = repeat(WELL)
        if self.faults is not None and orders.action != SCORE:
            fates = self.faults.fates(clients, durations, orders.draws)
        fails = repeat(-1) if failures is None else failures.tolist()
        alike, steps = self.executor.stackable(orders), assignment.steps.tolist()
        each = zip(clients.tolist(), steps, durations.tolist(), fails, fates, strict=False)
        for client, taken, duration, failure, fate in each:
            self._sent += 1
            fault, delay, ends = fate if failure < 0 else (None, 0, failure)
            due = self.now + duration + delay
            if orders.counts:
                self.trace.began(client, orders.round, self.now, due)
            flight = _Flight(assignment, client, taken, self.now, due, self._sent, fault)
            if ends < 0:
                heappush(sky.pending, (due, client, flight.number, flight))
            else:
                heappush(self._failing, (self.now + ends, client, flight))
            if ends < 0 or self._works(flight):
                sky.waiting.setdefault(alike, {})[flight.number] = flight

    def collect(self, window: Window, round: int, until: int | None = None) -> Replies | None:  # noqa: A002
        """Move time to the window's close and return the replies that arrived in it.

        The window is about the action of the last orders. round: the server's. Where the window is still open at tick
        `until`, or cannot close before other clients start, time moves to there, or to where one may become free, None
        is returned, and the next call goes on with the same window. StalledError: it will never close.
        """
        sky = self._skies[self._action]
        opened = self.now if sky.opened is None else sky.opened
        taken = self._take(sky, window, opened)
        closing = self._closing(sky, window, opened, taken)
        if closing is None or (until is not None and closing > until):
            for flight in taken:
                heappush(sky.pending, (flight.due, flight.client, flight.number, flight))
            sky.opened = opened
            if closing is not None and until is not None:
                self._move(until)
            elif not self.rest(until):
                raise StalledError(
                    f"{len(taken)} clients are left at work and no other can start: a window that waits for more "
                    f"replies never closes (virtual time {self.time:g} s)"
                )
            return None
        sky.opened = None
        self._move(closing)
        replies = self._replies(sky, taken, round)
        if sky.latest is not None and sky.latest.orders[0].late == "cancel":
            self._cancel(sky)
        return replies

    def settled(self) -> bool:
        """Whether nothing more is due at this very tick."""
        return not any(sky.pending and sky.pending[0][0] <= self.now for sky in self._skies.values())

    def rest(self, until: int | None = None) -> bool:
        """Let time pass, at most to `until`, to where somebody may become free; False: nobody ever will."""
        times = [heap[0][0] for heap in (self._failing, self._mending) if heap]
        wakes = self.fleet.wakes(self.now) if self._idle_count else None
        times += [] if wakes is None else [wakes]
        if not times:
            return False
        self._move(min(times + ([] if until is None else [until])))
        return True

    def snapshot(self) -> dict[str, Any]:
        """Clock, ledger, flights with what is computed of them, and what the clients remember.

        What is not of the store goes on changing with the engine.
        """
        return {
            "now": self.now,
            "ledger": asdict(self.ledger),
            "trace": self.trace,
            "queue": {name: getattr(self, name) for name in _QUEUE},
            "store": self.executor.store.snapshot(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot; its queue may be None, if nobody was at work."""
        self.now, self.ledger, self.trace = saved["now"], Ledger(**saved["ledger"]), deepcopy(saved["trace"])
        self._begin()
        for name, value in deepcopy(saved["queue"] or {}).items():
            setattr(self, name, value)
        self.executor.store.restore(saved["store"])

    def describe(self) -> dict[str, Any]:
        """How orders are executed, for the run's config.toml."""
        executor = self.executor
        return {
            "executor": executor.name,
            "network": type(executor.network).__name__,
            "chunk": executor.chunk,
            "device": str(executor.problem.device),
        }

    def _take(self, sky: _Sky, window: Window, opened: int) -> list[_Flight]:
        """Take from the queue what the window would hold, if nothing else were sent."""
        pending = sky.pending
        limit = window.seconds if isinstance(window, Every) else window.deadline
        last = None if limit is None else opened + ticks(limit)
        count = window.count if isinstance(window, First) else len(pending)
        taken: list[_Flight] = []
        while pending and len(taken) < count and (last is None or pending[0][0] <= last):
            taken.append(heappop(pending)[3])
        return taken

    def _closing(self, sky: _Sky, window: Window, opened: int, taken: Sequence[_Flight]) -> int | None:
        """When the window closes that these replies are taken in; None: never, as things are."""
        latest = taken[-1].due if taken else opened
        if isinstance(window, Every):
            return opened + ticks(window.seconds)
        if isinstance(window, First) and len(taken) == window.count:
            return max(self.now, latest)
        deadline = None if window.deadline is None else opened + ticks(window.deadline)
        keeps = isinstance(window, First) and sky.latest is not None and sky.latest.orders[0].late == "keep"
        if sky.pending or keeps:
            return deadline
        # Everybody has answered, or will fail: the server sees a connection break.
        ends = [latest, self.now, *(tick for tick, _, flight in self._failing if flight.orders.action == self._action)]
        return max(ends) if deadline is None else min(max(ends), deadline)

    def _move(self, now: int) -> None:
        """Set the clock; clients break off, and those that have are repaired; replies come again."""
        self.now = now
        unheard: dict[str, list[_Flight]] = {}
        while self._failing and self._failing[0][0] <= now:
            tick, client, flight = heappop(self._failing)
            self.in_flight -= 1
            repair = self._broken_off(flight, tick)
            if repair is not None:
                heappush(self._mending, (tick + repair, client))
            if self._works(flight):
                unheard.setdefault(flight.orders.action, []).append(flight)
        while self._mending and self._mending[0][0] <= now:
            self._release([heappop(self._mending)[1]])
        # Before they get other orders: what they remember must have moved on.
        for action, flights in unheard.items():
            self._compute(self._skies[action], flights)
            self._stored -= len(flights)
        self._drop_copies()

    def _works(self, flight: _Flight) -> bool:
        """Whether a client that will not be heard does its work to the end."""
        return flight.fault is not None and self._kinds[flight.fault].works

    def _broken_off(self, flight: _Flight, tick: int) -> int | None:
        """Note that an order has ended without a reply. Ticks after which its client is free again; None: never."""
        fault = None if flight.fault is None else self._kinds[flight.fault]
        repair = self.fleet.repair if fault is None else fault.repair
        if flight.fault is not None:
            self._show(flight.fault)
        if fault is None or fault.crashes:
            self.ledger.crashed += 1
            self.ledger.lost += repair is None
            self.trace.failed(flight.client, tick, lost=repair is None)
        else:
            self.trace.dropped(flight.client, tick)
        return repair

    def _drop_copies(self) -> None:
        """Take in what has come again by now: its order is answered, so that all it does is to cost bytes."""
        while self._copies and self._copies[0][0] <= self.now:
            _, nbytes, fault = heappop(self._copies)
            self.ledger.bytes_up += nbytes
            self._show(fault)

    def _show(self, fault: str) -> None:
        """Count a fault on demand."""
        self.ledger.faults += 1
        self.trace.faults[fault] += 1

    def _release(self, clients: list[int]) -> None:
        self._idle[clients] = True
        self._idle_count += len(clients)

    def _cancel(self, sky: _Sky) -> None:
        """Tell the clients that are still at work to stop; their work is lost."""
        stopped = [client for _, client, _, _ in sky.pending]
        for *_, flight in sky.pending:
            if flight.fault is not None and self._kinds[flight.fault].delay:
                self._show(flight.fault)
        failing = [entry for entry in self._failing if entry[2].orders.action == self._action]
        stopped += [client for _, client, _ in failing]
        for client in stopped:
            self.trace.cancelled(client, self.now)
        self._release(stopped)
        self.in_flight -= len(stopped)
        self.ledger.late += len(stopped)
        self._failing = [entry for entry in self._failing if entry[2].orders.action != self._action]
        heapify(self._failing)
        sky.pending.clear()
        sky.waiting.clear()

    def _replies(self, sky: _Sky, taken: list[_Flight], round: int) -> Replies:  # noqa: A002
        """The replies of flights that have landed: computed if they are not yet, counted, and put in order."""
        assert sky.latest is not None
        self._compute(sky, taken)
        self._release([flight.client for flight in taken])
        self.in_flight -= len(taken)
        taken.sort(key=CLIENT)
        bad, landed, spoiled = list[_Flight](), list[_Flight](), 0
        for flight in taken:
            assert flight.work is not None
            finite = flight.work.sound or bool(flight.work.finite[flight.row])
            if flight.fault is not None:
                usable = self._befall(flight, flight.work.row(flight.row), flight.fault)
                spoiled += finite and not usable
                finite = usable
            (landed if finite else bad).append(flight)
            self.ledger.bytes_up += flight.work.crossed[flight.row]
            queries, extra = flight.work.asked[flight.row]
            self.ledger.queries += queries
            self.ledger.extra_queries += extra
            if not flight.orders.counts:
                continue
            self.ledger.clients += 1
            self.ledger.failed += not finite
            self.trace.took(flight.client, round - flight.orders.round, flight.due, self.now, finite=finite)
            self.ledger.late += flight.orders.round < round
            self.ledger.staleness += round - flight.orders.round
        self._drop_copies()
        self._stored -= len(taken)
        clients = _integers([flight.client for flight in landed])
        orders = {id(flight.orders): flight.orders for flight in landed}
        places = {own: place for place, own in enumerate(orders)}
        return Replies(
            clients=clients,
            payload=_gathered(landed, "payload") if landed else self._nothing(sky),
            metrics=_gathered(landed, "metrics") if landed else {},
            examples=torch.from_numpy(self._sizes[clients.numpy()]),
            failed=_integers([flight.client for flight in bad]) if bad else NOBODY,
            round=round,
            versions=_integers([flight.orders.round for flight in landed]),
            durations=_integers([flight.due - flight.start for flight in landed]),
            orders=list(orders.values()),
            origin=[places[id(flight.orders)] for flight in landed],
            aggregator=self.aggregator,
            spoiled=spoiled,
        )

    def _befall(self, flight: _Flight, work: Work, kind: str) -> bool:
        """Have a reply arrive as its fault leaves it, and tell whether it can be used. work: its own, C = 1."""
        fault, sent = self._kinds[kind], {name: rows[0] for name, rows in work.payload.items() if name != UTILITY}
        told = fault.told(sent)
        if fault.again is not None:
            heappush(self._copies, (flight.due + fault.again, work.crossed[0], kind))
        if fault.delay or told is not sent:
            self._show(kind)
        if told is not sent:
            fits = all(told[name].shape == rows.shape for name, rows in sent.items())
            payload = {**work.payload, **{name: rows.unsqueeze(0) for name, rows in told.items()}}
            work = replace(work, payload=payload, finite=finite_rows(list(payload.values())) & fits)
            self.ledger.bytes_up += payload_bytes(told) - payload_bytes(sent)
        flight.work, flight.row = work, 0
        return work.sound

    def _nothing(self, sky: _Sky) -> dict[str, Tensor]:
        """The payload of no reply, [0, ...] by name."""
        if sky.nothing is None:
            assert sky.latest is not None
            nobody = torch.zeros(0, dtype=torch.int64, device=sky.latest.clients.device)
            sky.nothing = self.executor.execute(sky.latest[nobody]).payload
        return sky.nothing

    def _compute(self, sky: _Sky, needed: Iterable[_Flight]) -> None:
        """Execute these flights, and with them the earliest due others that they may be executed with."""
        missing = [flight for flight in needed if flight.work is None]
        while missing:
            key = self.executor.stackable(missing[0].orders)
            waiting = sky.waiting[key]
            own = [flight for flight in missing if flight.number in waiting]
            group, rest = own, [flight for flight in missing if flight.number not in waiting]
            room = self.executor.together - len(own) - self._stored
            if room > 0 and len(waiting) > len(own) and own[0].orders.late == "keep":
                mine = {flight.number for flight in own}
                others = [flight for flight in waiting.values() if flight.number not in mine]
                if len(others) > room:
                    others = sorted(others, key=attrgetter("due", "client"))[:room]
                group = own + others
            self._execute(group)
            for flight in group:
                del waiting[flight.number]
            if not waiting:
                del sky.waiting[key]
            missing = rest

    def _execute(self, group: list[_Flight]) -> None:
        group.sort(key=CLIENT)
        orders = {id(flight.orders): flight.orders for flight in group}
        places = {own: place for place, own in enumerate(orders)}
        device = self.executor.problem.device
        origin = None
        if len(orders) > 1:
            origin = torch.tensor([places[id(flight.orders)] for flight in group], device=device)
        steps = torch.tensor([flight.steps for flight in group], dtype=torch.int64, device=device)
        work = self.executor.execute(
            Assignment(
                orders=tuple(orders.values()),
                origin=origin,
                clients=torch.tensor([flight.client for flight in group], dtype=torch.int64, device=device),
                steps=steps,
                reply=group[0].assignment.reply,
                encoded=group[0].assignment.encoded,
                queries=group[0].assignment.queries,
            )
        )
        self._stored += len(group)
        for row, flight in enumerate(group):
            flight.work, flight.row = work, row


_QUEUE = (
    "in_flight",
    "_idle",
    "_idle_count",
    "_skies",
    "_action",
    "_failing",
    "_mending",
    "_copies",
    "_stored",
    "_sent",
)
"""What the engine knows of the clients at work."""


def _gathered(flights: Sequence[_Flight], part: Literal["payload", "metrics"]) -> dict[str, Tensor]:
    """The flights' rows of the named tensors of their results, in the flights' order."""
    if len(flights) == 1:
        work, row = flights[0].work, flights[0].row
        return {name: values[row : row + 1] for name, values in getattr(work, part).items()}
    members: dict[Work, list[int]] = {}
    for place, flight in enumerate(flights):
        assert flight.work is not None
        members.setdefault(flight.work, []).append(place)
    rows = [flight.row for flight in flights]
    first = next(iter(members))
    if len(members) == 1:
        return {name: _rows(values, rows) for name, values in getattr(first, part).items()}
    back = torch.tensor([place for places in members.values() for place in places]).argsort()
    found = {}
    for name, own in getattr(first, part).items():
        held = [_rows(getattr(work, part)[name], [rows[place] for place in places]) for work, places in members.items()]
        found[name] = torch.cat(held)[back.to(own.device)]
    return found


def _of_each(orders: Order) -> int | NDArray[np.float64]:
    """The bytes that each client is sent: one number, or [C]."""
    nbytes = orders.nbytes
    return nbytes.double().cpu().numpy() if isinstance(nbytes, Tensor) else nbytes


def _integers(values: list[int]) -> Tensor:
    # Through NumPy, which reads a short list in a third of the time.
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _rows(values: Tensor, rows: list[int]) -> Tensor:
    """Rows of a tensor; without a copy where they are all in order."""
    if len(rows) == values.shape[0] and rows == list(range(len(rows))):
        return values
    return values[_integers(rows).to(values.device)]
