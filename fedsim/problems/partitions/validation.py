"""Examples that nobody trains on, so that options can be chosen by them: a share of each client's, or whole clients'.

They are set aside after a partition was made, whichever it is, so that every partition has both.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Indices
from fedsim.problems.partitions.base import Partition, drawn_clients, parted, rows_of, without

DRAW = "partition/validation"
"""The name of the draw."""


def set_aside(partition: Partition, share: float | None, clients: float | None, seed: int) -> Partition:
    """Set aside `share` of each client's training examples, or a share `clients` of the clients; None or 0: nothing.

    InputError: both are wanted, or the partition has done so itself, or no example would be set aside, or no client is
    left.
    """
    if not share and not clients:
        return partition
    if partition.validation_order is not None:
        option, value = ("validation", share) if share else ("validation_clients", clients)
        raise InputError(f"partition.{option}", value, "the partition sets examples aside by itself; leave it out")
    if share and clients:
        remedy = f"{clients:g} of the clients are set aside already; leave one of the two out"
        raise InputError("partition.validation", share, remedy)
    if clients:
        return _without_clients(partition, clients, seed)
    assert share
    rows = _whole_examples(partition, share, seed) if _shared(partition) else parted(partition, share, DRAW, seed)
    if not len(rows[2]):
        remedy = "clients have too few examples, and none is set aside; raise it, or take validation_clients"
        raise InputError("partition.validation", share, remedy)
    return dataclasses.replace(
        partition, order=rows[0], offset=rows[1], validation_order=rows[2], validation_offset=rows[3]
    )


def _shared(partition: Partition) -> bool:
    """Whether two clients have the same example."""
    width = int(partition.order.max()) + 1
    distinct = np.unique(_owners(partition) * width + partition.order) % width  # an example once for each who has it
    return len(np.unique(distinct)) < len(distinct)


def _owners(partition: Partition) -> Indices:
    """Whose each place of the order is, [total]."""
    return np.repeat(np.arange(partition.clients), partition.sizes)


def _whole_examples(partition: Partition, share: float, seed: int) -> tuple[Indices, Indices, Indices, Indices]:
    """What `parted` gives, where an example is set aside for everybody who has it: `share` of the distinct ones.

    A client that would be left without any gets the last of its own in the draw back, and so does everybody who has it.
    """
    distinct, place = np.unique(partition.order, return_inverse=True)
    rank = Streams(seed).generator(DRAW).permutation(len(distinct))
    aside = rank < int(np.floor(share * len(distinct) + 0.5))
    left = np.logical_or.reduceat(~aside[place], partition.offset[:-1])
    last = np.maximum.reduceat(rank[place], partition.offset[:-1])
    aside[np.isin(rank, last[~left])] = False
    moved, owner = aside[place], _owners(partition)
    offsets = [
        np.concatenate(([0], np.cumsum(np.bincount(owner[chosen], minlength=partition.clients))))
        for chosen in (~moved, moved)
    ]
    return partition.order[~moved], offsets[0], partition.order[moved], offsets[1]


def _without_clients(partition: Partition, share: float, seed: int) -> Partition:
    """The partition of the other clients, and the rows of those set aside, without what others train on, too."""
    chosen = drawn_clients(partition, share, DRAW, seed, "partition.validation_clients")
    left = partition.of(np.setdiff1d(np.arange(partition.clients), chosen))
    order, offset = without(*rows_of(chosen, partition.order, partition.offset), left.order)
    if not len(order):
        remedy = "all that these clients have others train on, too; take validation instead"
        raise InputError("partition.validation_clients", share, remedy)
    return dataclasses.replace(left, validation_order=order, validation_offset=offset, validation_clients=chosen)
