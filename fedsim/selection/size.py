"""How many clients a selection takes: a count, or a share of the population."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import InputError
from fedsim.options import Count, options


@options
class Size:
    """The options `count` and `fraction`, of which one is given.

    count: clients per selection. fraction: the same as a share of the population, rounded, at least one.
    """

    count: Count | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.count is None and self.fraction is None:
            raise InputError("count", "(nothing)", "give count or fraction")
        if self.count is not None and self.fraction is not None:
            raise InputError("fraction", self.fraction, f"give it or count ({self.count}), not both")

    def check(self, population: int) -> None:
        """Refuse a count above the population."""
        if self.count is not None and self.count > population:
            raise InputError("selection.count", self.count, f"there are only {population} clients")

    def of(self, population: int) -> int:
        """How many clients of this population a selection takes."""
        if self.count is not None:
            return self.count
        return max(1, round((self.fraction or 0.0) * population))


def quick_to_search(busy: Collection[int]) -> Collection[int]:
    """`busy` itself when membership in it is quick to tell, else a set of it."""
    return busy if isinstance(busy, (set, frozenset, dict)) else set(busy)


def first_distinct(drawn: Iterable[int], busy: Collection[int], count: int) -> list[int]:
    """Take the first `count` different clients of `drawn` that are not busy, or fewer when it ends."""
    return list(islice((client for client in dict.fromkeys(drawn) if client not in busy), count))


def without(clients: Tensor, busy: Collection[int]) -> Tensor:
    """`clients` [n] but those that are busy, in the same order."""
    return clients[~torch.isin(clients, torch.tensor(list(busy), dtype=torch.int64))] if busy else clients
