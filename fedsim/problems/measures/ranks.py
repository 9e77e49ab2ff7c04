"""Measures of the order in which outputs put examples."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.options import options
from fedsim.nets.losses import Targets
from fedsim.problems.measures.base import CLASSES, TAGS, Grouped, mean_of_known, owners, ratio, sums
from fedsim.problems.measures.tallies import ONE_CLASS


@dataclass(frozen=True)
class Ranked:
    """Examples by falling score, client after client.

    positive: which have the class or tag, float64 [n]. until, hits: how many examples of its client have as high a
    score or a higher one, itself among them, and how many positive ones, [n]. ties: of how many its score is, [n].
    """

    positive: Tensor
    until: Tensor
    hits: Tensor
    ties: Tensor


def ranked(scores: Tensor, positive: Tensor, count: Tensor) -> Ranked:
    """Rank scores [n] of the clients' examples, one client after the other."""
    owner = owners(count)
    by_score = torch.sort(scores, descending=True, stable=True).indices
    order = by_score[torch.sort(owner[by_score], stable=True).indices]
    score, positive = scores[order], positive[order].double()
    begins = torch.ones(len(order), dtype=torch.bool)
    begins[1:] = (score[1:] != score[:-1]) | (owner[1:] != owner[:-1])
    tie = begins.cumsum(0) - 1
    size = torch.bincount(tie)
    end = size.cumsum(0)[tie]
    before = count.cumsum(0) - count
    total = torch.cat((torch.zeros(1, dtype=torch.float64), positive.cumsum(0)))
    return Ranked(positive, (end - before[owner]).double(), total[end] - total[before[owner]], size[tie].double())


class OfRanks(Grouped):
    """A measure of the order of examples by the score of a class or tag: the mean over those that some have, some not.

    Of two classes it is about the second alone. Of several each is held against all others, by its probability.
    """

    tasks: ClassVar[frozenset[Targets]] = CLASSES | TAGS
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    def undefined(self, targets: Tensor) -> str | None:
        """Why it has no value; None: it has one."""
        if bool((targets != targets[0]).any()):
            return None
        return ONE_CLASS if targets.dim() == 1 else "all examples have the same tags"

    @abstractmethod
    def value(self, found: Ranked, count: Tensor, positives: Tensor) -> Tensor:
        """The value of each client, [N]. count, positives: how many examples each has, and positive ones."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        if targets.dim() == 2:
            scores, positive = outputs, targets > 0
        elif outputs.shape[1] == 2:
            scores, positive = outputs[:, 1:] - outputs[:, :1], (targets == 1).unsqueeze(1)
        else:
            scores = torch.log_softmax(outputs, dim=1)
            positive = targets.unsqueeze(1) == torch.arange(outputs.shape[1])
        columns = [
            self._column(own, there, count) for own, there in zip(scores.unbind(1), positive.unbind(1), strict=True)
        ]
        return mean_of_known(torch.stack(columns, dim=1))

    def _column(self, scores: Tensor, positive: Tensor, count: Tensor) -> Tensor:
        """The value of one class or tag for each client, [N]; NaN where all examples have it, or none."""
        positives = sums(positive.double(), count)
        some = (positives > 0) & (positives < count)
        return self.value(ranked(scores, positive, count), count, positives).where(some, math.nan)


@options
class AUROC(OfRanks):
    """The area under the ROC curve: the share of pairs that a score orders rightly, ties counting half."""

    def value(self, found: Ranked, count: Tensor, positives: Tensor) -> Tensor:
        """See `OfRanks`."""
        owner = owners(count)
        below = count[owner] - found.until + (found.ties + 1.0) / 2.0  # the rank from below; of ties their mean
        ranks = sums(found.positive * below, count)
        return ratio(ranks - positives * (positives + 1.0) / 2.0, positives * (count - positives))


@options
class AveragePrecision(OfRanks):
    """The mean, over positive examples, of the precision at the score of each."""

    def value(self, found: Ranked, count: Tensor, positives: Tensor) -> Tensor:
        """See `OfRanks`."""
        return ratio(sums(found.positive * found.hits / found.until, count), positives)
