"""Partitions: which training examples each client has.

A partition plug-in is an `@options` class with `split(data, seed) -> Partition`, most easily a subclass of `Shared`.
Most of ours deal as flwr-datasets does (`library`); one that takes long is kept on the disk (`cached`).

n training examples, m test examples, C clients, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.core.errors import InputError, one_line
from fedsim.core.options import Fraction, PositiveInt, Share, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, Indices

Shares = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Lists of examples in compressed sparse rows: client c has `order[offset[c]:offset[c + 1]]`.

    order: int64 [total], indices into the training set, client after client; offset: int64 [C + 1].
    order_test, offset_test: the same into the test set, for judging each client on its own kind of data.
    holdout_order, holdout_offset: the same into the training set, kept from training for that purpose.
    validation_order, validation_offset: the same, kept from training so that options are chosen by them; a row a
    client, or, where clients are set aside, a row each of these. validation_clients: int64 [V], which of the clients
    that were dealt those are, who are none of the C; None: no client is set aside.
    Raises InputError when rows and offsets do not fit, or a client has no training example.
    """

    order: Indices
    offset: Indices
    order_test: Indices | None = None
    offset_test: Indices | None = None
    holdout_order: Indices | None = None
    holdout_offset: Indices | None = None
    validation_order: Indices | None = None
    validation_offset: Indices | None = None
    validation_clients: Indices | None = None

    def __post_init__(self) -> None:
        for name, order, offset in self.rows():
            sizes = np.diff(offset)
            apart = self.validation_clients if name == "validation" else None
            wanted = len(self.offset) if apart is None else len(apart) + 1
            shaped = order.ndim == 1 and offset.ndim == 1 and len(offset) == wanted > 1
            if not shaped or offset[0] != 0 or offset[-1] != len(order) or (sizes < 0).any():
                raise InputError("partition", f"{name} rows", "offset must rise from 0 to the number of indices")
        empty = np.flatnonzero(self.sizes == 0)
        if len(empty):
            raise InputError("partition.clients", self.clients, f"client {empty[0]} has no training example")

    @classmethod
    def from_lists(cls, lists: Sequence[ArrayLike], tests: Sequence[ArrayLike] | None = None) -> Partition:
        """Make a partition of a list of training indices for each client.

        tests: lists of test indices, of which a client may have none; None: nobody has any.
        """
        return cls(*listed(lists, "clients"), *((None, None) if tests is None else listed(tests, "test_clients")))

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.offset) - 1

    @property
    def sizes(self) -> Indices:
        """Training examples of each client: int64 [C]."""
        return np.diff(self.offset)

    def indices(self, client: int) -> Indices:
        """Training examples of one client."""
        return self.order[self.offset[client] : self.offset[client + 1]]

    def rows(self) -> list[tuple[str, Indices, Indices]]:
        """Return (name, order, offset) of the sparse rows that there are."""
        named = [
            ("training", self.order, self.offset),
            ("test", self.order_test, self.offset_test),
            ("holdout", self.holdout_order, self.holdout_offset),
            ("validation", self.validation_order, self.validation_offset),
        ]
        return [(name, order, offset) for name, order, offset in named if order is not None and offset is not None]

    def of(self, clients: Indices) -> Partition:
        """The partition of some of the clients, int64 [k] ascending, with all that each has."""
        rows = {name: rows_of(clients, order, offset) for name, order, offset in self.rows()}
        tests, held, apart = (rows.get(name, (None, None)) for name in ("test", "holdout", "validation"))
        return Partition(*rows["training"], *tests, *held, *apart)

    def check(self, data: Dataset) -> None:
        """Refuse indices that `data` does not have."""
        for name, order, _ in self.rows():
            count = len(data.x_test) if name == "test" else len(data.x)
            if len(order) and not 0 <= order.min() <= order.max() < count:
                fault = f"{name} indices lie in {order.min()} .. {order.max()}, examples in 0 .. {count - 1}"
                raise InputError("partition", data.name, fault)


def listed(lists: Sequence[ArrayLike], option: str) -> tuple[Indices, Indices]:
    """Lists of indices, one a client, as sparse rows. option: which argument they are."""
    rows = []
    for client, indices in enumerate(lists):
        remedy = "give whole numbers: indices of examples, of a mask np.flatnonzero(mask)"
        try:
            row = np.asarray(indices)
        except Exception as error:  # of whatever kind is in the list's own conversion
            raise InputError(option, f"list {client}", f"{remedy} ({one_line(error, 120)})") from error
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise InputError(option, f"list {client}", remedy)
        rows.append(row)
    offset = np.cumsum([0, *(len(row) for row in rows)])
    return np.concatenate(rows or [np.empty(0)]).astype(np.int64), offset.astype(np.int64)


class Partitioner(Protocol):
    """A partition plug-in; most easily a subclass of `Shared`."""

    cached: ClassVar[bool]
    holdout: float
    validation: float | None
    validation_clients: float | None
    newcomers: float | None
    noise: float

    def split(self, data: Dataset, seed: int) -> Partition:
        """Deal the training examples; the same for the same data, options and seed."""
        ...


@options
class Shared:
    """Options of every partition."""

    holdout: Fraction = 0.0
    """Share of each client's examples kept for its own accuracy; one is always left to train on."""
    validation: Fraction | None = None
    """Share of each client's training examples, after the hold-out, that nobody trains on, to choose options by; one is
    always left to train on. Where clients share examples one is set aside for all who have it. Not given: none is.
    """
    validation_clients: Fraction | None = None
    """Instead, share of the clients, one at least, who are set aside with all that they have. Not given: none is."""
    newcomers: Fraction | None = None
    """Share of the clients, one at least, who never take part and are judged by what they would use if they came now,
    after evaluation.finetune where that is given. Not given: none is.
    """
    noise: Share = 0.0
    """Share of the training labels that `noisy_labels` replaces after the partition was made; those for validation are
    among them, those of the hold-out are not.
    """
    cached: ClassVar[bool] = True
    """Whether remaking the partition costs more than a file on disk."""


@options
class Sampled:
    """A partition for so many clients."""

    clients: PositiveInt
    """C, how many clients there are."""
    examples: PositiveInt | None = None
    """How many of the training examples are dealt, chosen at random. Not given: all."""

    def check(self, data: Dataset) -> None:
        """Refuse more examples or clients than there are."""
        if self.examples is not None and self.examples > len(data.y):
            raise InputError("partition.examples", self.examples, f"there are {len(data.y)} training examples")
        if self.clients > self.available(data):
            raise InputError(
                "partition.clients",
                self.clients,
                f"{self.available(data)} training examples are dealt; take that many clients at most",
            )

    def available(self, data: Dataset) -> int:
        """How many examples are dealt."""
        return self.examples or len(data.y)

    def chosen(self, data: Dataset, seed: int) -> Indices:
        """The examples that are dealt, in random order: int64 [available]."""
        return Streams(seed).generator("partition/order").permutation(len(data.y))[: self.examples]


def hold_out(partition: Partition, share: float, seed: int) -> Partition:
    """Move `share` of each client's examples (rounded to the nearest), at random, to its holdout rows.

    One example at least stays. An example that a client has several times stays or moves as a whole.
    """
    if share == 0:
        return partition
    order, offset, held_order, held_offset = parted(partition, share, "partition/holdout", seed)
    return dataclasses.replace(
        partition, order=order, offset=offset, holdout_order=held_order, holdout_offset=held_offset
    )


def parted(partition: Partition, share: float, draw: str, seed: int) -> tuple[Indices, Indices, Indices, Indices]:
    """Each client's training examples in two rows, as (order, offset) of those that stay and of those that move.

    share: of each client's examples, rounded to the nearest, that moves, but for one at least; an example that a client
    has several times stays or moves as a whole. draw: the name of the draw that says which.
    """
    sizes = partition.sizes
    keys = Streams(seed).generator(draw).permutation(int(partition.order.max()) + 1)
    owner = np.repeat(np.arange(partition.clients), sizes)
    order = partition.order[np.lexsort((keys[partition.order], owner))]
    # Equal examples of a client are neighbours now; a client may be cut where a run of them begins.
    begins = np.ones(len(order) + 1, dtype=bool)
    begins[1:-1] = (order[1:] != order[:-1]) | (owner[1:] != owner[:-1])
    starts = np.flatnonzero(begins)
    moved = np.minimum(np.floor(sizes * share + 0.5).astype(np.int64), sizes - 1)
    run = np.searchsorted(starts, partition.offset[1:] - moved, side="right") - 1
    first_run = np.searchsorted(starts, partition.offset[:-1])
    cut = starts[np.maximum(run, first_run + 1)]
    place = np.arange(len(order))
    held = place >= np.repeat(cut, sizes)
    offset = np.concatenate(([0], np.cumsum(cut - partition.offset[:-1])))
    return order[~held], offset, order[held], partition.offset - offset


def noisy_labels(y: NDArray[Any], num_classes: int, share: float, seed: int) -> NDArray[Any]:
    """Return labels [n] of which `share` (rounded to the nearest) are another class, each alike likely."""
    if share == 0:
        return y
    if num_classes < 2:
        raise InputError("partition.noise", share, "only class labels can be replaced by another class")
    generator = Streams(seed).generator("partition/noise")
    chosen = generator.permutation(len(y))[: int(share * len(y) + 0.5)]
    noisy = y.copy()
    noisy[chosen] = (y[chosen] + generator.integers(1, num_classes, len(chosen))) % num_classes
    return noisy


def drawn_clients(partition: Partition, share: float, draw: str, seed: int, option: str) -> Indices:
    """A share of the clients to the nearest, one at least, at random by a draw of that name: int64 [k] ascending.

    InputError, of that option: none would be left.
    """
    count = max(1, int(np.floor(share * partition.clients + 0.5)))
    if count >= partition.clients:
        remedy = f"of {partition.clients} clients {count} would be set aside, and none is left; lower it"
        raise InputError(option, share, remedy)
    return np.sort(Streams(seed).generator(draw).permutation(partition.clients)[:count])


def rows_of(clients: Indices, order: Indices, offset: Indices) -> tuple[Indices, Indices]:
    """The sparse rows of some clients, in ascending order of them."""
    sizes = np.diff(offset)
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[clients] = True
    return order[np.repeat(chosen, sizes)], np.concatenate(([0], np.cumsum(sizes[clients])))


def joined(rows: Sequence[tuple[Indices, Indices]]) -> tuple[Indices, Indices]:
    """Sparse rows of some clients and of others, as (order, offset) each, one after the other; of one alone itself."""
    if len(rows) == 1:  # a copy would be as large as the labels are
        return rows[0]
    sizes = np.concatenate([np.diff(offset) for _, offset in rows])
    return np.concatenate([order for order, _ in rows]), np.concatenate(([0], np.cumsum(sizes)))


def without(order: Indices, offset: Indices, known: Indices) -> tuple[Indices, Indices]:
    """Sparse rows without the examples that `known` has."""
    left = ~np.isin(order, known)
    return order[left], np.concatenate(([0], np.cumsum(left)))[offset]


def sparse_rows(client: NDArray[np.signedinteger[Any]], clients: int) -> tuple[Indices, Indices]:
    """Examples by client in compressed sparse rows, (order, offset). client: whose each is, [n]; -1: nobody's."""
    sizes = np.bincount(client + 1, minlength=clients + 1)
    order = np.argsort(client, kind="stable")[sizes[0] :]
    return order, np.concatenate(([0], np.cumsum(sizes[1:])))
