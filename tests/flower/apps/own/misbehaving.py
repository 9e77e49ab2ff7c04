"""Clients and nodes that go wrong: replies that do not fit, replies that come twice, nodes that leave."""

import numpy as np
from flwr.app import Array, ArrayRecord, Error

from fedsim.core.clock import ticks
from fedsim.flower import VirtualGrid
from fedsim.flower.internals import copied, unavailable

WEIGHT, NODE_UNAVAILABLE = "num-examples", 5


def _first(content):
    return next(iter(content.array_records.values()))


def _changed(change):
    """Change the first array of the first ArrayRecord."""

    def changed(content):
        record = _first(content)
        name = next(iter(record))
        record[name] = Array(np.asarray(change(record[name].numpy())))

    return changed


def _weighs(value):
    def weighs(content):
        next(iter(content.metric_records.values()))[WEIGHT] = value

    return weighs


def _renamed(content):
    record = _first(content)
    arrays = {name if row else "other": array for row, (name, array) in enumerate(record.items())}
    record.clear()
    record.update(arrays)


def _partial(content):
    record = _first(content)
    del record[next(iter(record))]


def _no_weight(content):
    del next(iter(content.metric_records.values()))[WEIGHT]


def _without(kind):
    def without(content):
        for name in list(getattr(content, kind)):
            del content[name]

    return without


def _extra(content):
    _first(content)["more"] = Array(np.ones(2, np.float32))


def _two(content):
    content["again"] = ArrayRecord([array.numpy() for array in _first(content).values()])


def _list(content):
    next(iter(content.metric_records.values()))[WEIGHT] = [1, 2]


MISBEHAVIOUR = {
    "wrong shapes": _changed(lambda array: np.concatenate([array, array[:1]])),
    "another type": _changed(lambda array: array.astype(np.complex64)),
    "nan": _changed(lambda array: np.where(np.arange(array.size).reshape(array.shape) == 0, np.nan, array)),
    "infinite": _changed(lambda array: array + np.inf),
    "far away": _changed(lambda array: array + 1e6),
    "other names": _renamed,
    "an extra array": _extra,
    "part of the arrays": _partial,
    "two models": _two,
    "no arrays": _without("array_records"),
    "no metrics": _without("metric_records"),
    "no examples' number": _no_weight,
    "no examples": _weighs(0),
    "less than no examples": _weighs(-1),
    "nan examples": _weighs(float("nan")),
    "a list of examples": _list,
}
"""What can be wrong with the content of a reply to a message to train."""


def misbehaving(faults):
    """A mod by which clients go wrong. faults: a row of `MISBEHAVIOUR`, or "dies", by (partition, round).

    A partition or a round that is None stands for all.
    """

    def mod(message, context, call_next):
        found = next(iter(message.content.config_records.values()), {}).get("server-round")
        partition = context.node_config["partition-id"]
        names = [(partition, found), (partition, None), (None, found), (None, None)]
        fault = next((faults[name] for name in names if name in faults), None)
        if message.metadata.message_type.partition(".")[0] != "train" or fault is None:
            return call_next(message, context)
        if fault == "dies":
            raise RuntimeError("this client dies")
        reply = call_next(message, context)
        MISBEHAVIOUR[fault](reply.content)
        return reply

    return mod


class Repeating(VirtualGrid):
    """A grid that hands over each reply twice, and once more when it is asked the next time."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self._before = []

    def _taken(self, names):
        replies = super()._taken(names)
        again, self._before = self._before, [copied(reply) for reply in replies]
        return [*replies, *map(copied, replies), *again]


class Leaving(VirtualGrid):
    """A grid whose nodes come and go, and lose what they were at, as SuperNodes do.

    away: seconds from and to when a partition is not there, by partition. A message whose node leaves before it has
    answered is answered at once by the SuperLink, in its own name.
    """

    def __init__(self, *given, away, **named):
        super().__init__(*given, **named)
        self.away = {partition: tuple(map(ticks, times)) for partition, times in away.items()}

    def get_node_ids(self):
        nodes = zip(super().get_node_ids(), range(len(self._nodes)), strict=True)
        return [node for node, partition in nodes if not self._is_away(partition, self.now, self.now)]

    def _is_away(self, partition, begin, end):
        if partition not in self.away:
            return False
        left, back = self.away[partition]
        return begin < back and end >= left

    def _answer(self, flight, answer):
        super()._answer(flight, answer)
        partition = self._node(flight).partition
        if self._is_away(partition, flight.sent, flight.due):
            name = flight.message.metadata.message_id
            flight.reply = unavailable(name, self.run.run_id, 0.0)
            flight.reply.error = Error(NODE_UNAVAILABLE, "the node is not there")
            flight.due = max(flight.sent, self.away[partition][0])


class Guarded(Leaving):
    """Holds that no node is sent an order of which it has another: neither answered, nor over its time to live."""

    def __init__(self, *given, away=None, **named):
        super().__init__(*given, away=away or {}, **named)
        self.alive, self.most, self.kinds = {}, 0, set()

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            node = message.metadata.dst_node_id
            self.alive = {name: end for name, end in self.alive.items() if end[1] > self.now}
            assert node not in [held for held, _ in self.alive.values()], f"{node} has an order already"
            assert not self._is_away(self._nodes[node].partition, self.now, self.now)
        names = super().push_messages(messages)
        for name, message in zip(names, messages, strict=True):
            expires = self.now + ticks(message.metadata.ttl)
            self.alive[name] = message.metadata.dst_node_id, expires
            self.kinds.add(message.metadata.message_type)
        self.most = max(self.most, len(self.alive))
        return names

    def _taken(self, names):
        replies = super()._taken(names)
        for reply in replies:
            self.alive.pop(reply.metadata.reply_to_message_id, None)
        return replies
