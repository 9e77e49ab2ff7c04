"""The engine over a Flower grid: orders go to the nodes that hold their clients; time is the wall clock's."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import StalledError
from fedsim.engine.executor import Executor
from fedsim.engine.job import JobResult
from fedsim.engine.ledger import Ledger
from fedsim.engine.trace import Trace
from fedsim.exchange.actions import REPORT_UTILITY, SCORE
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.forms import Form
from fedsim.exchange.messages import Free, Order, Replies, joined, untold_rows
from fedsim.exchange.windows import All, Every, First, Window
from fedsim.flower.nodes import EXECUTES, GridError, Sent, answered, content_of, meet, pauses, receive, send, silence
from fedsim.flower.records import (
    ARRAYS,
    CLIENTS,
    CONFIG,
    LATE,
    ORDER,
    ROUND,
    STATE,
    TURN,
    digest_of,
    record,
)
from fedsim.flower.replies import Asked, RefusedError, state_of


@dataclass(frozen=True)
class _Flight:
    """A message on its way: an order to clients [k] of one node, sent at tick `start`. asked: what for."""

    partition: int
    orders: Order
    clients: Tensor
    start: int
    asked: Asked


@dataclass(frozen=True)
class _Landed:
    """Replies that are in and that no window has taken yet.

    due: the tick at which they came. finite: bool [k]. spoiled: bool [k], those whose failure is no divergence. nbytes,
    queries: int64 [k] and [k, 3], as of `JobResult`.
    """

    flight: _Flight
    due: int
    replies: Replies
    finite: Tensor
    spoiled: Tensor
    nbytes: Tensor
    queries: Tensor

    def where(self, kept: Tensor) -> _Landed:
        """Those where `kept`, bool [k], says so."""
        rows = {name: getattr(self, name)[kept] for name in ("finite", "spoiled", "nbytes", "queries")}
        return replace(self, replies=self.replies.where(kept), **rows)


class GridEngine:
    """Takes orders, sends each node those of its clients, and hands back the replies; see `fedsim.running.simulation`.

    The clients `c` with `c mod num-partitions = partition-id` live on one node. What is cancelled when its window
    closes is one message a node; what goes on is one a client, so that each reply comes by itself. Rows are put in the
    clients' order: in synchronous rounds any number of nodes gives the same replies. Making the engine waits for the
    nodes, maps their ids to partitions, and refuses (GridError) those with another fedsim or another experiment.

    executor: says what orders come to; it does no work of clients. experiment: the recipe's digest. timeout: seconds to
    wait for all nodes, for a window that closes when all have answered, and for any reply where a window waits for a
    number of them.

    now: ticks since all nodes were there, as last looked at; while a time is waited for, not beyond it. A reply has
    arrived when it is first seen. in_flight: clients at work. ledger: payload bytes, as in one process. trace: who did
    what.
    """

    def __init__(
        self, grid: Grid, executor: Executor, aggregator: Aggregator, *, experiment: str, timeout: float = 600.0
    ) -> None:
        self.grid, self.executor, self.aggregator, self.timeout = grid, executor, aggregator, timeout
        self.now = 0
        self.ledger = Ledger()
        self.trace = Trace(executor.problem.num_clients)
        self._introductions = meet(grid, experiment, digest_of(executor.problem.sizes), timeout)
        self._nodes = {partition: node for partition, (node, _) in self._introductions.items()}
        self._remembers = bool(executor.store.shapes)
        self._origin = time.monotonic_ns()
        self._begin()

    def _begin(self) -> None:
        """Nobody is at work."""
        self.in_flight = 0
        self._idle = (self.executor.problem.sizes > 0).numpy().copy()
        self._flights: dict[Sent, _Flight] = {}
        self._landed: dict[str, list[_Landed]] = defaultdict(list)  # by action
        self._latest: Order | None = None
        self._opened: int | None = None
        self._heard = self.now
        self._nothing: dict[Hashable, JobResult] = {}  # of nobody, by what an order says that it asks for

    def free(self) -> Free:
        """Who could start now: whoever is not at work."""
        return Free(self._idle, int(self._idle.sum()))

    def declared(self, orders: Order) -> None:  # noqa: ARG002
        """Nobody knows how long an order takes a real client."""
        return

    def submit(self, orders: Order) -> None:
        """Send the nodes the orders for their clients. GridError: these clients cannot be served so."""
        if orders.late == "keep":
            self._hold_apart()
        self._look(None)
        self._latest = orders
        if not len(orders.clients):
            return
        payload, asked = record(orders.payload), self._asked(orders)
        config = ConfigRecord({ROUND: orders.round + 1, **orders.config})
        flights, contents = [], []
        for partition, clients in self._groups(orders):
            order = ConfigRecord({"action": orders.action, TURN: orders.turn, LATE: orders.late})
            order[CLIENTS] = clients.tolist()
            own = replace(asked, clients=clients, examples=self.executor.problem.sizes[clients])
            flights.append(_Flight(partition, orders, clients, self.now, own))
            contents.append((self._nodes[partition], RecordDict({ARRAYS: payload, CONFIG: config, ORDER: order})))
        sent = send(self.grid, contents, MessageType.TRAIN, str(orders.round + 1))
        self._flights |= zip(sent, flights, strict=True)
        self.ledger.bytes_down += orders.total_bytes
        self._idle[orders.clients.numpy()] = False
        self.in_flight += len(orders.clients)
        if orders.counts:
            for client in orders.clients.tolist():
                self.trace.began(client, orders.round, self.now)

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
        length = window.seconds if isinstance(window, Every) else window.deadline
        end = None if length is None else opened + ticks(length)
        if orders.late == "cancel" and not (isinstance(window, All) and end is None):
            self._hold_complete()
        stop = min((tick for tick in (end, until) if tick is not None), default=None)
        for pause in pauses():
            self._look(stop)
            in_time = until is None or self.now <= until
            if in_time and (self._is_full(window, orders) or (end is not None and self.now >= end)):
                break
            if until is not None and self.now >= until:
                return None
            if end is None:
                self._hold_alive(opened if isinstance(window, All) else max(opened, self._heard))
            time.sleep(pause if stop is None else min(pause, seconds(stop - self.now)))
        self._opened = None
        replies = self._take(window, orders, round)
        if orders.late == "cancel":
            self._cancel(orders)
        return replies

    def settled(self) -> bool:
        """Whether no reply that is in waits for another window."""
        return not any(self._landed.values())

    def rest(self, until: int | None = None) -> bool:  # noqa: ARG002
        """Say that nobody becomes free by waiting: nobody sleeps here, and whoever is at work is to be collected."""
        return False

    def snapshot(self) -> dict[str, Any]:
        """Clock, ledger, trace and what the clients remember, which the nodes are asked for.

        It has the form of `VirtualEngine.snapshot`, so that either engine can go on from the other's. GridError:
        clients are at work.
        """
        if self.in_flight:
            raise GridError(
                f"{self.in_flight} clients are at work on their nodes; take a snapshot between synchronous rounds"
            )
        found = {"now": self.now, "ledger": asdict(self.ledger), "trace": deepcopy(self.trace), "queue": None}
        if not self._remembers:
            return found | {"store": {CLIENTS: torch.zeros(0, dtype=torch.int64)}}
        contents = self._ask("query.hand_over", {partition: RecordDict() for partition in self._nodes})
        states = [self._memory(partition, content) for partition, content in contents.items()]
        order = torch.argsort(torch.cat([state[CLIENTS] for state in states]))
        store = {name: torch.cat([state[name] for state in states])[order] for name in states[0]}
        return found | {"store": store}

    def _memory(self, partition: int, content: RecordDict) -> dict[str, Tensor]:
        """What the clients of a partition remember. GridError: its node sends something else."""
        store = self.executor.store
        shapes = {name: Form(str(store.dtype).removeprefix("torch."), shape) for name, shape in store.shapes.items()}
        try:
            found = state_of(content, STATE, shapes)
            clients = found[CLIENTS]
            own = (clients >= 0) & (clients < len(self._idle)) & (clients % len(self._nodes) == partition)
            if not bool(own.all()) or len(set(clients.tolist())) != len(clients):
                raise RefusedError(f"it sends the memory of clients {clients.tolist()[:20]}")
        except RefusedError as error:
            raise GridError(f"partition {partition} does not say what its clients remember: {error}") from error
        return found

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot, also one of other nodes; replies still on their way are forgotten.

        GridError: clients were at work when it was taken.
        """
        queue = saved["queue"]
        if queue is not None and queue["in_flight"]:
            raise GridError("clients were at work when this snapshot was taken; they cannot go on with it on nodes")
        self.now, self.ledger, self.trace = saved["now"], Ledger(**saved["ledger"]), deepcopy(saved["trace"])
        self._origin = time.monotonic_ns() - self.now
        self._begin()
        if self._remembers:
            store = saved["store"]
            owner = store[CLIENTS] % len(self._nodes)
            contents = {}
            for partition in self._nodes:
                rows = {name: block[(owner == partition).to(block.device)] for name, block in store.items()}
                contents[partition] = RecordDict({STATE: record(rows)})
            self._ask("query.take_over", contents)

    def describe(self) -> dict[str, Any]:
        """How the nodes execute orders, for the run's config.toml."""
        said = [answer for _, answer in self._introductions.values()]
        return {"nodes": len(said)} | {name: " ".join(sorted({answer[name] for answer in said})) for name in EXECUTES}

    def _groups(self, orders: Order) -> Iterator[tuple[int, Tensor]]:
        """The partition and the clients of each message that an order takes."""
        owner = orders.clients % len(self._nodes)
        if orders.late == "keep":
            yield from zip(owner.tolist(), torch.split(orders.clients, 1), strict=True)
        else:
            for partition in sorted(set(owner.tolist())):
                yield partition, orders.clients[owner == partition]

    def _look(self, stop: int | None) -> None:
        """Read the clock, at most to tick `stop`, and take in the replies that have come."""
        clock = time.monotonic_ns() - self._origin
        self.now = max(self.now, clock if stop is None else min(clock, stop))
        if not self._flights:
            return
        for reply in self.grid.pull_messages([sent.name for sent in self._flights]):
            sent = answered(reply, self._flights)
            if sent is None:
                self.trace.complained(f"a reply of node {reply.metadata.src_node_id} answers nothing that it was sent")
                self.trace.strays += 1
                continue
            flight = self._flights.pop(sent)
            self._land(flight, content_of(reply, f"partition {flight.partition}"))
            self._heard = self.now

    def _land(self, flight: _Flight, content: RecordDict) -> None:
        """Put a message's replies by until a window takes them; what is not what was asked for has failed."""
        clients, spoiled = flight.clients, torch.zeros(len(flight.clients), dtype=torch.bool)
        try:
            found = flight.asked.read(content, self.executor.problem.device)
            if self.executor.problem.may_fail:
                spoiled = untold_rows(found.queries)
        except RefusedError as error:
            found, spoiled = flight.asked.unread(), ~spoiled
            self.trace.complained(f"partition {flight.partition}, round {flight.orders.round + 1}: {error}")
        replies = Replies(
            clients=clients,
            payload=found.payload,
            metrics=found.metrics,
            examples=flight.asked.examples,
            failed=clients[:0],
            round=flight.orders.round,
            versions=torch.full_like(clients, flight.orders.round),
            # At least one tick, as in virtual time: strategies divide by durations.
            durations=torch.full_like(clients, max(1, self.now - flight.start)),
            orders=[flight.orders],
            origin=[0] * len(clients),
            aggregator=self.aggregator,
        )
        landed = _Landed(flight, self.now, replies, found.finite, spoiled, found.nbytes, found.queries)
        self._landed[flight.orders.action].append(landed)

    def _is_full(self, window: Window, orders: Order) -> bool:
        """Whether the window need not stay open for its time. StalledError: it has none and nobody can fill it."""
        if isinstance(window, Every):
            return False
        arrived = sum(len(landed.replies) for landed in self._landed[orders.action])
        if isinstance(window, First) and arrived >= window.count:
            return True
        if any(flight.orders.action == orders.action for flight in self._flights.values()):
            return False
        if isinstance(window, All) or orders.late == "cancel":
            return True
        if window.deadline is None:
            raise StalledError(
                f"{arrived} replies are in and nobody is at work: a window that waits for {window.count} never closes"
            )
        return False

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

    def _settle(self, landed: _Landed, round: int) -> Replies:  # noqa: A002
        """Count replies, free their clients, and leave out what is not finite."""
        clients, staleness = landed.replies.clients, round - landed.flight.orders.round
        self._release(clients)
        failed = clients[~landed.finite]
        queries, extra, untold = landed.queries.sum(dim=0).tolist()
        self.ledger.queries += queries
        self.ledger.extra_queries += extra
        self.ledger.failed_queries += untold
        if landed.flight.orders.counts:
            for client, finite in zip(clients.tolist(), landed.finite.tolist(), strict=True):
                self.trace.took(client, staleness, landed.due, self.now, finite=finite)
            self.ledger.clients += len(clients)
            self.ledger.failed += len(failed)
            self.ledger.late += len(clients) * (staleness > 0)
            self.ledger.staleness += len(clients) * staleness
        self.ledger.bytes_up += int(landed.nbytes.sum())
        spoiled = int(landed.spoiled.sum())
        return replace(landed.replies.where(landed.finite), failed=failed, round=round, spoiled=spoiled)

    def _silence(self, orders: Order, round: int) -> Replies:  # noqa: A002
        """No replies, in the shape that some would have."""
        nobody = torch.zeros(0, dtype=torch.int64)
        payload = self._asked(orders).nothing.payload
        return Replies(nobody, payload, {}, nobody, nobody, round, nobody, nobody, [], [], self.aggregator)

    def _asked(self, orders: Order) -> Asked:
        """What an order asks for, of nobody yet."""
        executor, nobody = self.executor, torch.zeros(0, dtype=torch.int64)
        shapes = tuple((name, tuple(vector.shape)) for name, vector in sorted(orders.payload.items()))
        kind = (orders.action, tuple(sorted(orders.config.items())), shapes)
        job = executor.assign(replace(orders, clients=nobody))
        if kind not in self._nothing:
            self._nothing[kind] = executor.execute(job)
        asked = job.cost.queries
        if executor.network is None:
            asked += (orders.action == SCORE) + bool(orders.config.get(REPORT_UTILITY))
        # With transforms what a reply takes may depend on its numbers.
        least = 0 if executor.transforms.transforms else job.encoded
        queries, nbytes = (asked, asked + job.cost.first), (least, job.encoded)
        return Asked(nobody, nobody, self._nothing[kind], queries, job.cost.extra, nbytes)

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

    def _ask(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        """Ask nodes, and wait for all answers; both by partition."""
        sent = send(self.grid, [(self._nodes[partition], content) for partition, content in contents.items()], kind)
        return receive(self.grid, dict(zip(sent, contents, strict=True)), self.timeout, "partition")

    def _hold_apart(self) -> None:
        """Refuse to have two messages at a node at once where the second would overwrite what the first remembers."""
        population = self.executor.problem.num_clients
        if self._remembers and population > len(self._nodes):
            raise GridError(
                f"these clients remember something between rounds, and {population} of them share "
                f"{len(self._nodes)} nodes; give each client a node of its own in an asynchronous run"
            )

    def _hold_complete(self) -> None:
        """Refuse to lose work that its node would remember."""
        if self._remembers:
            raise GridError(
                "these clients remember something between rounds, and a node cannot be told to forget what was late; "
                "wait for all replies of a round"
            )

    def _hold_alive(self, since: int) -> None:
        """Refuse to wait on after too long a silence."""
        if self.now - since >= ticks(self.timeout):
            silent = {flight.partition for flight in self._flights.values()}
            raise GridError(silence(self.timeout, "partition", silent))
