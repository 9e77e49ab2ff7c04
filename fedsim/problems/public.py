"""Public inputs: examples without labels that the server has, to distil clients' models on.

They are part of the problem, so that whatever is run on it leaves clients the same examples to train on.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from fedsim.core.data_files import Array, DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, one_of, options
from fedsim.core.plugins import HasPlugins, hold_returned
from fedsim.core.streams import Streams
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions.base import Partition

OPTION, DRAW = "problem.public", "problem/public"
"""The option to blame, and the name of the draws."""


class PublicInputs(ABC):
    """Where public inputs are from."""

    @abstractmethod
    def take(self, dataset: Dataset, partition: Partition, seed: int, folder: DataFolder) -> tuple[Partition, Array]:
        """The partition that is left to clients, and the inputs [n, ...].

        InputError: there are not so many, or they are not like the inputs of the data set.
        """


@options
class HeldOut(PublicInputs):
    """Training examples of the problem's own that no client is left with; everybody keeps one at least."""

    examples: PositiveInt
    """How many, chosen at random of those that are dealt to clients for training."""

    def take(
        self,
        dataset: Dataset,
        partition: Partition,
        seed: int,
        folder: DataFolder,  # noqa: ARG002
    ) -> tuple[Partition, Array]:
        """Take them from all who have them."""
        distinct, place = np.unique(partition.order, return_inverse=True)
        rank = Streams(seed).generator(DRAW).permutation(len(distinct))
        stays = np.unique(np.maximum.reduceat(rank[place], partition.offset[:-1]))  # of each client the last one drawn
        drawn = np.setdiff1d(np.arange(len(distinct)), stays)[: self.examples]
        if len(drawn) < self.examples:
            remedy = f"clients can spare {len(drawn)} of their {len(distinct)} examples; take that many at most"
            raise InputError(f"{OPTION}.examples", self.examples, remedy)
        chosen = np.isin(rank, drawn)
        left = ~chosen[place]
        offset = np.concatenate(([0], np.cumsum(left)))[partition.offset]
        return dataclasses.replace(partition, order=partition.order[left], offset=offset), dataset.x[distinct[chosen]]


@options
class Noise(PublicInputs):
    """Gaussian noise with the mean and the deviation of all numbers in the training inputs, and within their range."""

    examples: PositiveInt
    """How many."""

    def take(
        self,
        dataset: Dataset,
        partition: Partition,
        seed: int,
        folder: DataFolder,  # noqa: ARG002
    ) -> tuple[Partition, Array]:
        """Draw them."""
        x = dataset.x
        if x.dtype.kind != "f":
            raise InputError(OPTION, "noise", "the inputs are tokens, of which noise is none; take held_out or dataset")
        drawn = Streams(seed).generator(DRAW).standard_normal((self.examples, *x.shape[1:]))
        noise = x.mean(dtype=np.float64) + x.std(dtype=np.float64) * drawn
        return partition, noise.clip(x.min(), x.max()).astype(x.dtype)


@options
class OtherData(HasPlugins, PublicInputs):
    """Training inputs of another data set, which lie as those of the problem's."""

    parts: ClassVar[Mapping[str, str]] = {"dataset": "datasets"}

    dataset: Any
    """The data set."""
    examples: PositiveInt | None = None
    """How many, chosen at random. Not given: all."""

    def take(self, dataset: Dataset, partition: Partition, seed: int, folder: DataFolder) -> tuple[Partition, Array]:
        """Read them."""
        loader = self.made["dataset"]
        other = loader.load(folder)
        hold_returned(f"{OPTION}.dataset", "datasets", loader, "load", other, Dataset)
        hold_alike(other.x, dataset.x, f"{OPTION}.dataset", other.name)
        count = len(other.x) if self.examples is None else self.examples
        if count > len(other.x):
            remedy = f"there are {len(other.x)} training inputs in {other.name}"
            raise InputError(f"{OPTION}.examples", count, remedy)
        return partition, other.x[np.sort(Streams(seed).generator(DRAW).permutation(len(other.x))[:count])]


def hold_alike(public: Array, x: Array, option: str, value: object) -> None:
    """Refuse public inputs [n, ...] that are not like training inputs x."""
    if not len(public) or public.shape[1:] != x.shape[1:] or (public.dtype.kind == "f") != (x.dtype.kind == "f"):
        kinds = ["floats" if array.dtype.kind == "f" else "tokens" for array in (public, x)]
        remedy = f"are {len(public)} {kinds[0]} {list(public.shape[1:])}, and training inputs {kinds[1]}"
        raise InputError(option, value, f"{remedy} {list(x.shape[1:])}; give one or more like these")


Public = Annotated[HeldOut | Noise | OtherData, one_of(held_out=HeldOut, noise=Noise, dataset=OtherData)]
"""Public inputs, as a table with `kind` and its options."""
