"""The examples that a model is judged on, and what is said of its outputs for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.nets.losses import Loss
from fedsim.problems.base import Examples
from fedsim.problems.partitions.base import Partition

STATISTICS = {"accuracy": ("mean", "p10", "worst"), "loss": ("mean", "p90", "worst")}
"""What is said of the clients' accuracies, or of their losses, in the names of measures."""


@dataclass(frozen=True)
class Rows:
    """Examples that a model is judged on: of x and y those with the numbers `index`, int64 [n]; None: all.

    source: which set the numbers are of, `test` or `train`.
    """

    source: str
    x: Tensor
    y: Tensor
    index: Tensor | None

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def covers(self, other: Rows) -> bool:
        """Whether `of` finds the outputs for other examples among those for these."""
        return self.source == other.source and (self.index is None or self.index is other.index)

    def of(self, outputs: Tensor, other: Rows) -> Tensor:
        """The outputs for other examples, of the outputs [n, *places, K] for these."""
        return outputs if self.index is other.index else outputs[other.numbers]

    @property
    def targets(self) -> Tensor:
        """Targets [n, *places]."""
        return self.y if self.index is None else self.y[self.index]

    @property
    def numbers(self) -> Tensor:
        """The examples' numbers, int64 [n]."""
        return torch.arange(len(self.x), device=self.x.device) if self.index is None else self.index


@dataclass(frozen=True, eq=False)
class Judged:
    """The sets of examples of a problem, and the scores of outputs [n, *places, K] for them.

    data: the training examples. x_test, y_test: the test set. partition: who has which. loss: of an example.
    """

    data: Examples
    x_test: Tensor
    y_test: Tensor
    partition: Partition
    loss: Loss

    def sets(self, on: Collection[str]) -> dict[str, Rows]:
        """The examples of each set that is measured, by the beginning of the measures' names."""
        found = {}
        if "test" in on and len(self.x_test):
            found["test"] = Rows("test", self.x_test, self.y_test, None)
        if "train" in on:
            found["global_train"] = Rows("train", self.data.x, self.data.y, self.data.order)
        return found

    def own(self) -> tuple[Rows, Tensor]:
        """The examples that clients are judged on, one client after the other, and how many each has, int64 [N].

        Those of the test set, else those held out, else, where nobody has any, those that are trained on.
        """
        split = self.partition
        if split.order_test is not None and split.offset_test is not None and len(split.order_test):
            order, _, count = ranges(split.order_test, split.offset_test, self.data.x.device)
            return Rows("test", self.x_test, self.y_test, order), count
        if split.holdout_order is not None and split.holdout_offset is not None and len(split.holdout_order):
            order, _, count = ranges(split.holdout_order, split.holdout_offset, self.data.x.device)
            return Rows("train", self.data.x, self.data.y, order), count
        return Rows("train", self.data.x, self.data.y, self.data.order), self.data.count

    def kinds(self) -> tuple[str, ...]:
        """What is said of a set: its loss, and where predictions are right or wrong its accuracy."""
        return ("loss", "accuracy")[: 1 + self.has_accuracy]

    @cached_property
    def has_accuracy(self) -> bool:
        """Whether predictions are right or wrong."""
        return self.loss.task != "numbers"

    def scores(self, name: str, outputs: Tensor, rows: Rows) -> dict[str, float]:
        """The loss of outputs [n, *places, K] for a set, and their accuracy, under names that begin with the set's."""
        correct = self.loss.correct(outputs, rows.targets)
        accuracy = {} if correct is None else {f"{name}_accuracy": float(correct.double().mean())}
        return {f"{name}_loss": float(self.loss.examples(outputs, rows.targets).double().mean()), **accuracy}

    def client_measures(self, name: str) -> list[str]:
        """The names of `client_scores`."""
        kind = self.kinds()[-1]
        return [f"{name}_{kind}_{which}" for which in STATISTICS[kind]]

    def client_scores(self, name: str, outputs: Tensor, rows: Rows, count: Tensor) -> dict[str, float]:
        """Statistics of the clients' accuracies, or losses. rows: theirs, one after the other; count: of each, [N]."""
        kind = self.kinds()[-1]
        means = self.by_client((kind,), outputs, rows, count)[kind][count > 0]
        bad, worst = (0.9, means.max()) if kind == "loss" else (0.1, means.min())
        values = (means.mean(), torch.quantile(means, bad), worst)
        return {name: float(value) for name, value in zip(self.client_measures(name), values, strict=True)}

    def has_own(self) -> bool:
        """Whether clients have examples to be judged on that they are not trained on."""
        split = self.partition
        return any(order is not None and len(order) for order in (split.order_test, split.holdout_order))

    def personal_measures(self) -> list[str]:
        """The names of `personal_scores`."""
        kinds = self.kinds()
        bad = STATISTICS[kinds[-1]][1]
        return [f"personal_{kind}" for kind in kinds] + [
            f"personal_{kinds[-1]}_{which}" for which in ("mean", bad, "worst", "std")
        ]

    def personal_scores(self, outputs: Tensor, rows: Rows, count: Tensor) -> dict[str, float]:
        """What models of the clients' own come to, each on its client's examples, whose outputs [n, K] these are.

        The loss, and the accuracy where there is one, are of all the examples together; mean, p10 (of losses p90),
        worst and standard deviation are over the clients that have any, by accuracy or else by loss.
        """
        kinds = self.kinds()
        means = self.by_client(kinds, outputs, rows, count)
        shares = count[count > 0] / count.sum()
        of_clients = {kind: means[kind][count > 0] for kind in kinds}
        last = of_clients[kinds[-1]]
        bad, worst = (0.9, last.max()) if kinds[-1] == "loss" else (0.1, last.min())
        values = [(shares * of_clients[kind]).sum() for kind in kinds]
        values += [last.mean(), torch.quantile(last, bad), worst, last.std(correction=0)]
        return {name: float(value) for name, value in zip(self.personal_measures(), values, strict=True)}

    def by_client(self, kinds: Sequence[str], outputs: Tensor, rows: Rows, count: Tensor) -> dict[str, Tensor]:
        """The means of each client, float64 [N], NaN without examples, of some of `kinds`; see `client_scores`."""
        owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        score = {"loss": self.loss.examples, "accuracy": self.loss.correct}
        found = {}
        for kind in kinds:
            of_examples = score[kind](outputs, rows.targets)
            assert of_examples is not None
            sums = torch.zeros(len(count), dtype=torch.float64, device=count.device)
            found[kind] = sums.index_add_(0, owner, of_examples.double()) / count
        return found


def ranges(order: np.ndarray, offset: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse rows on a device: the order, where each client's part begins, and how long it is."""
    begins = torch.from_numpy(np.asarray(offset, dtype=np.int64)).to(device)
    return (
        torch.from_numpy(np.asarray(order, dtype=np.int64)).to(device),
        begins[:-1],
        begins[1:] - begins[:-1],
    )
