"""Measures of how numbers, or probabilities, deviate."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.options import options
from fedsim.nets.losses import Targets
from fedsim.problems.measures.base import CLASSES, NUMBERS, Grouped, mean_of_known, owners, ratio, sums


def _variance(values: Tensor, count: Tensor) -> Tensor:
    """The mean square of values [n, k] about the mean of their client, [N, k]; 0 without examples."""
    mean = ratio(sums(values, count), count.unsqueeze(1).double())
    return ratio(sums((values - mean[owners(count)]).square(), count), count.unsqueeze(1).double())


class Explained(Grouped):
    """1 - unexplained / variance of the targets; the mean over columns of targets that vary."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    def undefined(self, targets: Tensor) -> str | None:
        """Why it has no value; None: it has one."""
        return None if bool((targets != targets[0]).any()) else "all targets are the same"

    @abstractmethod
    def unexplained(self, away: Tensor, count: Tensor) -> Tensor:
        """What of the targets' variance is left, [N, k], of errors [n, k]."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        varies = _highest(targets, count) > -_highest(-targets, count)
        share = ratio(self.unexplained(targets - outputs, count), _variance(targets, count))
        return mean_of_known((1.0 - share).where(varies, torch.nan))


@options
class R2(Explained):
    """The coefficient of determination: 1 - mean squared error / variance of the targets."""

    def unexplained(self, away: Tensor, count: Tensor) -> Tensor:
        """See `Explained`."""
        return ratio(sums(away.square(), count), count.unsqueeze(1).double())


@options
class ExplainedVariance(Explained):
    """1 - variance of the errors / variance of the targets."""

    def unexplained(self, away: Tensor, count: Tensor) -> Tensor:
        """See `Explained`."""
        return _variance(away, count)


def _highest(values: Tensor, count: Tensor) -> Tensor:
    """The largest of each client's values [n, k], [N, k]; -inf without examples."""
    least = values.new_full((len(count), values.shape[1]), -torch.inf)
    return least.scatter_reduce_(0, owners(count).unsqueeze(1).expand_as(values), values, "amax")


@options
class MedianAbsoluteError(Grouped):
    """The median of the absolute errors; of several numbers an example the mean of theirs."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        own = np.split((outputs - targets).abs().numpy(), count.cumsum(0)[:-1].tolist())
        return torch.tensor([np.median(part, axis=0).mean() if len(part) else np.nan for part in own]).double()


@options
class MaxError(Grouped):
    """The largest absolute error."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        return _highest((outputs - targets).abs(), count).amax(dim=1).where(count > 0, torch.nan)


@options
class ECE(Grouped):
    """The expected calibration error: sum over bins of n_b / n |share of right predictions - mean confidence|.

    The confidence is the largest of the softmax; bins divide 0 .. 1 evenly, each with its upper end.
    """

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    bins: Annotated[int, Field(ge=1, le=10_000)] = 15
    """Into how many bins confidences are put."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        confidence, said = outputs.softmax(dim=1).max(dim=1)
        bins = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        places = owners(count) * self.bins + bins
        away = (said == targets).double() - confidence
        gaps = torch.bincount(places, away, minlength=len(count) * self.bins).view(len(count), self.bins)
        return gaps.abs().sum(dim=1) / count
