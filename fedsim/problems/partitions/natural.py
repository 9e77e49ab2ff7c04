"""The partition that the data set itself names."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.problems.datasets.base import Dataset
from fedsim.problems.partitions.base import Partition, Shared, hold_out, sparse_rows


@options
class Natural(Shared):
    """Each owner that the data set names is a client; owners without training examples are left out.

    Clients are in the order of their owners' ids.
    """

    clients: PositiveInt | None = None
    """How many owners are kept. Not given: all."""
    keep: Literal["first", "largest"] = "first"
    """The first of them, or those with the largest number of examples."""
    cached: ClassVar[bool] = False

    def split(self, data: Dataset, seed: int) -> Partition:
        """Group by owner; the test examples too, where they have owners."""
        if data.owner is None:
            remedy = f"{data.name} does not say who owns an example; take iid or dirichlet"
            raise InputError("partition.kind", "natural", remedy)
        sizes = np.bincount(data.owner)
        owners = np.flatnonzero(sizes)
        if self.clients is not None:
            if self.clients > len(owners):
                raise InputError("partition.clients", self.clients, f"{data.name} has {len(owners)} owners")
            if self.keep == "largest":
                owners = owners[np.argsort(-sizes[owners], kind="stable")]
            owners = np.sort(owners[: self.clients])
        last = max(int(ids.max(initial=0)) for ids in (data.owner, data.owner_test) if ids is not None)
        client = np.full(last + 1, -1, np.int32)
        client[owners] = np.arange(len(owners))
        rows = sparse_rows(client[data.owner], len(owners))
        tests = (None, None) if data.owner_test is None else sparse_rows(client[data.owner_test], len(owners))
        return hold_out(Partition(*rows, *tests), self.holdout, seed)
