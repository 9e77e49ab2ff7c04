"""Clients of one size, each with class proportions of its own."""

from __future__ import annotations

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, Indices
from fedsim.problems.partitions.base import Partition, Shared, Shares, hold_out, sparse_rows


@options
class DirichletEqual(Shared):
    """The proportions q ~ Dir(alpha) are the same for training and test.

    A client has size * q_k examples of class k, rounded to whole numbers by largest remainder.
    Source: Fraboni et al. 2023 (FedFix), experiments.
    """

    clients: PositiveInt
    """C, how many clients there are."""
    alpha: NonNegativeFloat
    """How evenly a client's classes are mixed; small is uneven, and 0 gives client c class c mod K alone."""
    size: PositiveInt | None = None
    """Examples that a client has. Not given: n // C."""
    test_size: PositiveInt | None = None
    """Test examples that a client has. Not given: m // C, and no test lists when m < C."""
    replace: bool = True
    """Draw from the class with replacement, so that clients overlap; otherwise no example is dealt twice, and a client
    that finds a class used up takes more of its others.
    """

    def split(self, data: Dataset, seed: int) -> Partition:
        """Draw a row of proportions a client, then training and test examples by it."""
        if not data.labelled:
            raise InputError("partition.kind", "dirichlet_equal", f"{data.name} has no classes to deal by")
        size = self.size or len(data.y) // self.clients
        if size == 0:
            raise InputError(
                "partition.clients",
                self.clients,
                f"there are {len(data.y)} training examples; take that many clients at most",
            )
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
        order, offset = sparse_rows(np.concatenate(owners), self.clients)
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
