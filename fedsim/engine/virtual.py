"""The engine of this process: a virtual clock, a queue of replies, and work that is done when a window needs it.

A reply is computed when it is first needed, together with the earliest due others that may be executed with it, up to
the memory budget; so an asynchronous run, too, is executed in stacked cohorts. When that happens changes nothing: a
reply depends on its order, its client's data and what the client remembers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from heapq import heapify, heappop, heappush
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.clock import SECOND, seconds
from fedsim.core.errors import StalledError
from fedsim.devices import Fleet
from fedsim.devices.faults import WELL, Fate, Fault, Injection
from fedsim.engine.executor import Executor
from fedsim.engine.flights import CLIENT, Flight, Flights, integers, job_of, landed, origins
from fedsim.engine.job import Job, JobResult
from fedsim.engine.ledger import Ledger
from fedsim.engine.store import Memories, Recalled
from fedsim.engine.trace import Trace
from fedsim.exchange.actions import SCORE, UTILITY
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.forms import forms_of, misfit
from fedsim.exchange.messages import Free, Order, Replies, finite_rows, payload_bytes
from fedsim.exchange.transforms import PREFIX
from fedsim.exchange.windows import Window

NO_MATTER = np.zeros(0)
NOBODY = torch.zeros(0, dtype=torch.int64)


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
        self._flights: dict[str, Flights] = {}
        self._action = ""
        self._failing: list[tuple[int, int, Flight]] = []  # (tick, client, ...), a heap: they will break off then
        self._mending: list[tuple[int, int]] = []  # (tick, client), a heap: they will be free again
        self._copies: list[tuple[int, int, str]] = []  # (tick, bytes, fault), a heap: replies that will come again
        self._stored = 0  # replies that are computed and not yet collected
        self._ahead: dict[int, dict[str, Tensor]] = {}  # what clients remember who are computed, and still at work
        self._before: dict[int, dict[str, Tensor]] = {}  # by flight, what transforms remembered before a doubtful reply
        self._sent = 0  # orders to single clients so far
        self._tail = 0  # ticks between the last reply of the last orders and the close of their window
        self._ended = 0  # when the last order broke off

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
        job = self.executor.assign(orders)
        work = np.zeros(self.executor.problem.num_clients)
        clients = orders.clients.numpy()
        work[clients] = self.executor.work(job).cpu().numpy()
        down = _of_each(orders)
        if not isinstance(down, int):
            everybody = np.zeros(self.executor.problem.num_clients)
            everybody[clients] = down
            down = everybody
        up = _up(job, orders)
        if not isinstance(up, int):
            everybody = np.zeros(self.executor.problem.num_clients)
            everybody[clients] = up
            up = everybody
        known = self.fleet.declared(work, down, up)
        return None if known is None else torch.from_numpy(known[clients] / SECOND)

    def submit(self, orders: Order, head: int = 0, tail: int = 0) -> None:
        """Send orders; the clients begin so many ticks later, and their window closes so many after the last of them.

        Only a window that waits for all may close later.
        """
        self._tail = tail
        job = self.executor.assign(orders)
        flights = self._flights.setdefault(orders.action, Flights())
        flights.latest, self._action = job, orders.action
        clients = orders.clients.numpy()
        if not len(clients):
            return
        self.ledger.bytes_down += orders.total_bytes
        work = self.executor.work(job).cpu().numpy() if self.fleet.counts_steps else NO_MATTER
        durations = self.fleet.durations(clients, work, _of_each(orders), _up(job, orders), orders.turn)
        failures = self.fleet.failures(clients, durations, orders.turn)
        self._idle[clients] = False
        self._idle_count -= len(clients)
        self.in_flight += len(clients)
        fates: Iterable[Fate] = repeat(WELL)
        if self.faults is not None and orders.action != SCORE:
            fates = self.faults.fates(clients, durations, orders.turn)
        fails = repeat(-1) if failures is None else failures.tolist()
        peers = orders.peers.tolist() if isinstance(orders.peers, Tensor) else repeat(orders.peers)
        alike, steps = self.executor.stackable(orders), job.cost.steps.tolist()
        each = zip(clients.tolist(), steps, durations.tolist(), peers, fails, fates, strict=False)
        for client, taken, duration, others, failure, fate in each:
            self._sent += 1
            fault, delay, ends = fate if failure < 0 else (None, 0, failure)
            due = self.now + head + duration + delay
            if orders.counts:
                self.trace.began(client, orders.round, self.now, due)
            flight = Flight(job, client, taken, self.now, due, self._sent, fault, peers=others)
            if ends < 0:
                flights.put(flight)
            else:
                heappush(self._failing, (self.now + head + ends, client, flight))
            if ends < 0 or self._works(flight):
                flights.waiting.setdefault(alike, {})[flight.number] = flight

    def collect(self, window: Window, round: int, until: int | None = None) -> Replies | None:  # noqa: A002
        """Move time to the window's close and return the replies that arrived in it.

        The window is about the action of the last orders. round: the server's. Where the window is still open at tick
        `until`, or cannot close before other clients start, time moves to there, or to where one may become free, None
        is returned, and the next call goes on with the same window. StalledError: it will never close.
        """
        flights = self._flights[self._action]
        opened = self.now if flights.opened is None else flights.opened
        taken = flights.take(window, opened)
        failing = (tick for tick, _, flight in self._failing if flight.order.action == self._action)
        if self._tail:  # of which a part may have gone by
            closing = flights.closing(window, opened, taken, max(opened, self._ended), failing)
            closing = None if closing is None else closing + self._tail
        else:
            closing = flights.closing(window, opened, taken, self.now, failing)
        if closing is None or (until is not None and closing > until):
            for flight in taken:
                flights.put(flight)
            flights.opened = opened
            if closing is not None and until is not None:
                self._move(until)
            elif not self.rest(until):
                raise StalledError(
                    f"{len(taken)} clients are left at work and no other can start: a window that waits for more "
                    f"replies never closes (virtual time {self.time:g} s)"
                )
            return None
        flights.opened = None
        self._move(closing)
        replies = self._replies(flights, taken, round)
        if flights.late == "cancel":
            self._cancel(flights)
        return replies

    def settled(self) -> bool:
        """Whether nothing more is due at this very tick."""
        return not any(flights.pending and flights.pending[0][0] <= self.now for flights in self._flights.values())

    def rest(self, until: int | None = None) -> bool:
        """Let time pass, at most to `until`, to where somebody may become free; False: nobody ever will."""
        times = [heap[0][0] for heap in (self._failing, self._mending) if heap]
        wakes = self.fleet.wakes(self.now) if self._idle_count else None
        times += [] if wakes is None else [wakes]
        if not times:
            return False
        self._move(min(times + ([] if until is None else [until])))
        return True

    def memories(self) -> Memories:
        """What clients remember; see `fedsim.engine.personal.Remembers`."""
        return Recalled(self.executor.store, dict(self._ahead)) if self._ahead else self.executor.store

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

    def _move(self, now: int) -> None:
        """Set the clock; clients break off, and those that have are repaired; replies come again."""
        self.now = now
        unheard: dict[str, list[Flight]] = {}
        while self._failing and self._failing[0][0] <= now:
            tick, client, flight = heappop(self._failing)
            self._ended = tick
            self.in_flight -= 1
            repair = self._broken_off(flight, tick)
            if repair is not None:
                heappush(self._mending, (tick + repair, client))
            if self._works(flight):
                unheard.setdefault(flight.order.action, []).append(flight)
        while self._mending and self._mending[0][0] <= now:
            self._release([heappop(self._mending)[1]])
        # Before they get other orders: what they remember must have moved on.
        for action, flights in unheard.items():
            self._compute(self._flights[action], flights)
            for flight in flights:
                self._settle(flight, taken=False)
            self._catch_up(flights)
            self._stored -= len(flights)
        self._drop_copies()

    def _works(self, flight: Flight) -> bool:
        """Whether a client that will not be heard does its work to the end."""
        return flight.fault is not None and self._kinds[flight.fault].works

    def _broken_off(self, flight: Flight, tick: int) -> int | None:
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

    def _cancel(self, flights: Flights) -> None:
        """Tell the clients that are still at work to stop; their work is lost."""
        stopped = [client for _, client, _, _ in flights.pending]
        for *_, flight in flights.pending:
            if flight.fault is not None and self._kinds[flight.fault].delay:
                self._show(flight.fault)
        failing = [entry for entry in self._failing if entry[2].order.action == self._action]
        stopped += [client for _, client, _ in failing]
        for client in stopped:
            self.trace.cancelled(client, self.now)
        self._release(stopped)
        self.in_flight -= len(stopped)
        self.ledger.late += len(stopped)
        self._failing = [entry for entry in self._failing if entry[2].order.action != self._action]
        heapify(self._failing)
        flights.pending.clear()
        flights.waiting.clear()

    def _replies(self, flights: Flights, taken: list[Flight], round: int) -> Replies:  # noqa: A002
        """The replies of flights that have landed: computed if they are not yet, counted, and put in order."""
        assert flights.latest is not None
        self._compute(flights, taken)
        self._catch_up(taken)
        self._release([flight.client for flight in taken])
        self.in_flight -= len(taken)
        taken.sort(key=CLIENT)
        bad, good, spoiled = list[Flight](), list[Flight](), 0
        for flight in taken:
            assert flight.result is not None
            finite = flight.result.sound or bool(flight.result.finite[flight.row])
            queries, extra, untold = flight.result.asked[flight.row]
            if not finite and untold == queries > 0 and self.executor.problem.may_fail:
                spoiled += 1
            if flight.fault is not None:
                usable = self._befall(flight, flight.result.row(flight.row), flight.fault)
                self._settle(flight, taken=usable)
                spoiled += finite and not usable
                finite = usable
            (good if finite else bad).append(flight)
            self.ledger.bytes_up += flight.crossed * flight.peers
            self.ledger.queries += queries
            self.ledger.extra_queries += extra
            self.ledger.failed_queries += untold
            if not flight.order.counts:
                continue
            self.ledger.clients += 1
            self.ledger.failed += not finite
            self.trace.took(flight.client, round - flight.order.round, flight.due, self.now, finite=finite)
            self.ledger.late += flight.order.round < round
            self.ledger.staleness += round - flight.order.round
        self._drop_copies()
        self._stored -= len(taken)
        clients = integers([flight.client for flight in good])
        orders, origin = origins(good)
        return Replies(
            clients=clients,
            payload=landed(good, "payload") if good else self._nothing(flights),
            metrics=landed(good, "metrics") if good else {},
            examples=torch.from_numpy(self._sizes[clients.numpy()]),
            failed=integers([flight.client for flight in bad]) if bad else NOBODY,
            round=round,
            versions=integers([flight.order.round for flight in good]),
            durations=integers([flight.due - flight.start for flight in good]),
            orders=orders,
            origin=origin,
            aggregator=self.aggregator,
            spoiled=spoiled,
            encoded=integers([flight.crossed for flight in good]),
        )

    def _befall(self, flight: Flight, result: JobResult, kind: str) -> bool:
        """Have a reply arrive as its fault leaves it, and tell whether it can be used. result: its own, C = 1."""
        fault, sent = self._kinds[kind], {name: rows[0] for name, rows in result.payload.items() if name != UTILITY}
        told = fault.told(sent) if sent else sent  # nothing arrives as it is
        if fault.again is not None:
            heappush(self._copies, (flight.due + fault.again, result.crossed[0] * flight.peers, kind))
        if fault.delay or told is not sent:
            self._show(kind)
        if told is not sent:
            fits = misfit(forms_of(told), forms_of(sent)) is None
            payload = {**result.payload, **{name: rows.unsqueeze(0) for name, rows in told.items()}}
            result = replace(result, payload=payload, finite=finite_rows(list(payload.values()), result.finite) & fits)
            self.ledger.bytes_up += (payload_bytes(told) - payload_bytes(sent)) * flight.peers
        flight.result, flight.row = result, 0
        return result.sound

    def _keep_doubtful(self, group: Sequence[Flight]) -> None:
        """Note what transforms remember of clients whose replies may not be taken, and what clients do by it."""
        committed = self.executor.transforms.transforms and self.executor.client.commits
        names = [name for name in self.executor.store.shapes if committed or name.startswith(PREFIX)]
        doubtful = [flight for flight in group if flight.fault is not None]
        if not names or not doubtful:
            return
        rows = integers([flight.client for flight in doubtful]).to(self.executor.problem.device)
        found = {name: self.executor.store.look(name, rows)[0] for name in names}
        for row, flight in enumerate(doubtful):
            self._before[flight.number] = {name: kept[row] for name, kept in found.items()}

    def _settle(self, flight: Flight, *, taken: bool) -> None:
        """What is remembered of how a message crossed moves on if the server takes it, and else is as it was."""
        before = self._before.pop(flight.number, None)
        if before is not None and not taken:
            client = integers([flight.client]).to(self.executor.problem.device)
            self.executor.store.write(client, {name: kept.unsqueeze(0) for name, kept in before.items()})

    def _nothing(self, flights: Flights) -> dict[str, Tensor]:
        """The payload of no reply, [0, ...] by name."""
        if flights.nothing is None:
            assert flights.latest is not None
            nobody = torch.zeros(0, dtype=torch.int64, device=flights.latest.clients.device)
            flights.nothing = self.executor.execute(flights.latest[nobody]).payload
        return flights.nothing

    def _keep_back(self, early: Sequence[Flight]) -> None:
        """Note what clients remember who are about to be computed ahead of time."""
        if not early:
            return
        rows = integers([flight.client for flight in early]).to(self.executor.problem.device)
        found = {name: self.executor.store.look(name, rows)[0] for name in self.executor.store.shapes}
        for row, flight in enumerate(early):
            self._ahead[flight.client] = {name: kept[row] for name, kept in found.items()}

    def _catch_up(self, flights: Iterable[Flight]) -> None:
        """Forget that of clients who are no longer at work."""
        if self._ahead:
            for flight in flights:
                self._ahead.pop(flight.client, None)

    def _compute(self, flights: Flights, needed: Sequence[Flight]) -> None:
        """Execute these flights, and with them the earliest due others that they may be executed with."""
        missing = [flight for flight in needed if flight.result is None]
        while missing:
            key = self.executor.stackable(missing[0].order)
            group = flights.together(missing[0], missing, key, self.executor.together - self._stored)
            group.sort(key=CLIENT)
            if self.executor.keeps_models:  # which are judged between windows, and not ahead of their clients' replies
                now = {flight.number for flight in needed}
                self._keep_back([flight for flight in group if flight.number not in now])
            self._keep_doubtful(group)
            result = self.executor.execute(job_of(group, self.executor.problem.device))
            for client in sorted(result.said):
                self.trace.complained(f"client {client}: {result.said[client]}")
            self._stored += len(group)
            for row, flight in enumerate(group):
                flight.result, flight.row = result, row
            missing = [flight for flight in missing if flight.result is None]


_QUEUE = (
    "in_flight",
    "_idle",
    "_idle_count",
    "_flights",
    "_action",
    "_failing",
    "_mending",
    "_copies",
    "_stored",
    "_ahead",
    "_before",
    "_sent",
    "_tail",
    "_ended",
)
"""What the engine knows of the clients at work."""


def _of_each(orders: Order) -> int | NDArray[np.float64]:
    """The bytes that each client is sent: one number, or [C]."""
    nbytes = orders.nbytes
    return nbytes.double().cpu().numpy() if isinstance(nbytes, Tensor) else nbytes


def _up(job: Job, orders: Order) -> int | NDArray[np.float64]:
    """The bytes that each client's reply takes, to all that it goes to: one number, or [C]."""
    peers = orders.peers
    return job.encoded * (peers.double().numpy() if isinstance(peers, Tensor) else peers)
