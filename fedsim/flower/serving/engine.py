"""The engine over the nodes of somebody else's app: a node is a client, with a number that stays its own."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.core.clock import ticks
from fedsim.core.errors import StalledError
from fedsim.core.streams import Streams
from fedsim.core.terminal import printable
from fedsim.engine.ledger import Ledger
from fedsim.engine.store import ClientStore
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.messages import Free, Order, Replies, Size, finite_rows
from fedsim.exchange.transforms import Chain, Sender, Transform
from fedsim.exchange.windows import Window
from fedsim.flower.internals import UNANSWERED
from fedsim.flower.nodes import Sent, push
from fedsim.flower.replies import RefusedError, arrays_of, metrics_of, reason_of
from fedsim.flower.serving.dialect import (
    JUDGE,
    Answer,
    Dialect,
    Question,
    Rows,
    size_of,
    weight_of,
)
from fedsim.flower.serving.problem import AppProblem
from fedsim.flower.serving.register import LOOK, Register
from fedsim.flower.serving.state_dict import Kept
from fedsim.flower.windows import Clock, GridWindows, Landed

TOLD = 10_000
"""Different complaints that are remembered, so that each is told once."""


@dataclass(frozen=True)
class AppFlight:
    """A message on its way to one client: what it asks, sent at tick `start`, and when its time is over."""

    number: int
    node: int
    orders: Order
    question: Question
    start: int
    expires: int

    @property
    def clients(self) -> Tensor:
        """The client alone, int64 [1]."""
        return torch.tensor([self.number])


@dataclass(frozen=True)
class Heard:
    """What a usable reply was beside its vectors.

    due: the tick at which it came. examples: what it weighs. staleness: known when a window has taken it.
    """

    client: int
    due: int
    examples: float
    whole: Kept
    content: RecordDict
    staleness: int = 0


class _StarvedError(Exception):
    """Nobody is at work, and a window waits for more."""


class AppEngine(GridWindows[AppFlight]):
    """Sends messages that apps understand to the nodes that are connected, and takes in what they answer.

    A node is never sent an order while one to it is alive: until it has answered, or `ttl` seconds have gone by, after
    which Flower takes no reply to it either. Who has left is not free, and keeps its number for when it comes back.
    What is no reply to what was asked, an error among that, is left out, counted and told.

    identify: number nodes by their partitions, for which they are asked; see `Register`. heard: by action the usable
    replies that windows have taken, until somebody empties it.
    hands_over: the messages of a round are not sent, but put into the `outbox`, for somebody else who sends them and
    hands in what comes of them by `deliver`.
    """

    def __init__(
        self,
        grid: Grid,
        clock: Clock,
        problem: AppProblem,
        dialect: Dialect,
        aggregator: Aggregator,
        streams: Streams,
        *,
        transforms: Sequence[Transform] = (),
        ttl: float = 3600.0,
        identify: bool = False,
    ) -> None:
        self.problem, self.dialect, self._streams = problem, dialect, streams
        plain = Size.of(problem.initial())
        self._chain = Chain(tuple(transforms)).fitted(problem.layout.shapes, plain)
        shapes = self._chain.state(plain)
        self._store = ClientStore(shapes, 0, problem.device, problem.dtype, 0)
        self.register = Register(grid, clock, identify, ttl, self._tell, problem.renew)
        self._told: set[str] = set()
        self.heard: dict[str, list[Heard]] = defaultdict(list)
        self.hands_over, self.outbox = False, list[Message]()
        super().__init__(grid, clock, aggregator, 0, ttl)

    def _begin(self) -> None:
        """Nobody is at work, and nobody is known to be there."""
        super()._begin()
        self._idle = np.ones(len(self.register.nodes), dtype=np.bool_)
        self._forgotten: dict[Sent, AppFlight] = {}

    def meet(self) -> int:
        """Look who is connected, and say how many clients are; newcomers get numbers."""
        register = self.register
        register.look(lambda: {flight.node for flight in self._alive()})
        grown = len(register.nodes) - len(self._idle)
        if grown > 0:
            self._idle = np.concatenate((self._idle, np.ones(grown, dtype=np.bool_)))
            self.trace.participation += [0] * (len(register.nodes) - len(self.trace.participation))
            self.problem.grow(len(register.nodes))
        return len(register.present)

    def _alive(self) -> Iterable[AppFlight]:
        """The orders that nodes may still be at."""
        return chain(self._flights.values(), self._forgotten.values())

    def free(self) -> Free:
        """Who could start now: whoever is connected and not at work."""
        self.meet()
        there = np.zeros_like(self._idle)
        there[self.register.present] = True
        there &= self._idle
        return Free(there, int(there.sum()))

    def submit(self, orders: Order) -> None:
        """Send orders."""
        self._look(None)
        nodes = self.register.nodes
        self._latest, self._question = orders, self.dialect.question(orders, len(nodes))
        clients = orders.clients.tolist()
        if not clients:
            return
        question, expires = self._question, self.now + ticks(self.timeout)
        flights = [AppFlight(client, nodes[client], orders, question, self.now, expires) for client in clients]
        messages = self.messages(orders, question)
        self._idle[clients] = False
        self.in_flight += len(clients)
        self.ledger.bytes_down += question.nbytes * len(clients)
        if orders.counts:
            for client in clients:
                self.trace.began(client, orders.round, self.now)
        if self.hands_over and orders.counts:
            self.outbox = messages
            self._flights |= {Sent("", flight.node, 0, question.kind): flight for flight in flights}
            return
        for flight, sent in zip(flights, push(self.grid, messages), strict=True):
            if sent is None:
                self._give_up(flight, "could not be sent an order")
            else:
                self._flights[sent] = flight

    def messages(self, orders: Order, question: Question) -> list[Message]:
        """What is sent to each client."""
        clients, nodes, group = orders.clients.tolist(), self.register.nodes, str(orders.round + 1)
        return [
            Message(content, nodes[client], question.kind, ttl=self.timeout, group_id=group)
            for client, content in zip(clients, question.contents(clients), strict=True)
        ]

    def forget(self) -> None:
        """Free whoever was sent something that nobody waits for any more."""
        for flight in self._flights.values():
            self._idle[flight.number] = True
            self.in_flight -= 1
        self._flights.clear()

    def deliver(self, replies: Iterable[Message]) -> None:
        """Take in what has come of the outbox; nobody waits for the rest any more."""
        names = {message.metadata.message_id: message.metadata.dst_node_id for message in self.outbox}
        waiting = {sent.node: sent for sent in self._flights}
        arrived = list[tuple[AppFlight, Message]]()
        for reply in replies:
            said = reply.metadata  # of errors of Flower's own only the message's name says whose they are
            sent = waiting.pop(names.get(said.reply_to_message_id, said.src_node_id), None)
            if sent is None:
                self.trace.strays += 1
            else:
                arrived.append((self._flights.pop(sent), reply))
        self.now = max(self.now, self.clock.read())
        self._land(arrived)
        for flight in self._flights.values():
            self._give_up(flight, "has not answered in time")
        self._flights.clear()

    def readable(self, replies: Iterable[Message]) -> list[RecordDict]:
        """The contents of replies that somebody else hands in, without those of no use, of which it is told why."""
        found = list[RecordDict]()
        for reply in replies:
            try:
                if reply.has_error():
                    raise RefusedError(f"it has failed: {reason_of(reply)}")
                weight_of(metrics_of(reply.content), self.dialect.keys.weighted_by_key)
            except RefusedError as error:
                self._tell(f"node {reply.metadata.src_node_id}, evaluation: {error}")
            else:
                found.append(reply.content)
        return found

    def collect(self, window: Window, round: int, until: int | None = None) -> Replies | None:  # noqa: A002
        """See `GridWindows`; None also where nobody is at work and the window waits for more, so that others start."""
        try:
            return super().collect(window, round, until)
        except _StarvedError:
            if not self.free().count and not self.rest(until):
                raise StalledError("no node is at work and none will ever be free again") from None
            return None

    def rest(self, until: int | None = None) -> bool:
        """Let time pass, at most to tick `until`, to where somebody may become free; False: nobody ever will."""
        register = self.register
        away = len(register.present) < sum(map(bool, register.nodes))
        if not self.clock.real and not self._forgotten and not register.asked and not away:
            return False
        ends = [] if until is None else [until]
        if away:  # they may be back the next time that somebody looks
            ends.append(self.now + ticks(LOOK))
        ends += [flight.expires for flight in self._forgotten.values()]
        self.clock.wait([sent.name for sent in (*self._forgotten, *register.asked)], LOOK, min(ends, default=None))
        self._look(until)
        return True

    def snapshot(self) -> dict[str, Any]:
        """Clock, ledger, trace, who has which number, and what is known of them; what is on its way is not kept."""
        return {
            "now": self.now,
            "ledger": asdict(self.ledger),
            "trace": deepcopy(self.trace),
            "nodes": list(self.register.nodes),
            "known": self.problem.known.tolist(),
            "kept": self.dialect.model.stored(self.dialect.kept),
            "store": self._store.snapshot(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot; whoever was at work is sent orders anew."""
        self.now, self.ledger, self.trace = saved["now"], Ledger(**saved["ledger"]), deepcopy(saved["trace"])
        self.register.restore(saved["nodes"])
        self.problem.know(saved["known"])
        self.problem.renew(range(len(saved["nodes"])))  # what a node remembers is its run's, and this is another one
        self.clock.start(self.now)
        self._begin()
        self.dialect.kept = self.dialect.model.restored(saved["kept"])
        self._store.restore(saved["store"])

    def describe(self) -> dict[str, Any]:
        """How orders are executed."""
        return {"nodes": len(self.register.nodes), "executor": "app"}

    def _look(self, stop: int | None) -> None:
        """See `GridWindows`; whose time is over is given up, and whom nobody waits for any more is free again."""
        super()._look(stop)
        for flight, _ in self._arrived(self._forgotten):
            self._idle[flight.number] = True
        for flights in (self._flights, self._forgotten):
            for sent in [sent for sent, flight in flights.items() if flight.expires <= self.now]:
                flight = flights.pop(sent)
                if flights is self._flights:
                    self._give_up(flight, f"has not answered within {self.timeout:g} s")
                self._idle[flight.number] = True

    def _pause(self, pause: float, stop: int | None) -> None:
        """See `GridWindows`."""
        ends = [flight.expires for flight in self._flights.values()] + ([] if stop is None else [stop])
        super()._pause(pause, min(ends, default=None))

    def _give_up(self, flight: AppFlight, why: str) -> None:
        """Free a client whose order has ended without a reply."""
        self._idle[flight.number] = True
        self.in_flight -= 1
        self.ledger.crashed += 1
        self.trace.dropped(flight.number, self.now)
        self._complain(flight, why)

    def _complain(self, flight: AppFlight, why: str) -> None:
        """Tell, and keep, what is wrong with a node's reply; the same of the same node once."""
        node = f"node {flight.node} (client {flight.number})"
        self._tell(f"{node}, round {flight.orders.round + 1}: {why}", f"{node}: {why}")

    def _tell(self, text: str, known_by: str = "") -> None:
        """See `GridWindows`. known_by: what is told once, where that is not the text."""
        fault = known_by or text
        if fault not in self._told:
            self._told |= {fault} if len(self._told) < TOLD else set()
            super()._tell(text := printable(text))
            logging.getLogger("flwr").warning("left out: %s", text)

    def _cancel(self, orders: Order) -> None:
        """See `GridWindows`: a node that is late works on for nothing, and is not free before it has answered."""
        late = {sent: flight for sent, flight in self._flights.items() if flight.orders.action == orders.action}
        super()._cancel(orders)
        self._forgotten |= late
        self._idle[[flight.number for flight in late.values()]] = False

    def _unfillable(self, arrived: int, wanted: int) -> None:  # noqa: ARG002
        """See `GridWindows`: others may start, or come back."""
        raise _StarvedError

    def _nothing(self, orders: Order) -> dict[str, Tensor]:  # noqa: ARG002
        """See `GridWindows`."""
        return {name: rows.to(self.problem.device) for name, rows in self._question.rows(0).items()}

    def _land(self, arrived: Sequence[tuple[AppFlight, Message]]) -> None:
        """See `GridWindows`."""
        groups: dict[int, list[tuple[AppFlight, Message]]] = {}
        for flight, reply in arrived:
            if reply.has_error() and reply.error.code in UNANSWERED:
                self._give_up(flight, f"has not answered: {reason_of(reply)}")
                continue
            groups.setdefault(id(flight.orders), []).append((flight, reply))
        for group in groups.values():
            self._put_by(sorted(group, key=lambda pair: pair[0].number))

    def _put_by(self, group: Sequence[tuple[AppFlight, Message]]) -> None:
        """Put replies to one order by, in the order of clients."""
        first, count = group[0][0], len(group)
        rows, metrics = first.question.rows(count), dict[str, Tensor]()
        heard, nbytes = list[Heard | None](), torch.zeros(count, dtype=torch.int64)
        queries = torch.zeros((count, 3), dtype=torch.int64)
        views = {name: block.numpy() for name, block in rows.items()}
        for place, (flight, reply) in enumerate(group):
            try:
                with np.errstate(over="ignore"):  # what is too large for a narrower type is found to be not finite
                    answer = _read(flight, reply, views, place)
                examples = answer.examples or float(self.problem.known[flight.number]) or 1.0
                _weigh(reply, self.dialect.keys.weighted_by_key, examples)
            except RefusedError as error:
                self._complain(flight, str(error))
                heard.append(None)
                continue
            heard.append(Heard(flight.number, self.now, examples, answer.whole, reply.content))
            nbytes[place] = sum(map(size_of, arrays_of(reply.content).values()))
            queries[place] = torch.tensor(answer.queries)
            for name, value in answer.metrics.items():
                metrics.setdefault(name, torch.full((count,), math.nan, dtype=torch.float64))[place] = value
        first.question.finish(rows)
        read = torch.tensor([one is not None for one in heard])
        finite = finite_rows(list(rows.values()), read) & read
        clients = torch.tensor([flight.number for flight, _ in group])
        if first.orders.counts and self._chain.transforms and bool(finite.any()):
            self._transform(rows, clients, finite, first.orders.turn)
            finite &= finite_rows(list(rows.values()), finite)
        for place in (read & ~finite).nonzero().flatten().tolist():
            self._complain(group[place][0], "its numbers are not finite")
        weights = np.array([1.0 if one is None else one.examples for one in heard])
        replies = Replies(
            clients=clients,
            payload={name: block.to(self.problem.device) for name, block in rows.items()},
            metrics=metrics,
            examples=torch.from_numpy(weights.astype(np.int64) if (weights % 1 == 0).all() else weights),
            failed=clients[:0],
            round=first.orders.round,
            versions=torch.full_like(clients, first.orders.round),
            # At least one tick, as in virtual time: strategies divide by durations.
            durations=torch.tensor([max(1, self.now - flight.start) for flight, _ in group]),
            orders=[first.orders],
            origin=[0] * count,
            aggregator=self.aggregator,
        )
        landed = Landed(first.orders, self.now, replies, finite, ~read, nbytes, queries, tuple(heard))
        self._landed[first.orders.action].append(landed)

    def _transform(self, rows: Mapping[str, Tensor], clients: Tensor, usable: Tensor, turn: int) -> None:
        """Have the usable rows go through the transforms, in their place."""
        senders = clients[usable]
        self._store.admit(senders)
        sender = Sender(senders, self._streams, turn, self._store.read(senders))
        crossed = self._chain.apply({name: block[usable] for name, block in rows.items()}, sender)
        self._store.write(senders, crossed.state)
        for name, block in crossed.payload.items():
            rows[name][usable] = block

    def _settle(self, landed: Landed, round: int) -> Replies:  # noqa: A002
        """See `GridWindows`; what usable replies were beside their vectors is kept until somebody asks.

        Not of orders within a round that its clients have besides, such as a selector's or a line search's.
        """
        told = landed.orders.counts or landed.orders.action == JUDGE
        for one, finite in zip(landed.beside, landed.finite.tolist(), strict=True):
            if told and finite and isinstance(one, Heard):
                self.heard[landed.orders.action].append(replace(one, staleness=round - landed.orders.round))
        return super()._settle(landed, round)


def _read(flight: AppFlight, reply: Message, rows: Rows, place: int) -> Answer:
    """Write what a client answers into its place. RefusedError: it has failed, or answers something else."""
    if reply.has_error():
        raise RefusedError(f"it has failed: {reason_of(reply)}")
    if reply.metadata.message_type != flight.question.kind:
        raise RefusedError(f"it answers {reply.metadata.message_type[:40]!r}, not {flight.question.kind}")
    return flight.question.read(reply.content, rows, place)


def _weigh(reply: Message, name: str, examples: float) -> None:
    """Say what a reply weighs among its metrics, where the reply does not: whoever combines them asks for it."""
    metrics = metrics_of(reply.content)
    if name not in metrics:
        metrics[name] = examples
