"""Which client's number each node has, while nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.core.clock import ticks
from fedsim.flower.names import CONFIG, IDENTIFY, PARTITION, PARTITIONS
from fedsim.flower.nodes import Sent, answered, push
from fedsim.flower.replies import reason_of
from fedsim.flower.windows import Clock

LOOK = 0.2
"""Seconds of the wall clock between two looks at who is connected."""
MOST = 10**7
"""Partitions that there can be: for each the server keeps a place."""
UNKNOWN = "does not say which partition it is; call fedsim.flower.mods.identify(app) in its client app"


@dataclass
class Register:
    """The numbers of nodes. A node keeps its own when it leaves, for when it comes back.

    identify: a node's number is its partition, for which it is asked; without, nodes are numbered as the grid lists
    them. ttl: seconds for which an answer is waited for, though nothing else waits for it. tell: what is told of a node
    that cannot be numbered. renew: says that numbers are others' now. nodes: by number; 0 where nobody has it. present:
    the numbers of those who are connected, ascending. asked: who has not answered yet. refused: who is connected and
    has no number, and why.
    """

    grid: Grid
    clock: Clock
    identify: bool
    ttl: float
    tell: Callable[[str], None]
    renew: Callable[[Iterable[int]], None]
    nodes: list[int] = field(default_factory=list)
    present: list[int] = field(default_factory=list)
    asked: dict[Sent, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._number: dict[int, int] = {}
        self._said: dict[int, int] = {}
        self._looked = 0.0

    def look(self, at_work: Callable[[], Collection[int]]) -> None:
        """Look who is connected, on the wall clock not more often than `LOOK`, and give newcomers numbers.

        at_work: nodes that have an order. One of them that has lost its number gets another when that is over.
        """
        now = time.monotonic()
        if self.present and self.clock.real and now - self._looked < LOOK:
            return
        self._looked, there = now, list(self.grid.get_node_ids())
        new = [node for node in there if node not in self._number]
        if new or self.asked or self.refused:
            connected = set(there)
            busy = at_work()
            self._number_new([node for node in new if node not in busy], connected)
        self.present = sorted(self._number[node] for node in there if node in self._number)

    def restore(self, nodes: list[int]) -> None:
        """Give these nodes the numbers that they had; 0: nobody. What nodes have said of themselves is still known."""
        self.nodes, self.present = list(nodes), []
        self._number = {node: number for number, node in enumerate(nodes) if node}

    def _number_new(self, new: list[int], there: Collection[int]) -> None:
        if self.identify:
            self._ask(new, there)
            for node in new:
                partition = self._said.get(node)
                if partition is None:
                    continue
                holder = self.nodes[partition] if partition < len(self.nodes) else 0
                if holder in there:
                    self._refuse(node, f"node {node} and node {holder} are both partition {partition}")
                else:
                    self._name(node, partition)
            return
        # Where nobody who had a number is there any more, the run goes on with others in their places.
        begin = len(self.nodes) if any(node in self._number for node in there) else 0
        for place, node in enumerate(new):
            self._name(node, begin + place)

    def _name(self, node: int, number: int) -> None:
        """Give a node a number, which another node may have had."""
        self.nodes += [0] * (number + 1 - len(self.nodes))
        if self._number.pop(self.nodes[number], None) is not None:
            self.renew([number])
        self.nodes[number], self._number[node] = node, number
        self.refused.pop(node, None)

    def _ask(self, new: list[int], there: Collection[int]) -> None:
        """Ask who has not been asked, and take in what has come; who leaves is asked anew when it comes back."""
        now = self.clock.read()
        self.refused = {node: why for node, why in self.refused.items() if node in there}
        self.asked = {sent: end for sent, end in self.asked.items() if sent.node in there}
        waiting = {sent.node for sent in self.asked}
        unknown = [node for node in new if not (node in waiting or node in self._said or node in self.refused)]
        messages = [Message(RecordDict(), node, IDENTIFY, ttl=self.ttl) for node in unknown]
        for sent in push(self.grid, messages) if messages else ():
            if sent is not None:
                self.asked[sent] = now + ticks(self.ttl)
        for reply in self.clock.pull([sent.name for sent in self.asked]) if self.asked else ():
            sent = answered(reply, self.asked)
            if sent is not None:
                del self.asked[sent]
                self._hear(sent.node, reply)
        for sent in [sent for sent, end in self.asked.items() if end <= now]:
            del self.asked[sent]
            self._refuse(sent.node, f"node {sent.node} {UNKNOWN} (no answer within {self.ttl:g} s)")

    def _hear(self, node: int, reply: Message) -> None:
        """Take in which partition a node says that it is."""
        if reply.has_error():
            self._refuse(node, f"node {node} {UNKNOWN} ({reason_of(reply)})")
            return
        said = reply.content.config_records.get(CONFIG, ConfigRecord())
        partition, total = said.get(PARTITION), said.get(PARTITIONS)
        if type(partition) is int and type(total) is int and 0 <= partition < total <= MOST:
            self._said[node] = partition
        else:
            self._refuse(node, f"node {node} {UNKNOWN}")

    def _refuse(self, node: int, why: str) -> None:
        if self.refused.get(node) != why:
            self.refused[node] = why
            self.tell(why)
