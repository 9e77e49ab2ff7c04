"""Clients that differ in how hard their examples are, as an expert judges it.

"When Do Curricula Work in Federated Learning?" (Vahidian et al. 2023) sorts the training set so before it is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.client.curriculum import Expert
from fedsim.core.errors import InputError, naming
from fedsim.core.options import options, table_of
from fedsim.core.plugins import HasPlugins
from fedsim.core.streams import Streams
from fedsim.pretrained.expert import expert_losses
from fedsim.problems.datasets.base import Dataset, Indices
from fedsim.problems.modules import build_model
from fedsim.problems.partitions.base import Partition, Sampled, Shared, hold_out
from fedsim.problems.supervised import Supervised


@options
class Difficulty(HasPlugins, Sampled, Shared):
    """Equal shares, floor or ceil of n / C each, of examples in the order of their loss under an expert.

    Client 0 has the easiest examples. Some classes are harder than others, so that clients that differ in difficulty
    alone differ in their classes, too. The expert's losses are about the labels as they are in the data set: `noise`
    comes afterwards and falls on all clients alike.
    """

    cached: ClassVar[bool] = False
    """The expert is kept on disk, under a name that covers inputs and labels; the rest is a sort."""
    parts: ClassVar[Mapping[str, str]] = {"model": "models"}

    order: Literal["increasing", "random"] = "increasing"
    """Increasing losses, or a random order, the control, for which no expert is trained."""
    stratified: bool = True
    """Order examples within their class, by the share of it that is easier, so that each client has the classes in
    proportion, give or take a few examples; otherwise by the loss alone.
    """
    model: Any = "mlp"
    """What the expert is."""
    expert: Annotated[Expert, table_of(Expert)] = Expert()
    """How it is trained, on the CPU and on all that is dealt."""

    def split(self, data: Dataset, seed: int) -> Partition:
        """Sort, and cut into C runs; examples that are equally hard are in random order."""
        self.check(data)
        chosen = self.chosen(data, seed)
        if self.order == "increasing":
            chosen = chosen[np.argsort(self._losses(data, chosen), kind="stable")]
        if self.stratified:
            chosen = chosen[np.argsort(_ways(data.y[chosen]), kind="stable")]
        return hold_out(Partition.from_lists(np.array_split(chosen, self.clients)), self.holdout, seed)

    def _losses(self, data: Dataset, chosen: Indices) -> NDArray[np.floating[Any]]:
        """Losses of these examples under the expert that is trained on them."""
        model = build_model(self.made["model"], data, Streams(self.expert.seed))
        with naming("partition.expert"):
            losses = expert_losses(Supervised(data, Partition.from_lists([chosen]), model), self.expert)
        found: NDArray[np.floating[Any]] = losses.numpy()
        return found[chosen]

    def check(self, data: Dataset) -> None:
        """Refuse more examples or clients than there are, and classes where there are none."""
        super().check(data)
        if self.stratified and not data.labelled:
            raise InputError("partition.stratified", True, f"{data.name} has no classes; set it to false")


def _ways(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far into its class each of some examples comes in their order, between 0 and 1: (rank + 1/2) / size."""
    ways = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ways[members] = (np.arange(len(members)) + 0.5) / len(members)
    return ways
