"""What our parts of somebody's client app read of messages and of their node."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.flower.records import PARTITION, PARTITIONS, ROUND


def flat(held: ArrayRecord, *, rows: bool = False) -> Tensor:
    """The floats of arrays, one after the other, [d]: of double precision where one of them is, else of single.

    Whole numbers, such as counts of batches, are no part of it.
    rows: of arrays [n, *shape] instead, as [n, d].
    """
    found = [values for array in held.values() if (values := array.numpy()).dtype.kind == "f"]
    if not found:
        raise InputError("arrays", ", ".join(held) or "(nothing)", "send an array of floats at least")
    if rows and len({values.shape[:1] for values in found}) > 1:
        shapes = ", ".join(str(values.shape) for values in found)
        raise InputError("arrays", shapes, "send as many rows of each array")
    dtype = np.float64 if any(values.dtype == np.float64 for values in found) else np.float32
    shaped = [values.astype(dtype).reshape((len(values), -1) if rows else -1) for values in found]
    return torch.from_numpy(np.concatenate(shaped, axis=-1))


def filled(held: ArrayRecord, x: Tensor) -> ArrayRecord:
    """The same arrays, with the floats of a vector [d] in place of theirs, in their types."""
    numbers, place, found = x.numpy(), 0, dict[str, Array]()
    for name, array in held.items():
        values = array.numpy()
        if values.dtype.kind == "f":
            values = numbers[place : place + values.size].astype(values.dtype).reshape(values.shape)
            place += values.size
            array = Array(values)
        found[name] = array
    return ArrayRecord(found)


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
