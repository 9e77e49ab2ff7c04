"""Partitions of examples that come in random order, dealt as the partitioners of flwr-datasets deal them.

With the same seed they deal the same examples, which the tests hold; that library deals a hundred thousand clients in
minutes, and is imported in as much time as PyTorch.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from fedsim.core.data_files import Array
from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeInt, PositiveFloat, PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, Indices
from fedsim.problems.partitions.base import Partition, Sampled, Shared, Shares, hold_out

DRAWS = 11
"""So often a Dirichlet partition is drawn until it is even enough."""


@options
class Dealt(Sampled, Shared, ABC):
    """A partition of examples that come in random order."""

    cached: ClassVar[bool] = False

    def split(self, data: Dataset, seed: int) -> Partition:
        """Deal; what cannot be done is an InputError on the option that is to blame."""
        self.check(data)
        order = self.chosen(data, seed)
        dealt = self.deal(data.y[order], seed)
        if dealt is None or dealt[1].min() < 1:
            raise self.impossible(data)
        places, sizes = dealt
        return hold_out(Partition(order[places], np.concatenate(([0], np.cumsum(sizes)))), self.holdout, seed)

    @abstractmethod
    def deal(self, labels: Array, seed: int) -> tuple[Indices, Indices] | None:
        """The places of the examples in their random order, client after client, and the clients' sizes, [C].

        labels: of the examples in that order, [n]. None, or a client without any: it cannot be done.
        """

    def impossible(self, data: Dataset) -> InputError:
        """Say which option cannot be had."""
        remedy = f"{self.available(data)} training examples leave some client without any; take fewer clients"
        return InputError("partition.clients", self.clients, remedy)

    def classes(self, data: Dataset) -> int:
        """Return the number of classes in the training set; raises InputError when labels are no classes."""
        if not data.labelled:
            name = type(self).__name__.lower()
            raise InputError("partition.kind", name, f"{data.name} has no classes to deal by; take iid")
        return len(np.unique(data.y))


@options
class IID(Dealt):
    """Equal shares of the shuffled examples: floor or ceil of n / C each."""

    def deal(self, labels: Array, seed: int) -> tuple[Indices, Indices]:  # noqa: ARG002
        """Cut the shuffled examples into C runs."""
        return np.arange(len(labels)), even(len(labels), self.clients)


@options
class Dirichlet(Dealt):
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

    def deal(self, labels: Array, seed: int) -> tuple[Indices, Indices] | None:
        """Draw once, or until every client has `min_size` examples."""
        generator = np.random.default_rng(Streams(seed).derive("partition/library"))
        pools = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        least = self.min_size if self.fill == "draw" else 0
        for _ in range(DRAWS):
            counts = self._counts([len(pool) for pool in pools], generator)
            sizes = counts.sum(axis=0)
            if sizes.min() >= least:
                break
        else:
            return None
        places = np.concatenate(pools)[by_client([np.repeat(np.arange(self.clients), own) for own in counts])]
        if self.fill == "steal":
            lists = np.split(places, np.cumsum(sizes)[:-1])
            lists = stolen(lists, self.min_size, Streams(seed).generator("partition/steal"))
            return np.concatenate(lists), np.array([len(own) for own in lists])
        return places, sizes[sizes > 0] if self.min_size == 0 else sizes

    def _counts(self, held: Sequence[int], generator: np.random.Generator) -> Indices:
        """Draw how many examples of each class each client has, [K, C]. held: examples of each class, [K]."""
        concentration, sizes = np.full(self.clients, self.alpha), np.zeros(self.clients, dtype=np.int64)
        counts = np.empty((len(held), self.clients), dtype=np.int64)
        for own, count in zip(counts, held, strict=True):
            shares = generator.dirichlet(concentration)
            if self.self_balancing:
                shares = np.where(sizes > sum(held) / self.clients, 0.0, shares)
                with np.errstate(invalid="ignore"):  # nobody is left who may have any: the last client has all
                    shares = shares / np.cumsum(shares)[-1]
            with np.errstate(invalid="ignore"):
                cuts = np.clip((np.cumsum(shares) * count).astype(np.int64), 0, count)
            own[:] = np.diff(cuts[:-1], prepend=0, append=count)
            sizes += own
        return counts

    def impossible(self, data: Dataset) -> InputError:  # noqa: ARG002
        """Blame the draws, none of which was even enough."""
        remedy = (
            f"no draw of 11 with alpha = {self.alpha} gave each of {self.clients} clients that many examples; "
            'set fill = "steal", or min_size = 0 to leave out who has none, or raise alpha, or take fewer clients'
        )
        return InputError("partition.min_size", self.min_size, remedy)


@options
class Shards(Dealt):
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

    def deal(self, labels: Array, seed: int) -> tuple[Indices, Indices]:
        """Deal shards of floor(n / shards) examples."""
        generator = np.random.default_rng(Streams(seed).derive("partition/library"))
        shards = self.clients * self.shards_per_client
        size = len(labels) // shards
        first = generator.permutation(len(labels) // size)[:shards] * size
        places = np.argsort(labels, kind="stable")[(first[:, None] + np.arange(size)).ravel()]
        return places, np.full(self.clients, self.shards_per_client * size)


@options
class Pathological(Dealt):
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

    def deal(self, labels: Array, seed: int) -> tuple[Indices, Indices] | None:
        """Choose classes, then share each out."""
        generator = np.random.default_rng(Streams(seed).derive("partition/library"))
        pools = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        has = np.zeros((len(pools), self.clients), dtype=bool)
        for client in range(self.clients):
            has[self._chosen_classes(client, len(pools), generator), client] = True
        used = [(pool, np.flatnonzero(own)) for pool, own in zip(pools, has, strict=True) if own.any()]
        if any(len(own) > len(pool) for pool, own in used):
            return None
        owners = [np.repeat(own, even(len(pool), len(own))) for pool, own in used]
        places = np.concatenate([pool for pool, _ in used])[by_client(owners)]
        return places, np.bincount(np.concatenate(owners), minlength=self.clients)

    def _chosen_classes(self, client: int, classes: int, generator: np.random.Generator) -> list[int]:
        """The classes of a client, of 0 .. classes - 1."""
        if self.assignment == "random":
            drawn: list[int] = generator.choice(classes, self.classes_per_client, replace=False).tolist()
            return drawn
        if self.assignment == "deterministic":
            return [(client + further) % classes for further in range(self.classes_per_client)]
        found = {client % classes: None}
        while len(found) < self.classes_per_client:
            found[int(generator.choice(classes))] = None
        return list(found)

    def impossible(self, data: Dataset) -> InputError:  # noqa: ARG002
        """Blame a class that more clients want than it has examples."""
        remedy = f"some class has fewer examples than clients that share it; lower it or clients ({self.clients})"
        return InputError("partition.classes_per_client", self.classes_per_client, remedy)


@options
class Sized(Dealt, ABC):
    """Examples dealt at random, more of them to later clients."""

    def deal(self, labels: Array, seed: int) -> tuple[Indices, Indices]:  # noqa: ARG002
        """Cut the shuffled examples by size, rounded down; the last client has what is left."""
        with np.errstate(over="ignore", invalid="ignore"):  # e^c of many clients: then they have no size
            units = self.units(np.arange(1.0, self.clients + 1))
            sizes = (units / units.sum() * len(labels)).astype(np.int64)
        sizes[-1] += len(labels) - sizes.sum()
        return np.arange(len(labels)), sizes

    @abstractmethod
    def units(self, number: Shares) -> Shares:
        """What the clients' sizes are in proportion to. number: of the clients, from 1."""


@options
class Exponential(Sized):
    """Client c has a number of examples in proportion to e^(c + 1), dealt at random."""

    def units(self, number: Shares) -> Shares:
        """e^(c + 1)."""
        return np.exp(number)


@options
class Linear(Sized):
    """Client c has a number of examples in proportion to c + 1, dealt at random."""

    def units(self, number: Shares) -> Shares:
        """C + 1."""
        return number


@options
class Square(Sized):
    """Client c has a number of examples in proportion to (c + 1)^2, dealt at random."""

    def units(self, number: Shares) -> Shares:
        """(c + 1)^2."""
        return np.square(number)


def even(examples: int, parts: int) -> Indices:
    """Sizes of so many parts that differ by one at most, the larger ones first: int64 [parts]."""
    return examples // parts + (np.arange(parts) < examples % parts)


def by_client(owners: Sequence[Indices]) -> Indices:
    """The order in which examples of several classes, one class after the other, are one client's after the other's.

    owners: of each class, the clients that its examples are dealt to.
    """
    return np.argsort(np.concatenate(owners), kind="stable")


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
