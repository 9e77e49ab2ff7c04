"""The engine over a Flower grid: orders go to the nodes that hold their clients; time is the wall clock's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.core.clock import ticks
from fedsim.engine.executor import Executor
from fedsim.engine.ledger import Ledger
from fedsim.engine.store import ClientStore
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.forms import Form
from fedsim.exchange.messages import Order, Replies, untold_rows
from fedsim.exchange.windows import All, Window
from fedsim.flower.names import ARRAYS, CONFIG, ROUND
from fedsim.flower.nodes import EXECUTES, GridError, content_of, meet, receive, send, silence
from fedsim.flower.records import CLIENTS, LATE, ORDER, STATE, TURN, digest_of, record
from fedsim.flower.replies import Asked, Asking, RefusedError, state_of
from fedsim.flower.windows import GridWindows, Landed, WallClock


@dataclass(frozen=True)
class _Flight:
    """A message on its way: an order to clients [k] of one node, sent at tick `start`. asked: what for."""

    partition: int
    orders: Order
    clients: Tensor
    start: int
    asked: Asked


class GridEngine(GridWindows[_Flight]):
    """Takes orders, sends each node those of its clients, and hands back the replies; see `fedsim.running.simulation`.

    The clients `c` with `c mod num-partitions = partition-id` live on one node. What is cancelled when its window
    closes is one message a node; what goes on is one a client, so that each reply comes by itself. Rows are put in the
    clients' order: in synchronous rounds any number of nodes gives the same replies. Making the engine waits for the
    nodes, maps their ids to partitions, and refuses (GridError) those with another fedsim or another experiment.

    executor: says what orders come to; it does no work of clients. experiment: the recipe's digest. timeout: seconds to
    wait for all nodes, for a window that closes when all have answered, and for any reply where a window waits for a
    number of them.

    now: ticks since all nodes were there.
    """

    def __init__(
        self, grid: Grid, executor: Executor, aggregator: Aggregator, *, experiment: str, timeout: float = 600.0
    ) -> None:
        clock, population = WallClock(grid), executor.problem.num_clients
        self.executor = executor
        super().__init__(grid, clock, aggregator, population, timeout)
        self._introductions = meet(grid, experiment, digest_of(executor.problem.sizes), timeout)
        self._nodes = {partition: node for partition, (node, _) in self._introductions.items()}
        self._remembers = bool(executor.store.shapes)
        clock.start(0)
        self._begin()

    def _begin(self) -> None:
        """Nobody is at work."""
        super()._begin()
        self._idle = (self.executor.problem.sizes > 0).numpy().copy()
        self._asking = Asking(self.executor)

    def submit(self, orders: Order) -> None:
        """Send the nodes the orders for their clients. GridError: these clients cannot be served so."""
        if orders.late == "keep":
            self._hold_apart()
        self._look(None)
        self._latest = orders
        if not len(orders.clients):
            return
        payload, asked = record(orders.payload), self._asking(orders)
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
        return found | {"store": self._memories()}

    def memories(self) -> ClientStore:
        """What clients remember, for which all nodes are asked; see `fedsim.engine.personal.Remembers`."""
        store = self.executor.store
        if self._remembers:
            store.restore(self._memories())
        return store

    def _memories(self) -> dict[str, Tensor]:
        """What the clients of all nodes remember, as of `ClientStore.snapshot`."""
        contents = self._ask("query.hand_over", {partition: RecordDict() for partition in self._nodes})
        states = [self._memory(partition, content) for partition, content in contents.items()]
        order = torch.argsort(torch.cat([state[CLIENTS] for state in states]))
        return {name: torch.cat([state[name] for state in states])[order] for name in states[0]}

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
        self.clock.start(self.now)
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

    def _land(self, arrived: Sequence[tuple[_Flight, Message]]) -> None:
        """See `GridWindows`. GridError: a node has failed."""
        for flight, reply in arrived:
            self._put_by(flight, content_of(reply, f"partition {flight.partition}"))

    def _put_by(self, flight: _Flight, content: RecordDict) -> None:
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
            encoded=found.nbytes,
        )
        landed = Landed(flight.orders, self.now, replies, found.finite, spoiled, found.nbytes, found.queries)
        self._landed[flight.orders.action].append(landed)

    def _nothing(self, orders: Order) -> dict[str, Tensor]:
        """See `GridWindows`."""
        return dict(self._asking(orders).nothing.payload)

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

    def _hold_closable(self, window: Window, orders: Order) -> None:
        """Refuse to lose work that its node would remember."""
        waits = isinstance(window, All) and window.deadline is None
        if self._remembers and orders.late == "cancel" and not waits:
            raise GridError(
                "these clients remember something between rounds, and a node cannot be told to forget what was late; "
                "wait for all replies of a round"
            )

    def _hold_alive(self, since: int) -> None:
        """Refuse to wait on after too long a silence."""
        if self.now - since >= ticks(self.timeout):
            silent = {flight.partition for flight in self._flights.values()}
            raise GridError(silence(self.timeout, "partition", silent))
