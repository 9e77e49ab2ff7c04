"""What our parts of somebody's client app read of messages and of their node."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.flower.names import PARTITION, PARTITIONS, ROUND
from fedsim.flower.serving.state_dict import StateDict


def flat(held: ArrayRecord) -> Tensor:
    """The floats of arrays, one after the other, [d], as of `StateDict`. InputError: there are none."""
    return StateDict.of(held, option="arrays").vector(held)


def rows(held: ArrayRecord) -> Tensor:
    """The floats of arrays [n, *shape], as [n, d]. InputError: they have not as many rows each."""
    model = StateDict.of(held, option="arrays")
    counts = {shape[:1] for shape in model.layout.shapes}
    if len(counts) > 1 or counts == {()}:
        raise InputError("arrays", ", ".join(map(str, model.layout.shapes)), "send as many rows of each array")
    ((count,),) = counts
    parts = torch.split(model.vector(held), list(model.layout.sizes))
    return torch.cat([part.view(count, -1) for part in parts], dim=1)


def filled(held: ArrayRecord, x: Tensor) -> ArrayRecord:
    """The same arrays, with the floats of a vector [d] in place of theirs, in their types."""
    model = StateDict.of(held, option="arrays")
    return model.record(model.model_floats(x), model.kept(held))


def sent_record(message: Message, name: str) -> tuple[str, ArrayRecord]:
    """The arrays that a message is about, and the name of their record: this one, or the only one."""
    records = message.content.array_records
    if name not in records and len(records) != 1:
        found = ", ".join(records) or "(nothing)"
        raise InputError("message", found, f"send the arrays in a record {name!r}, or in one alone")
    name = name if name in records else next(iter(records))
    return name, records[name]


def round_of(message: Message) -> int:
    """The round of a message, from 0. InputError: it says none."""
    for settings in message.content.config_records.values():
        if isinstance(number := settings.get(ROUND), int):
            return number - 1
    raise InputError(ROUND, "(nothing)", "draws are named by the round; send it among the settings")


def partition_of(context: Context) -> tuple[int, int]:
    """Which partition a node has, of how many. InputError: it does not know."""
    found = [context.node_config.get(name) for name in (PARTITION, PARTITIONS)]
    if not all(isinstance(number, int) for number in found):
        remedy = "start the node with --node-config 'partition-id=0 num-partitions=2', ids differing"
        raise InputError(PARTITION, found[0], remedy)
    return int(str(found[0])), int(str(found[1]))
