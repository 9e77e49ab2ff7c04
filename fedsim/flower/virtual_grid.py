"""Flower's grid in this process: nodes are contexts, a message is a call of the client app, and time is virtual.

What crosses is copied, so that whoever edits what was sent or received edits it for nobody else. Each call draws from
global generators of its own, named by the run's seed, the node and how many messages the node has had; replies come in
the order of the times at which they are due, then of their messages. So nothing depends on workers or their timing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from logging import getLogger
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import FedsimError, InputError, StalledError
from fedsim.core.generators import seeded_globals
from fedsim.core.options import LONGEST
from fedsim.core.streams import Streams
from fedsim.flower.calls import Answer, Call, Clients, Here, few_collections
from fedsim.flower.configurations import configuration
from fedsim.flower.internals import (
    SERVER,
    Ended,
    Outcome,
    acting_as,
    copied,
    empty_run,
    name_message,
    quick_arrays,
    unavailable,
    watched,
)
from fedsim.flower.names import ROUND

LEAST_CALL, LONGEST_CALL = 30.0, 1e6
"""Wall-clock seconds that a call may take where nobody says how many: at least, and at most."""
_alone = threading.Lock()
"""Held while an app runs: the generators and the names of messages are the process's."""


@dataclass(frozen=True)
class Exchange:
    """A message and what came of it.

    round: where its settings or its group say one. pushed: wall-clock seconds since the app began. sent, due: virtual
    seconds. allowed: seconds that the server waits for the reply, or that the message lives. seconds: of the wall
    clock, that the call took. bytes_down, bytes_up: of arrays. error: the reply's reason where it is an error, with
    the client's traceback; or empty.
    """

    node: int
    partition: int
    message_type: str
    round: int | None
    pushed: float
    sent: float
    due: float
    allowed: float
    seconds: float
    bytes_down: int
    bytes_up: int
    error: str

    @property
    def overdue(self) -> bool:
        """Whether the reply was counted although the call took longer, by the wall clock, than the server waits."""
        return not self.error and self.due - self.sent <= self.allowed < self.seconds


@dataclass
class _Flight:
    """A message on its way. due: the tick at which its reply is there. late: its time is over before its node is done.

    pushed: wall-clock seconds since the app began. allowed: seconds that the server waits for the reply, or that the
    message lives. due, late, reply: known when its node has had it.
    """

    message: Message
    number: int
    sent: int
    expires: int
    pushed: float
    allowed: float
    due: int = 0
    late: bool = False
    reply: Message | None = None


@dataclass
class _Node:
    """A node. free: the tick from which it can work. calls: how many it has had."""

    context: Context
    partition: int
    lag: int
    free: int = 0
    calls: int = 0


class VirtualGrid(Grid):
    """Nodes of this process, for one run: `with VirtualGrid(client_app, 100) as grid: server_app(grid, context)`.

    clients: the client app, or what makes its calls. nodes: how many; their ids are drawn from `seed`, their
    configurations have `partition-id`, `num-partitions` and the entries of `node_config`, in whose texts
    `{partition-id}` is the partition's number, and `{partition-id:03}` the same in three digits. run_config: what
    contexts have. durations: virtual seconds that nodes take for a message, by partition; who is not there takes none.
    real_time: nodes take the seconds that a call takes by the wall clock. call_limit: wall-clock seconds that a call in
    a worker process may take; by default as long as the server waits for the reply, but half a minute at least.

    A message whose time to live is shorter than its node takes is answered by Flower's error, as one that is not known
    is. `send_and_receive` waits in virtual time, at most `timeout`; `pull_messages` hands over what is there, and where
    nothing is, waits for the first; `wait` waits for the first up to a tick, and hands over nothing. A node handles its
    messages one after the other, in the order in which they came.

    exchanges: all messages that were handled. errors: those whose reply is an error. outcomes: what strategies came to.
    now: the virtual tick.
    """

    def __init__(
        self,
        clients: ClientApp | Clients,
        nodes: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        seed: int = 0,
        node_config: Mapping[str, Any] | None = None,
        durations: Mapping[int, float] | None = None,
        real_time: bool = False,
        call_limit: float | None = None,
    ) -> None:
        if nodes < 1:
            raise InputError("nodes", nodes, "at least one node must do the work")
        for partition, taken in (durations or {}).items():
            if partition not in range(nodes):
                raise InputError("durations", partition, f"partitions are numbered 0 to {nodes - 1}")
            if not 0.0 <= taken <= LONGEST:
                raise InputError(f"durations.{partition}", taken, f"write seconds from 0 to {LONGEST:g}")
        if durations and real_time:
            raise InputError("durations", dict(durations), "nodes take the seconds that they take; leave out real_time")
        if call_limit is not None and not 0.0 < call_limit <= LONGEST_CALL:
            raise InputError("call_limit", call_limit, f"write seconds above 0, {LONGEST_CALL:g} at most")
        self._clients: Clients = Here(clients) if isinstance(clients, ClientApp) else clients
        self._streams = Streams(seed)
        self._run = empty_run(self._streams.seed_of("run"))  # of 63 bits, as Flower's
        self._nodes: dict[int, _Node] = {}
        for partition in range(nodes):
            name = self._streams.derive("node", step=partition)
            config = configuration(node_config or {}, partition, nodes)
            context = Context(self._run.run_id, name, config, RecordDict(), dict(run_config or {}))
            self._nodes[name] = _Node(context, partition, ticks((durations or {}).get(partition, 0.0)))
        self._real_time, self._call_limit = real_time, call_limit
        self.now = 0
        self.exchanges: list[Exchange] = []
        self.outcomes: list[Outcome] = []
        self._waiting: list[_Flight] = []
        self._flights: dict[str, _Flight] = {}
        self._lock, self._open, self._origin, self._sent = threading.RLock(), True, time.perf_counter(), 0
        self._stack = ExitStack()

    def __enter__(self) -> VirtualGrid:
        if not _alone.acquire(blocking=False):
            raise FedsimError("another Flower app is running in this process; wait for it, or start another process")
        self._stack.callback(_alone.release)
        self._stack.callback(self._close)
        self._stack.enter_context(acting_as(SERVER, self._run.run_id))
        self._stack.enter_context(seeded_globals(self._streams.derive("server app")))
        self._stack.enter_context(watched(self, self.outcomes.append, self._stall))
        self._stack.enter_context(quick_arrays())
        self._stack.enter_context(few_collections())
        self._origin = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        try:
            if kind is None:
                self._work()  # what was sent is handled, also where nobody asks for the reply
        finally:
            self._stack.close()

    def _close(self) -> None:
        self._open = False

    @property
    def errors(self) -> list[Exchange]:
        """The exchanges whose reply is an error."""
        return [exchange for exchange in self.exchanges if exchange.error]

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds since the app began."""
        return time.perf_counter() - self._origin

    @property
    def run(self) -> Any:
        """The run that this grid is for."""
        return self._run

    def set_run(self, run: Any) -> None:
        """Take over another run's description."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message, as its constructor does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Name the nodes, in the order of their partitions."""
        if not self._open and threading.current_thread().daemon:
            raise Ended  # to the thread that a legacy server leaves behind when it fails
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; their ids, without those whose node does not exist, which Flower's log tells."""
        with self._lock:
            return self._pushed(messages, math.inf)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand over the replies that are there; where none is, those that will be there next.

        Of ids that are unknown, or were handed over before, errors; they do not keep the clock from going on.
        """
        with self._lock:
            self._work()
            known, replies = [], []
            for name in dict.fromkeys(message_ids):
                if name in self._flights:
                    known.append(name)
                else:
                    replies.append(unavailable(name, self._run.run_id, time.time()))
            if known:
                self.now = max(self.now, min(self._flights[name].due for name in known))
            return replies + self._taken(known)

    def wait(self, message_ids: Iterable[str], until: int | None = None) -> list[str]:
        """Let time go on until the first of these messages' replies is there, at most to the tick `until`.

        Where none of them is due by then, or no message is named, the clock stands at `until`; one that is past leaves
        it as it is. Of the messages those whose replies are there now, in the order in which these came; nothing is
        handed over, so that a server can look without pulling time forward. Messages that are unknown, or whose replies
        were handed over before, are ignored.
        """
        with self._lock:
            self._work()
            known = [name for name in dict.fromkeys(message_ids) if name in self._flights]
            ends = [self._flights[name].due for name in known] + ([] if until is None else [until])
            self.now = max(self.now, min(ends, default=self.now))
            return [flight.message.metadata.message_id for flight in self._there(known)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and hand over the replies that are there after `timeout` virtual seconds; all, where None."""
        with self._lock:
            names = self._pushed(messages, math.inf if timeout is None else timeout)
            self._work()
            end = max((self._flights[name].due for name in names), default=self.now)
            if timeout is not None and timeout < seconds(end - self.now):
                end = self.now + ticks(max(timeout, 0.0))
            self.now = max(self.now, end)
            return self._taken(names)

    def _pushed(self, messages: Iterable[Message], timeout: float) -> list[str]:
        """Take messages, for whose replies the server waits so many seconds; the ids of those that have a node."""
        return [message.metadata.message_id for message in messages if self._push(message, timeout)]

    def _push(self, message: Message, timeout: float) -> bool:
        metadata = message.metadata
        if metadata.reply_to_message_id or metadata.ttl <= 0:
            raise ValueError(f"Invalid message: {message}")
        if metadata.dst_node_id not in self._nodes:
            getLogger("flwr").error("Invalid destination node ID for Message: %s", metadata.dst_node_id)
            return False
        self._sent += 1
        name_message(message, f"{self._sent:016x}")
        expires = self.now + ticks(min(metadata.ttl, LONGEST))
        allowed = min(metadata.ttl, max(timeout, 0.0))
        flight = _Flight(copied(message), self._sent, self.now, expires, self.elapsed, allowed)
        self._flights[metadata.message_id] = flight
        self._waiting.append(flight)
        return True

    def _work(self) -> None:
        """Have all messages handled that were sent: those of a node in their order."""
        while self._waiting:
            first: dict[int, _Flight] = {}
            rest = []
            for flight in self._waiting:
                if first.setdefault(flight.message.metadata.dst_node_id, flight) is not flight:
                    rest.append(flight)
            self._waiting = rest
            for flight in first.values():
                flight.due = max(flight.sent, self._node(flight).free)
                flight.late = flight.due > flight.expires
            begun = [flight for flight in first.values() if not flight.late]
            answers = iter(self._clients.answers([self._call(flight) for flight in begun]))
            for flight in first.values():
                self._answer(flight, None if flight.late else next(answers))

    def _node(self, flight: _Flight) -> _Node:
        return self._nodes[flight.message.metadata.dst_node_id]

    def _call(self, flight: _Flight) -> Call:
        node = self._node(flight)
        node.calls += 1
        seed = self._streams.derive("client app", turn=node.calls, step=node.partition)
        limit = max(flight.allowed, LEAST_CALL) if self._call_limit is None else self._call_limit
        return Call(flight.message, node.context, node.partition, seed, min(limit, LONGEST_CALL))

    def _answer(self, flight: _Flight, answer: Answer | None) -> None:
        """Note what came of a message. answer: None where its time was over before its node began."""
        metadata, node = flight.message.metadata, self._node(flight)
        if answer is not None:
            node.context = answer.context or node.context
            flight.due = node.free = flight.due + (ticks(answer.seconds) if self._real_time else node.lag)
            flight.late = flight.due > flight.expires
        if answer is None or flight.late:
            flight.due = flight.expires
            flight.reply = unavailable(metadata.message_id, self._run.run_id, time.time())
        else:
            flight.reply = answer.reply
        name_message(flight.reply, f"{metadata.message_id}-reply")
        reply = flight.reply
        self.exchanges.append(
            Exchange(
                node=metadata.dst_node_id,
                partition=node.partition,
                message_type=metadata.message_type,
                round=_round(flight.message),
                pushed=flight.pushed,
                sent=seconds(flight.sent),
                due=seconds(flight.due),
                allowed=flight.allowed,
                seconds=0.0 if answer is None else answer.seconds,
                bytes_down=_size(flight.message),
                bytes_up=_size(reply),
                error=(reply.error.reason or "no reason given") if reply.has_error() else "",
            )
        )

    def _there(self, names: Iterable[str]) -> list[_Flight]:
        """Those of these flights whose replies are there, in the order in which they came."""
        flights = [self._flights[name] for name in names if self._flights[name].due <= self.now]
        return sorted(flights, key=lambda flight: (flight.due, flight.number))

    def _taken(self, names: Iterable[str]) -> list[Message]:
        """Take the replies that are there out of the grid, in the order in which they came."""
        replies = []
        for flight in self._there(names):
            del self._flights[flight.message.metadata.message_id]
            assert flight.reply is not None
            replies.append(flight.reply)
        return replies

    def _stall(self, wanted: int | None) -> NoReturn:
        said = "more nodes" if wanted is None else f"{wanted} nodes"
        raise StalledError(
            f"the app waits for {said} and there are {len(self._nodes)}; give it more, or have its strategy ask fewer"
        )


def _round(message: Message) -> int | None:
    """The round that a message belongs to, where it says so."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord) and isinstance(number := record.get(ROUND), int):
            return number
    return int(message.metadata.group_id) if message.metadata.group_id.isdecimal() else None


def _size(message: Message) -> int:
    if not message.has_content():
        return 0
    records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())
