"""Partitions that flwr-datasets makes, over a data set that has nothing but an index and a label.

The library is imported only when a partition must be made that the disk does not have yet.
"""

from __future__ import annotations

import heapq
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeInt, PositiveFloat, PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, Indices
from fedsim.problems.partitions.base import Partition, Sampled, Shared, hold_out


@options
class Library(Sampled, Shared, ABC):
    """A partition that flwr-datasets makes."""

    def split(self, data: Dataset, seed: int) -> Partition:
        """Deal through the library; what it cannot do is an InputError on the option that is to blame."""
        self.check(data)
        order = self.chosen(data, seed)
        with _undisturbed():
            lists = self._lists(data, order, Streams(seed).derive("partition/library"))
        lists = self.evened(lists, seed)
        dealt = np.concatenate(lists)
        if min(map(len, lists)) == 0 or len(np.unique(dealt)) != len(dealt):
            raise self.impossible(data)
        return hold_out(Partition.from_lists(lists), self.holdout, seed)

    def _lists(self, data: Dataset, order: Indices, seed: int) -> list[Indices]:
        """Let the library deal the examples in this order; the training indices of each client."""
        import datasets
        from flwr_datasets import partitioner as library

        class IndexOnly(datasets.Dataset):  # type: ignore[misc]
            """A data set without the fingerprints of its parts, which take longer than the parts."""

            def select(self, *args: Any, **kwargs: Any) -> Any:
                return super().select(*args, **{"new_fingerprint": "index-only", **kwargs})

        dealer = self.dealer(library, seed)
        dealer.dataset = IndexOnly.from_dict({"index": order, "label": data.y[order]})
        try:
            return [_index(dealer.load_partition(client)) for client in range(self.clients)]
        except ValueError as error:
            raise self.impossible(data) from error

    @abstractmethod
    def dealer(self, library: Any, seed: int) -> Any:
        """Return the library's partitioner; `library` is the module that has it."""

    def evened(self, lists: list[Indices], seed: int) -> list[Indices]:  # noqa: ARG002
        """What is made of the clients' examples as the library has dealt them; by default they stay."""
        return lists

    def impossible(self, data: Dataset) -> InputError:
        """Say which option made the library give up."""
        remedy = f"{self.available(data)} training examples leave some client without any; take fewer clients"
        return InputError("partition.clients", self.clients, remedy)

    def classes(self, data: Dataset) -> int:
        """Return the number of classes in the training set; raises InputError when labels are no classes."""
        if data.num_classes == 0:
            name = type(self).__name__.lower()
            raise InputError("partition.kind", name, f"{data.name} has no classes to deal by; take iid")
        return len(np.unique(data.y))


@options
class IID(Library):
    """Equal shares of the shuffled examples: floor or ceil of n / C each."""

    def dealer(self, library: Any, seed: int) -> Any:  # noqa: ARG002
        """Cut the shuffled examples into C runs."""
        return library.IidPartitioner(num_partitions=self.clients)


@options
class Dirichlet(Library):
    """Each class is shared out in proportions drawn from Dir(alpha) over the clients.

    Source: Yurochkin et al. 2019; Hsu et al. 2019.
    """

    alpha: PositiveFloat
    """How evenly classes are shared out; small is uneven."""
    min_size: NonNegativeInt = 1
    """Examples that a client has at least; with 0, clients to whom none fall are left out, and there are fewer."""
    fill: Literal["draw", "steal"] = "draw"
    """What becomes of a draw that leaves a client with less than `min_size`: all is drawn again, up to 11 times; or
    such a client is given examples, at random, of whoever has the most at the time.
    """
    self_balancing: bool = False
    """A client that has more than n / C examples gets none of the classes that follow."""

    def check(self, data: Dataset) -> None:
        """Refuse targets that are no classes, and too few examples."""
        super().check(data)
        self.classes(data)
        if self.fill == "steal" and not self.min_size:
            raise InputError("partition.fill", "steal", "with min_size = 0 nobody is short of examples; remove one")
        if self.min_size * self.clients > self.available(data):
            remedy = f"{self.clients} clients cannot have that many each of {self.available(data)} training examples"
            raise InputError("partition.min_size", self.min_size, remedy)

    def dealer(self, library: Any, seed: int) -> Any:
        """Draw once, or until every client has `min_size` examples."""
        return library.DirichletPartitioner(
            num_partitions=self.clients,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=self.min_size if self.fill == "draw" else 0,
            self_balancing=self.self_balancing,
            shuffle=False,
            seed=seed,
        )

    def evened(self, lists: list[Indices], seed: int) -> list[Indices]:
        """Have those who are short of examples steal some, or leave out those who have none."""
        if self.fill == "steal":
            return stolen(lists, self.min_size, Streams(seed).generator("partition/steal"))
        return [own for own in lists if len(own)] if self.min_size == 0 else lists

    def impossible(self, data: Dataset) -> InputError:  # noqa: ARG002
        """Blame the draws, none of which was even enough."""
        remedy = (
            f"no draw of 11 with alpha = {self.alpha} gave each of {self.clients} clients that many examples; "
            'set fill = "steal", or min_size = 0 to leave out who has none, or raise alpha, or take fewer clients'
        )
        return InputError("partition.min_size", self.min_size, remedy)


@options
class Shards(Library):
    """Sort by class, cut into C * shards_per_client equal shards, give each client that many at random.

    Up to C * shards_per_client - 1 examples are left over and unused. Source: McMahan et al. 2017, section 3.
    """

    shards_per_client: PositiveInt = 2
    """Shards that a client is given."""

    def check(self, data: Dataset) -> None:
        """Refuse targets that are no classes, and shards without an example."""
        super().check(data)
        self.classes(data)
        if self.clients * self.shards_per_client > self.available(data):
            remedy = f"{self.clients} clients would need more shards than there are examples, {self.available(data)}"
            raise InputError("partition.shards_per_client", self.shards_per_client, remedy)

    def dealer(self, library: Any, seed: int) -> Any:
        """Deal shards of floor(n / shards) examples."""
        return library.ShardPartitioner(
            num_partitions=self.clients,
            partition_by="label",
            num_shards_per_partition=self.shards_per_client,
            shuffle=False,
            seed=seed,
        )


@options
class Pathological(Library):
    """Each client has exactly `classes_per_client` classes; those that have a class share it equally.

    A class that no client is given is not used. Source: Li et al. 2022, Federated learning on non-IID data silos.
    """

    classes_per_client: PositiveInt
    """Classes that a client has."""
    assignment: Literal["random", "deterministic", "first-deterministic"] = "random"
    """Which classes client c has: random ones; the classes c, c + 1, ... modulo K (deterministic); or class c modulo K
    and others at random (first-deterministic).
    """

    def check(self, data: Dataset) -> None:
        """Refuse more classes than there are."""
        super().check(data)
        if self.classes_per_client > self.classes(data):
            remedy = f"the training set has {self.classes(data)} classes"
            raise InputError("partition.classes_per_client", self.classes_per_client, remedy)

    def dealer(self, library: Any, seed: int) -> Any:
        """Choose classes, then share each out."""
        return library.PathologicalPartitioner(
            num_partitions=self.clients,
            partition_by="label",
            num_classes_per_partition=self.classes_per_client,
            class_assignment_mode=self.assignment,
            shuffle=False,
            seed=seed,
        )

    def impossible(self, data: Dataset) -> InputError:  # noqa: ARG002
        """Blame a class that more clients want than it has examples."""
        remedy = f"some class has fewer examples than clients that share it; lower it or clients ({self.clients})"
        return InputError("partition.classes_per_client", self.classes_per_client, remedy)


@options
class Exponential(Library):
    """Client c has a number of examples in proportion to e^(c + 1), dealt at random."""

    def dealer(self, library: Any, seed: int) -> Any:  # noqa: ARG002
        """Cut the shuffled examples by size."""
        return library.ExponentialPartitioner(num_partitions=self.clients)


@options
class Linear(Library):
    """Client c has a number of examples in proportion to c + 1, dealt at random."""

    def dealer(self, library: Any, seed: int) -> Any:  # noqa: ARG002
        """Cut the shuffled examples by size."""
        return library.LinearPartitioner(num_partitions=self.clients)


@options
class Square(Library):
    """Client c has a number of examples in proportion to (c + 1)^2, dealt at random."""

    def dealer(self, library: Any, seed: int) -> Any:  # noqa: ARG002
        """Cut the shuffled examples by size."""
        return library.SquarePartitioner(num_partitions=self.clients)


def stolen(lists: list[Indices], least: int, generator: np.random.Generator) -> list[Indices]:
    """The clients' examples where each has `least`: who has fewer is given some of whoever has the most at the time.

    Which they are is drawn; of two who have as many the first gives one. There must be enough for all.
    """
    held = [own.tolist() for own in lists]
    rich = [(-len(own), client) for client, own in enumerate(held)]
    heapq.heapify(rich)
    for own in held:
        while len(own) < least:
            count, giver = rich[0]
            own.append(held[giver].pop(int(generator.integers(-count))))
            heapq.heapreplace(rich, (count + 1, giver))
    return [np.array(own, dtype=np.int64) for own in held]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the library's warnings from the user, and what its imports draw from the global generator."""
    drawn = random.getstate()
    try:
        with warnings.catch_warnings():
            # It warns of what is an error here or was asked for, and its imports warn of each other.
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(drawn)


def _index(part: Any) -> Indices:
    """Return the index column of a part that the library made, read as Arrow without Python objects."""
    return np.asarray(part.with_format("arrow")[:]["index"], dtype=np.int64)
