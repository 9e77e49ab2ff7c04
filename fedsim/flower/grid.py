"""The engine over a Flower grid: orders go to the nodes that hold their clients; time is the wall clock's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.aggregation import Aggregator
from fedsim.engine.ledger import Ledger
from fedsim.engine.virtual import settle
from fedsim.errors import FedsimError
from fedsim.exchange import Orders, Replies, Window
from fedsim.flower.recipe import identity
from fedsim.flower.records import (
    ARRAYS,
    BYTES_UP,
    CLIENT_METRICS,
    CLIENTS,
    CONFIG,
    EXAMPLES,
    METRICS,
    ORDER,
    PARTITION,
    PARTITIONS,
    ROUND,
    STATE,
    record,
    tensors,
)
from fedsim.problems.supervised import Supervised

Introduction = Mapping[str, str]
"""What a node says of itself; see `fedsim.flower.node.introduce`."""
PAUSES = (0.01, 0.5)
"""Seconds between two looks for replies: at first, and at most."""


class GridError(FedsimError):
    """A node that cannot be used, has failed, or does not answer."""


@dataclass(frozen=True)
class _Flight:
    """An order on its way. partitions: of the nodes that are to answer, by message id."""

    orders: Orders
    partitions: dict[str, int]


class GridEngine:
    """Takes orders, sends each node those of its clients, and hands back the replies; see `fedsim.loop`.

    The clients `c` with `c mod num-partitions = partition-id` live on one node; rows are put back in the
    clients' order, so that any number of nodes gives the same replies. Making the engine waits for the nodes,
    maps their ids to partitions, and refuses (GridError) those with another fedsim or another experiment.

    experiment: the recipe's digest. timeout: seconds to wait for all nodes, and for the replies of a window.
    time: seconds since all nodes were there. ledger: payload bytes, as in one process. busy: clients at work.
    """

    def __init__(
        self,
        grid: Grid,
        problem: Supervised,
        aggregator: Aggregator,
        *,
        experiment: str,
        timeout: float = 600.0,
    ) -> None:
        self.grid, self.problem, self.aggregator, self.timeout = grid, problem, aggregator, timeout
        self.time = 0.0
        self.ledger = Ledger()
        self._flight: _Flight | None = None
        self._origin = time.monotonic()
        self._introductions = _meet(grid, experiment, timeout)
        self._nodes = {partition: node for partition, (node, _) in self._introductions.items()}
        self._origin = time.monotonic()

    @property
    def busy(self) -> frozenset[int]:
        """Clients whose replies are still to come."""
        return frozenset() if self._flight is None else frozenset(self._flight.orders.clients.tolist())

    def submit(self, orders: Orders) -> None:
        """Send each node the order for its clients."""
        if self._flight is not None:
            raise GridError("an order is on its way; collect its replies first")
        config = ConfigRecord({ROUND: orders.round + 1, **orders.config})
        payload = record(orders.payload)
        owner = orders.clients % len(self._nodes)
        # An order to nobody goes to the first node, so that it comes to what it does in one process.
        involved = sorted(set(owner.tolist())) or [0]
        contents = {}
        for partition in involved:
            order = ConfigRecord({"action": orders.action, CLIENTS: orders.clients[owner == partition].tolist()})
            contents[partition] = RecordDict({ARRAYS: payload, CONFIG: config, ORDER: order})
        self.ledger.bytes_down += orders.nbytes * len(orders.clients)
        group = str(orders.round + 1)
        self._flight = _Flight(orders, _send(self.grid, self._nodes, contents, MessageType.TRAIN, group))

    def collect(self, window: Window) -> Replies:  # noqa: ARG002
        """Wait until all have answered, and return their replies in ascending order of client."""
        if self._flight is None:
            raise GridError("no order is on its way; submit one first")
        flight, self._flight = self._flight, None
        contents = _receive(self.grid, flight.partitions, self.timeout)
        self.time = time.monotonic() - self._origin
        device = self.problem.device
        payloads = [tensors(content.array_records[ARRAYS], device) for content in contents.values()]
        metrics = [tensors(content.array_records[CLIENT_METRICS], device) for content in contents.values()]
        clients, back = torch.cat([part.pop(CLIENTS).cpu() for part in metrics]).sort()
        examples = torch.cat([part.pop(EXAMPLES).cpu() for part in metrics])[back]
        self._hold(flight.orders, clients, examples)
        sent = {int(str(content.metric_records[METRICS][BYTES_UP])) for content in contents.values()}
        if len(sent) > 1:
            raise GridError(f"nodes sent replies of different sizes: {sorted(sent)} bytes a client")
        replies = Replies(
            clients,
            _merged(payloads, back),
            _merged(metrics, back),
            examples,
            clients[:0],
            self.aggregator,
        )
        return settle(replies, self.ledger, sent.pop())

    def snapshot(self) -> dict[str, Any]:
        """Clock, ledger and what the clients remember, which the nodes are asked for.

        It has the form of `VirtualEngine.snapshot`, so that either engine can go on from the other's.
        """
        if self._flight is not None:
            raise GridError("an order is on its way; take a snapshot between rounds")
        found = {"time": self.time, "ledger": asdict(self.ledger), "flights": []}
        if not self._stateful:
            return found | {"store": {CLIENTS: torch.zeros(0, dtype=torch.int64)}}
        contents = self._ask("query.hand_over", {partition: RecordDict() for partition in self._nodes})
        states = [tensors(content.array_records[STATE]) for content in contents.values()]
        order = torch.argsort(torch.cat([state[CLIENTS] for state in states]))
        return found | {"store": _merged(states, order)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot, also one of other nodes; replies still on their way are forgotten."""
        self._flight = None
        self.time, self.ledger = saved["time"], Ledger(**saved["ledger"])
        self._origin = time.monotonic() - self.time
        if self._stateful:
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
        names = ("executor", "network", "chunk", "device")
        return {"nodes": len(said)} | {name: " ".join(sorted({answer[name] for answer in said})) for name in names}

    @property
    def _stateful(self) -> bool:
        return any(answer["stateful"] == "True" for _, answer in self._introductions.values())

    def _ask(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        return _receive(self.grid, _send(self.grid, self._nodes, contents, kind, ""), self.timeout)

    def _hold(self, orders: Orders, clients: Tensor, examples: Tensor) -> None:
        """Refuse replies of other clients, or of clients that hold other data than the server knows of."""
        if not torch.equal(clients, orders.clients):
            wanted, found = orders.clients.tolist(), clients.tolist()
            raise GridError(f"clients {found} have answered where {wanted} were asked")
        known = self.problem.sizes[clients]
        other = (examples != known).nonzero().flatten().tolist()
        if other:
            row = other[0]
            raise GridError(
                f"client {int(clients[row])} has {int(examples[row])} examples on its node and "
                f"{int(known[row])} on the server; give all machines the same data"
            )


def _meet(grid: Grid, experiment: str, timeout: float) -> dict[int, tuple[int, Introduction]]:
    """Wait for all nodes: id and introduction by partition. GridError: one does not fit, or is missing."""
    own, end = identity(), time.monotonic() + timeout
    met: dict[int, tuple[int, Introduction]] = {}
    asked: set[int] = set()
    count: int | None = None
    while count is None or len(met) < count:
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked |= set(new)
        if not new:
            if time.monotonic() >= end:
                missing = "all" if count is None else sorted(set(range(count)) - set(met))
                raise GridError(f"waited {timeout:g} s for nodes; missing partitions: {missing}")
            time.sleep(PAUSES[1] / 5)
            continue
        contents = {node: RecordDict({CONFIG: ConfigRecord(dict(own))}) for node in new}
        flight = _send(grid, {node: node for node in new}, contents, MessageType.QUERY, "")
        for node, content in _receive(grid, flight, timeout, "node").items():
            said = {name: str(value) for name, value in content.config_records[CONFIG].items()}
            _refuse_stranger(node, said, own, experiment)
            partition, total = int(said[PARTITION]), int(said[PARTITIONS])
            if count not in (None, total):
                raise GridError(f"node {node} counts {total} partitions where another counts {count}")
            count = total
            if not 0 <= partition < count:
                raise GridError(f"node {node} is partition {partition} of {count}; ids are below {count}")
            if partition in met:
                raise GridError(f"nodes {met[partition][0]} and {node} are both partition {partition}")
            met[partition] = (node, said)
    return dict(sorted(met.items()))


def _refuse_stranger(node: int, said: Introduction, own: Mapping[str, str], experiment: str) -> None:
    for name, value in own.items():
        if said[name] != value:
            raise GridError(
                f"node {node} has fedsim {said['version']} with source {said['source']}, the server has "
                f"{own['version']} with {own['source']}; install the same on both (a local SuperLink runs its "
                "nodes from the folder in which it was started: end it before you run another copy)"
            )
    if said["experiment"] != experiment:
        raise GridError(
            f"node {node} reads another experiment ({said['experiment']}) than the server ({experiment}); "
            "their experiment files differ"
        )


def _send(
    grid: Grid, nodes: Mapping[int, int], contents: Mapping[int, RecordDict], kind: str, group: str
) -> dict[str, int]:
    """Send contents to nodes, both by partition: partitions by message id."""
    messages = [
        Message(content, dst_node_id=nodes[partition], message_type=kind, group_id=group)
        for partition, content in contents.items()
    ]
    sent = list(grid.push_messages(messages))
    if len(sent) < len(messages) or not all(sent):
        raise GridError(f"Flower took {sum(map(bool, sent))} of {len(messages)} messages; are all nodes connected?")
    return dict(zip(sent, contents, strict=True))


def _receive(
    grid: Grid, partitions: Mapping[str, int], timeout: float, whose: str = "partition"
) -> dict[int, RecordDict]:
    """Wait for all replies: contents by ascending partition. GridError: one is an error, or is late."""
    waiting, found = dict(partitions), {}
    end, pause = time.monotonic() + timeout, PAUSES[0]
    while waiting:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            partition = waiting.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise GridError(f"{whose} {partition} has failed: {reply.error.reason}")
            found[partition] = reply.content
        if not waiting:
            break
        if time.monotonic() >= end:
            silent = ", ".join(map(str, sorted(waiting.values())))
            raise GridError(f"no reply within {timeout:g} s from {whose} {silent}")
        time.sleep(pause)
        pause = min(1.2 * pause, PAUSES[1])
    return dict(sorted(found.items()))


def _merged(parts: Sequence[Mapping[str, Tensor]], order: Tensor) -> dict[str, Tensor]:
    """Put the parts' rows one after the other, then in this order."""
    return {name: torch.cat([part[name] for part in parts])[order.to(rows.device)] for name, rows in parts[0].items()}
