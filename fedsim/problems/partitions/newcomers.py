"""Clients who never take part: what a model, or a method, is worth to who comes when training is over.

They are taken out after a partition was made and examples were set aside, whichever it is, so that every partition has
them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fedsim.core.errors import InputError
from fedsim.problems.datasets.base import Indices
from fedsim.problems.partitions.base import Partition, drawn_clients, without

DRAW = "partition/newcomers"
"""The name of the draw."""
OPTION = "partition.newcomers"


def parted_newcomers(partition: Partition, share: float | None, seed: int) -> tuple[Partition, Partition | None]:
    """The partition of those who take part, and that of a share of the clients who never do; None or 0: of nobody.

    InputError: clients are set aside for validation, or none would be left.
    """
    if not share:
        return partition, None
    if partition.validation_clients is not None:
        remedy = "of the clients some are set aside with all that they have; take partition.validation for that"
        raise InputError(OPTION, share, remedy)
    return parted_clients(partition, drawn_clients(partition, share, DRAW, seed, OPTION))


def parted_clients(partition: Partition, newcomers: Indices) -> tuple[Partition, Partition]:
    """The partition of the others, and that of these clients, int64 [V] ascending.

    These are not judged on examples that others train on, too.
    """
    others = partition.of(np.setdiff1d(np.arange(partition.clients), newcomers))
    theirs, kept = partition.of(newcomers), dict[str, Indices]()
    for name, order, offset in theirs.rows():
        if name in ("holdout", "validation"):
            kept[f"{name}_order"], kept[f"{name}_offset"] = without(order, offset, others.order)
    return others, dataclasses.replace(theirs, **kept)
