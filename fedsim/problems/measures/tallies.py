"""Measures of how often classes or tags are predicted, are there, and both."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.nets.losses import Targets
from fedsim.problems.measures.base import CLASSES, TAGS, Grouped, owners, ratio, sums

ONE_CLASS = "all examples are of one class"


def tallies(outputs: Tensor, targets: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often each client's classes or tags are rightly predicted, are there, and are predicted, float64 [N, K]."""
    if targets.dim() == 2:
        said, there = outputs > 0, targets > 0
        return sums((said & there).double(), count), sums(there.double(), count), sums(said.double(), count)
    clients, classes = len(count), outputs.shape[1]
    said, begin = outputs.argmax(dim=1), owners(count) * classes

    def number(places: Tensor) -> Tensor:
        return torch.bincount(places, minlength=clients * classes).view(clients, classes).double()

    right = said == targets
    return number((begin + targets)[right]), number(begin + targets), number(begin + said)


@options
class Averaged(Grouped):
    """A share of each class, or tag, that is averaged over them; 0 where it would be 0/0.

    macro: the mean over classes that are there or predicted, or over all tags; weighted: by how often each is there;
    micro: the share of all classes or tags together; samples: the mean over examples of the share of each one's tags.
    """

    tasks: ClassVar[frozenset[Targets]] = CLASSES | TAGS
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    average: Literal["macro", "micro", "weighted", "samples"] = "macro"
    """What is averaged: macro, classes or tags, each counting alike; weighted, by how often each is there; micro, all
    of them counted together; samples, of tags, over examples.
    """

    @property
    def called(self) -> str:
        """As in f1_macro."""
        return f"{super().called}_{self.average}"

    def check(self, task: Targets, width: int) -> None:
        """Raise InputError where it does not suit the targets."""
        super().check(task, width)
        if self.average == "samples" and task != "tags":
            raise InputError(
                "average", "samples", f"is about several tags an example, and these are {task}; take macro"
            )

    @abstractmethod
    def share(self, hits: Tensor, there: Tensor, said: Tensor) -> Tensor:
        """The share of numbers of right predictions, of targets and of predictions, all [...]."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        if self.average == "samples":
            each = torch.ones(len(targets), dtype=torch.int64)
            own = self.share(*(tally.sum(dim=1) for tally in tallies(outputs, targets, each)))
            return sums(own, count) / count
        hits, there, said = tallies(outputs, targets, count)
        if self.average == "micro":
            found = self.share(hits.sum(dim=1), there.sum(dim=1), said.sum(dim=1))
        else:
            counted = torch.ones_like(there) if targets.dim() == 2 else (there + said > 0).double()
            weight = there if self.average == "weighted" else counted
            found = ratio((weight * self.share(hits, there, said)).sum(dim=1), weight.sum(dim=1))
        return found.where(count > 0, torch.nan)


@options
class F1(Averaged):
    """2 hits / (targets + predictions), the harmonic mean of precision and recall."""

    def share(self, hits: Tensor, there: Tensor, said: Tensor) -> Tensor:
        """See `Averaged`."""
        return ratio(2.0 * hits, there + said)


@options
class Precision(Averaged):
    """Hits / predictions."""

    def share(self, hits: Tensor, there: Tensor, said: Tensor) -> Tensor:  # noqa: ARG002
        """See `Averaged`."""
        return ratio(hits, said)


@options
class Recall(Averaged):
    """Hits / targets."""

    def share(self, hits: Tensor, there: Tensor, said: Tensor) -> Tensor:  # noqa: ARG002
        """See `Averaged`."""
        return ratio(hits, there)


@options
class Jaccard(Averaged):
    """Hits / (targets + predictions - hits): intersection over union; of pixels, macro, the mean IoU."""

    def share(self, hits: Tensor, there: Tensor, said: Tensor) -> Tensor:
        """See `Averaged`."""
        return ratio(hits, there + said - hits)


@options
class BalancedAccuracy(Grouped):
    """The mean recall of the classes that are there."""

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        hits, there, _ = tallies(outputs, targets, count)
        return ratio(ratio(hits, there).sum(dim=1), (there > 0).sum(dim=1).double(), math.nan)


class Chance(Grouped):
    """A measure of agreement beyond that of chance, of which examples of one class say nothing."""

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    def undefined(self, targets: Tensor) -> str | None:
        """Why it has no value; None: it has one."""
        return None if bool((targets != targets[0]).any()) else ONE_CLASS

    @abstractmethod
    def agreement(self, right: Tensor, there: Tensor, said: Tensor) -> Tensor:
        """The value [N] of shares of right predictions [N], of targets of each class [N, K] and of predictions."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        hits, there, said = (tally / count.unsqueeze(1) for tally in tallies(outputs, targets, count))
        return self.agreement(hits.sum(dim=1), there, said).where((there > 0).sum(dim=1) > 1, torch.nan)


@options
class Matthews(Chance):
    """Matthews' correlation of targets and predictions, over all classes; 0 where one class is always predicted."""

    def agreement(self, right: Tensor, there: Tensor, said: Tensor) -> Tensor:
        """See `Chance`."""
        spread = (1.0 - there.square().sum(dim=1)) * (1.0 - said.square().sum(dim=1))
        return ratio(right - (there * said).sum(dim=1), spread.sqrt())


@options
class CohenKappa(Chance):
    """Cohen's kappa: (p - e) / (1 - e) of the share p of right predictions and that, e, of independent ones."""

    def agreement(self, right: Tensor, there: Tensor, said: Tensor) -> Tensor:
        """See `Chance`."""
        expected = (there * said).sum(dim=1)
        return (right - expected) / (1.0 - expected)
