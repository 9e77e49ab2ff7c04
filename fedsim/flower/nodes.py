"""Messages to the nodes of a Flower grid: meeting them, sending, and waiting for what they answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsim.core.clock import ticks
from fedsim.core.errors import FedsimError
from fedsim.flower.names import CONFIG, PARTITION, PARTITIONS
from fedsim.flower.recipe import identity
from fedsim.flower.records import DATA

Introduction = Mapping[str, str]
"""What a node says of itself; see `fedsim.flower.node.introduce`."""
EXECUTES = ("executor", "network", "chunk", "device")
"""What a node says of how it executes orders."""
PAUSES = (0.01, 0.5)
"""Seconds between two looks for replies: at first, and at most."""


class GridError(FedsimError):
    """A node that cannot be used, has failed, or does not answer; or what cannot be done on nodes."""


def meet(grid: Grid, experiment: str, data: str, timeout: float) -> dict[int, tuple[int, Introduction]]:
    """Wait for all nodes: id and introduction by partition. GridError: one does not fit, or is missing.

    experiment, data: digests of what they must have in common with the server.
    """
    own, end = identity(), time.monotonic_ns() + ticks(timeout)
    met: dict[int, tuple[int, Introduction]] = {}
    asked: set[int] = set()
    count: int | None = None
    while count is None or len(met) < count:
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked |= set(new)
        if not new:
            if time.monotonic_ns() >= end:
                missing = "all" if count is None else sorted(set(range(count)) - set(met))
                raise GridError(f"waited {timeout:g} s for nodes; missing partitions: {missing}")
            time.sleep(PAUSES[1] / 5)
            continue
        questions = [(node, RecordDict({CONFIG: ConfigRecord(dict(own))})) for node in new]
        sent = send(grid, questions, MessageType.QUERY)
        for node, content in receive(grid, dict(zip(sent, new, strict=True)), timeout, "node").items():
            said = _said(node, content, own)
            _refuse_stranger(node, said, own, experiment, data)
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


def _said(node: int, content: RecordDict, own: Mapping[str, str]) -> Introduction:
    """How a node introduces itself. GridError: not as one does."""
    held = content.config_records.get(CONFIG, ConfigRecord())
    said = {name: str(value)[:200] for name, value in held.items()}
    wanted = {PARTITION, PARTITIONS, *own}
    if all(said.get(name) == value for name, value in own.items()):
        wanted |= {"experiment", DATA, *EXECUTES}
    missing = sorted(wanted - said.keys())
    numbers = [type(held.get(name)) is int for name in (PARTITION, PARTITIONS)]
    if missing or not all(numbers):
        lacks = ", ".join(missing) or f"whole numbers as {PARTITION} and {PARTITIONS}"
        raise GridError(f"node {node} does not introduce itself as fedsim's nodes do; it lacks {lacks}")
    return said


def _refuse_stranger(node: int, said: Introduction, own: Mapping[str, str], experiment: str, data: str) -> None:
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
    if said[DATA] != data:
        raise GridError(f"the clients of node {node} have other examples than the server's; give all the same data")


class Sent(NamedTuple):
    """A message that was sent: its id, the node that it is for, its run and its kind."""

    name: str
    node: int
    run: int
    kind: str


def answered(reply: Message, waiting: Collection[Sent]) -> Sent | None:
    """Which of the messages that wait for one a reply answers: that node, in that run; None: none of them.

    What Flower itself says of a message is from nobody.
    """
    said = reply.metadata
    if reply.has_error():
        return next((sent for sent in waiting if sent.name == said.reply_to_message_id), None)
    found = Sent(said.reply_to_message_id, said.src_node_id, said.run_id, said.message_type)
    return found if found in waiting else None


def push(grid: Grid, messages: Sequence[Message]) -> list[Sent | None]:
    """Send messages, in one go, and return of each what was sent; None: Flower has not taken it.

    Grids name the messages that they are handed; which of them were not taken, some leave out, and some name "".
    """
    taken = {name for name in grid.push_messages(messages) if name}
    said = [message.metadata for message in messages]
    return [
        Sent(one.message_id, one.dst_node_id, one.run_id, one.message_type) if one.message_id in taken else None
        for one in said
    ]


def send(grid: Grid, contents: Sequence[tuple[int, RecordDict]], kind: str, group: str = "") -> list[Sent]:
    """Send contents to node ids, and return what was sent. GridError: Flower has not taken all."""
    messages = [Message(content, dst_node_id=node, message_type=kind, group_id=group) for node, content in contents]
    sent = [one for one in push(grid, messages) if one is not None]
    if len(sent) < len(messages):
        raise GridError(f"Flower took {len(sent)} of {len(messages)} messages; are all nodes connected?")
    return sent


def receive(
    grid: Grid, senders: Mapping[Sent, int], timeout: float, whose: Literal["node", "partition"]
) -> dict[int, RecordDict]:
    """Wait for all replies, to what was sent: contents by sender, ascending. GridError: one is an error, or is late.

    What answers something else is dropped.
    """
    waiting, found = dict(senders), {}
    end = time.monotonic_ns() + ticks(timeout)
    for pause in pauses():
        for reply in grid.pull_messages([sent.name for sent in waiting]):
            sent = answered(reply, waiting)
            if sent is not None:
                sender = waiting.pop(sent)
                found[sender] = content_of(reply, f"{whose} {sender}")
        if not waiting:
            break
        if time.monotonic_ns() >= end:
            raise GridError(silence(timeout, whose, set(waiting.values())))
        time.sleep(pause)
    return dict(sorted(found.items()))


def content_of(reply: Message, whose: str) -> RecordDict:
    """What a reply holds. GridError: its sender has failed."""
    if reply.has_error():
        raise GridError(f"{whose} has failed: {reply.error.reason}")
    return reply.content


def silence(timeout: float, whose: str, silent: set[int]) -> str:
    """Who has not answered, in words."""
    return f"no reply within {timeout:g} s from {whose} {', '.join(map(str, sorted(silent)))}"


def pauses() -> Iterator[float]:
    """Seconds between two looks: short at first, for the replies of quick work."""
    pause, longest = PAUSES
    while True:
        yield pause
        pause = min(1.2 * pause, longest)
