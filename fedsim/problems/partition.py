"""Partitions: which training examples each client has.

A partition plug-in is an `@options` class with `split(data, seed) -> Partition`. Most of ours deal through
the partitioners of flwr-datasets, over a data set that has nothing but an index and a label; the library is
imported only when a partition must be made that the disk does not have yet.

n training examples, m test examples, C clients, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.errors import InputError
from fedsim.options import Count, Fraction, NonNegative, Positive, Share, options
from fedsim.problems.datasets.base import Dataset, Indices, read_arrays
from fedsim.streams import Streams

Shares = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Lists of examples in compressed sparse rows: client c has `order[offset[c]:offset[c + 1]]`.

    order: int64 [total], indices into the training set, client after client; offset: int64 [C + 1].
    order_test, offset_test: the same into the test set, for judging each client on its own kind of data.
    holdout_order, holdout_offset: the same into the training set, kept from training for that purpose.
    Raises InputError when rows and offsets do not fit, or a client has no training example.
    """

    order: Indices
    offset: Indices
    order_test: Indices | None = None
    offset_test: Indices | None = None
    holdout_order: Indices | None = None
    holdout_offset: Indices | None = None

    def __post_init__(self) -> None:
        for name, order, offset in self.rows():
            sizes = np.diff(offset)
            shaped = order.ndim == 1 and offset.ndim == 1 and len(offset) == len(self.offset) > 1
            if not shaped or offset[0] != 0 or offset[-1] != len(order) or (sizes < 0).any():
                raise InputError("partition", f"{name} rows", "offset must rise from 0 to the number of indices")
        empty = np.flatnonzero(self.sizes == 0)
        if len(empty):
            raise InputError("partition.clients", self.clients, f"client {empty[0]} has no training example")

    @classmethod
    def from_lists(cls, lists: Sequence[ArrayLike]) -> Partition:
        """Make a partition of a list of training indices for each client."""
        rows = [np.asarray(indices) for indices in lists]
        for client, row in enumerate(rows):
            if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
                raise InputError("clients", f"list {client}", "give whole numbers: indices of training examples")
        offset = np.cumsum([0, *(len(row) for row in rows)])
        return cls(np.concatenate(rows or [np.empty(0)]).astype(np.int64), offset.astype(np.int64))

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
        ]
        return [(name, order, offset) for name, order, offset in named if order is not None and offset is not None]

    def check(self, data: Dataset) -> None:
        """Refuse indices that `data` does not have."""
        for name, order, _ in self.rows():
            count = len(data.x_test) if name == "test" else len(data.x)
            if len(order) and not 0 <= order.min() <= order.max() < count:
                fault = f"{name} indices lie in {order.min()} .. {order.max()}, examples in 0 .. {count - 1}"
                raise InputError("partition", data.name, fault)


class Partitioner(Protocol):
    """A partition plug-in; most easily a subclass of `Shared`."""

    cached: ClassVar[bool]
    holdout: float
    noise: float

    def split(self, data: Dataset, seed: int) -> Partition:
        """Deal the training examples; the same for the same data, options and seed."""
        ...


@options
class Shared:
    """Options of every partition."""

    holdout: Fraction = 0.0
    """Share of each client's examples kept for its own accuracy; one is always left to train on."""
    noise: Share = 0.0
    """Share of the training labels that `noisy_labels` replaces after the partition was made."""
    cached: ClassVar[bool] = True
    """Whether remaking the partition costs more than a file on disk."""


@options
class Sampled(Shared):
    """A partition for so many clients."""

    clients: Count
    """C, how many clients there are."""
    examples: Count | None = None
    """How many of the training examples are dealt, chosen at random. Not given: all."""

    def check(self, data: Dataset) -> None:
        """Refuse more examples or clients than there are."""
        if self.examples is not None and self.examples > len(data.y):
            raise InputError("partition.examples", self.examples, f"there are {len(data.y)} training examples")
        if self.clients > self.available(data):
            raise InputError("partition.clients", self.clients, f"{self.available(data)} training examples are dealt")

    def available(self, data: Dataset) -> int:
        """How many examples are dealt."""
        return self.examples or len(data.y)

    def chosen(self, data: Dataset, seed: int) -> Indices:
        """The examples that are dealt, in random order: int64 [available]."""
        return Streams(seed).generator("partition/order").permutation(len(data.y))[: self.examples]


@options
class Library(Sampled, ABC):
    """A partition that flwr-datasets makes."""

    def split(self, data: Dataset, seed: int) -> Partition:
        """Deal through the library; what it cannot do is an InputError on the option that is to blame."""
        self.check(data)
        order = self.chosen(data, seed)
        with _undisturbed():
            lists = self._lists(data, order, Streams(seed).derive("partition/library"))
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

    alpha: Positive
    """How evenly classes are shared out; small is uneven."""
    min_size: Count = 1
    """Examples that a client has at least (the library draws up to 11 times)."""
    self_balancing: bool = False
    """A client that has more than n / C examples gets none of the classes that follow."""

    def check(self, data: Dataset) -> None:
        """Refuse targets that are no classes, and too few examples."""
        super().check(data)
        self.classes(data)
        if self.min_size * self.clients > self.available(data):
            remedy = f"{self.clients} clients cannot have that many each of {self.available(data)} training examples"
            raise InputError("partition.min_size", self.min_size, remedy)

    def dealer(self, library: Any, seed: int) -> Any:
        """Draw until every client has `min_size` examples."""
        return library.DirichletPartitioner(
            num_partitions=self.clients,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=self.min_size,
            self_balancing=self.self_balancing,
            shuffle=False,
            seed=seed,
        )

    def impossible(self, data: Dataset) -> InputError:  # noqa: ARG002
        """Blame the draws, none of which was even enough."""
        remedy = (
            f"no draw of 11 with alpha = {self.alpha} gave each of {self.clients} clients that many"
            " examples; raise alpha, lower min_size or clients, or take another seed"
        )
        return InputError("partition.min_size", self.min_size, remedy)


@options
class Shards(Library):
    """Sort by class, cut into C * shards_per_client equal shards, give each client that many at random.

    Up to C * shards_per_client - 1 examples are left over and unused. Source: McMahan et al. 2017, section 3.
    """

    shards_per_client: Count = 2
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

    classes_per_client: Count
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


@options
class Natural(Shared):
    """Each owner that the data set names is a client; owners without training examples are left out.

    Clients are in the order of their owners' ids.
    """

    clients: Count | None = None
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
        client = np.full(last + 1, -1)
        client[owners] = np.arange(len(owners))
        rows = _rows(client[data.owner], len(owners))
        tests = (None, None) if data.owner_test is None else _rows(client[data.owner_test], len(owners))
        return hold_out(Partition(*rows, *tests), self.holdout, seed)


@options
class DirichletEqual(Shared):
    """Clients of one size, each with its own class proportions q ~ Dir(alpha), for training and test alike.

    A client has size * q_k examples of class k, rounded to whole numbers by largest remainder.
    Source: Fraboni et al. 2023 (FedFix), experiments.
    """

    clients: Count
    """C, how many clients there are."""
    alpha: NonNegative
    """How evenly a client's classes are mixed; small is uneven, and 0 gives client c class c mod K alone."""
    size: Count | None = None
    """Examples that a client has. Not given: n // C."""
    test_size: Count | None = None
    """Test examples that a client has. Not given: m // C, and no test lists when m < C."""
    replace: bool = True
    """Draw from the class with replacement, so that clients overlap; otherwise no example is dealt twice, and a client
    that finds a class used up takes more of its others.
    """

    def split(self, data: Dataset, seed: int) -> Partition:
        """Draw a row of proportions a client, then training and test examples by it."""
        if data.num_classes == 0:
            raise InputError("partition.kind", "dirichlet_equal", f"{data.name} has no classes to deal by")
        size = self.size or len(data.y) // self.clients
        if size == 0:
            raise InputError("partition.clients", self.clients, f"there are {len(data.y)} training examples")
        streams, classes = Streams(seed), np.unique(data.y)
        if self.alpha > 0:
            concentration = np.full(len(classes), self.alpha)
            shares = streams.generator("partition/shares").dirichlet(concentration, self.clients)
        else:
            shares = np.eye(len(classes))[np.arange(self.clients) % len(classes)]
        pools = [np.flatnonzero(data.y == label) for label in classes]
        rows = self._deal(shares, pools, size, "size", streams.generator("partition/train"))
        test_size = self.test_size or len(data.y_test) // self.clients
        if test_size == 0:
            return hold_out(Partition(*rows), self.holdout, seed)
        pools = [np.flatnonzero(data.y_test == label) for label in classes]
        tests = self._deal(shares, pools, test_size, "test_size", streams.generator("partition/test"))
        return hold_out(Partition(*rows, *tests), self.holdout, seed)

    def _deal(
        self, shares: Shares, pools: list[Indices], size: int, option: str, generator: np.random.Generator
    ) -> tuple[Indices, Indices]:
        """Sparse rows of `size` examples a client. shares: [C, K]; pools: the examples of each class."""
        held = np.array([len(pool) for pool in pools])
        if not self.replace and size * self.clients > held.sum():
            remedy = f"{self.clients} clients cannot have that many each of {held.sum()} examples; set replace"
            raise InputError(f"partition.{option}", size, remedy)
        if self.replace:
            counts = apportion(self._able(shares, held, size, option), size)
        else:
            counts = np.zeros(shares.shape, dtype=np.int64)
            for client, share in enumerate(shares):
                while (missing := size - counts[client].sum()) > 0:
                    able = self._able(share[None], held, size, option)
                    taken = np.minimum(apportion(able, int(missing))[0], held)
                    counts[client] += taken
                    held = held - taken
        drawn, owners = [], []
        for pool, wanted in zip(pools, counts.T, strict=True):
            total = int(wanted.sum())
            if self.replace:
                # A class without examples is wanted by nobody, but integers() refuses an empty range.
                drawn.append(pool[generator.integers(0, max(len(pool), 1), total)])
            else:
                drawn.append(generator.permutation(pool)[:total])
            owners.append(np.repeat(np.arange(self.clients), wanted))
        index = np.concatenate(drawn)
        order, offset = _rows(np.concatenate(owners), self.clients)
        return index[order], offset

    def _able(self, shares: Shares, held: Indices, size: int, option: str) -> Shares:
        """Return the shares [C, K] over the classes that still have examples; each row sums to 1."""
        able = shares * (held > 0)
        if self.alpha > 0:
            # Rows whose own classes are all used up take of what is left.
            able[able.sum(axis=1) == 0] = held
        total = able.sum(axis=1, keepdims=True)
        if (total == 0).any():
            remedy = "with alpha = 0 a client's one class has too few examples; lower it or raise alpha"
            raise InputError(f"partition.{option}", size, remedy)
        normalised: Shares = able / total
        return normalised


def apportion(shares: Shares, total: int) -> Indices:
    """Whole numbers nearest to `shares * total` that sum to `total`, by largest remainder: [C, K]."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - counts.sum(axis=1, keepdims=True)
    rank = np.argsort(np.argsort(counts - exact, axis=1, kind="stable"), axis=1)
    rounded: Indices = counts + (rank < missing)
    return rounded


def hold_out(partition: Partition, share: float, seed: int) -> Partition:
    """Move `share` of each client's examples (rounded to the nearest), at random, to its holdout rows.

    One example at least stays. An example that a client has several times stays or moves as a whole.
    """
    if share == 0:
        return partition
    sizes = partition.sizes
    keys = Streams(seed).generator("partition/holdout").permutation(int(partition.order.max()) + 1)
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
    return dataclasses.replace(
        partition,
        order=order[~held],
        offset=offset,
        holdout_order=order[held],
        holdout_offset=partition.offset - offset,
    )


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


def cached_partition(partitioner: Partitioner, data: Dataset, seed: int, folder: Path | None = None) -> Partition:
    """Return `partitioner.split(data, seed)`, from the disk when it was made before.

    folder: where the files are; `FEDSIM_CACHE`, else `fedsim` in the user's cache folder when not given. A
    file is named by a hash of labels, owners, options, seed, library versions and source, so none is ever
    stale; a damaged one is made again, and a folder that cannot be written is done without.
    """
    if not partitioner.cached:
        made = partitioner.split(data, seed)
        made.check(data)
        return made
    path = (folder or cache_folder()) / "partitions" / f"{_key(partitioner, data, seed)}.npz"
    stored = _stored(path, data)
    if stored is not None:
        return stored
    made = partitioner.split(data, seed)
    made.check(data)
    _store(path, made)
    return made


def cache_folder() -> Path:
    """Return FEDSIM_CACHE, or XDG_CACHE_HOME/fedsim, or ~/.cache/fedsim."""
    named = os.environ.get("FEDSIM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named).expanduser()
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "fedsim"


def _key(partitioner: Partitioner, data: Dataset, seed: int) -> str:
    kind = type(partitioner)
    versions = [importlib.metadata.version(package) for package in ("flwr-datasets", "numpy")]
    settings = dataclasses.asdict(partitioner)  # type: ignore[call-overload]
    named = [kind.__module__, kind.__qualname__, settings, seed, versions, data.num_classes]
    digest = hashlib.blake2b(json.dumps(named, sort_keys=True, default=repr).encode(), digest_size=20)
    for module in (__name__, Streams.__module__, kind.__module__):
        source = getattr(sys.modules.get(module), "__file__", None)
        digest.update(Path(source).read_bytes() if source else b"")
    for array in (data.y, data.y_test, data.owner, data.owner_test):
        digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stored(path: Path, data: Dataset) -> Partition | None:
    """Read the partition at `path`; None when there is none, or it is damaged."""
    try:
        stored = Partition(**read_arrays(path, "a partition"))
        stored.check(data)
    except (InputError, TypeError):
        return None
    return stored


def _store(path: Path, partition: Partition) -> None:
    """Write the partition so that a reader sees all of it or nothing; a folder not writable is left alone."""
    arrays = {name: array for name, array in vars(partition).items() if array is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


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


def _rows(client: Indices, clients: int) -> tuple[Indices, Indices]:
    """Group 0 .. len(client)-1 by client; -1 is nobody. Returns (order, offset)."""
    dealt = np.flatnonzero(client >= 0)
    order = dealt[np.argsort(client[dealt], kind="stable")]
    sizes = np.bincount(client[dealt], minlength=clients)
    return order, np.concatenate(([0], np.cumsum(sizes)))
