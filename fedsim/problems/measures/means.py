"""Measures that are means over examples, or follow from them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, Share, options
from fedsim.nets.losses import Targets
from fedsim.problems.measures.base import CLASSES, NUMBERS, TAGS, Grouped, sums


class Mean(Grouped):
    """A mean over examples, then over the columns of targets, of which there may be several."""

    @abstractmethod
    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each example comes to, [n] or, of each column, [n, k]."""

    def finish(self, means: Tensor) -> Tensor:
        """The value of means over examples [N] or [N, k]."""
        return means

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""
        total = sums(self.examples(outputs, targets).double(), count)
        found = self.finish(total / count.view(-1, *[1] * (total.dim() - 1)))
        return found if found.dim() == 1 else found.mean(dim=1)


def _right_first(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many outputs of each example come before the target's: larger ones, and equal ones of lower classes, [n]."""
    own = outputs.gather(1, targets.unsqueeze(1))
    before = torch.arange(outputs.shape[1]) < targets.unsqueeze(1)
    return ((outputs > own) | ((outputs == own) & before)).sum(dim=1)


@options
class Accuracy(Mean):
    """The share of what counts whose largest output is the target's: of examples, of tokens, of pixels."""

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the prediction is right, [n]."""
        return outputs.argmax(dim=1) == targets


@options
class TopKAccuracy(Mean):
    """The share of examples whose target is among the k largest outputs."""

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    k: PositiveInt = 5
    """So many of the largest outputs count."""

    @property
    def called(self) -> str:
        """As in top_5_accuracy."""
        return f"top_{self.k}_accuracy"

    def check(self, task: Targets, width: int) -> None:
        """Raise InputError where it does not suit the targets, or all outputs would count."""
        super().check(task, width)
        if self.k >= width:
            raise InputError("k", self.k, f"there are {width} classes, of which so many are always right; take fewer")

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the target is among them, [n]."""
        return _right_first(outputs, targets) < self.k


@options
class LogLoss(Mean):
    """The mean cross-entropy, -log softmax(outputs)[target], whatever the model is trained by."""

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropies, [n]."""
        return -torch.log_softmax(outputs, dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)


@options
class Perplexity(LogLoss):
    """exp of the mean cross-entropy, of tokens as of other classes."""

    best: ClassVar[float | None] = 1.0

    def finish(self, means: Tensor) -> Tensor:
        """The value of means over examples [N]."""
        return means.exp()


@options
class Brier(Mean):
    """The mean of sum_k (p_k - [k = target])^2, p the softmax of outputs; of two classes of (p_1 - target)^2."""

    tasks: ClassVar[frozenset[Targets]] = CLASSES
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared distances, [n]."""
        wanted = torch.nn.functional.one_hot(targets, outputs.shape[1])
        squares = (outputs.softmax(dim=1) - wanted).square().sum(dim=1)
        return squares / 2.0 if outputs.shape[1] == 2 else squares


@options
class MAE(Mean):
    """The mean absolute error."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Absolute errors, [n, k]."""
        return (outputs - targets).abs()


@options
class MSE(Mean):
    """The mean squared error."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared errors, [n, k]."""
        return (outputs - targets).square()


@options
class RMSE(MSE):
    """The root of the mean squared error; of several numbers an example the mean of theirs."""

    def finish(self, means: Tensor) -> Tensor:
        """The value of means over examples [N, k]."""
        return means.sqrt()


@options
class MAPE(Mean):
    """The mean of |output - target| / |target|; undefined where a target is 0."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def undefined(self, targets: Tensor) -> str | None:
        """Why it has no value; None: it has one."""
        return "a target is 0" if bool((targets == 0).any()) else None

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Relative errors, [n, k]; NaN where the target is 0."""
        return (outputs - targets).abs() / torch.where(targets == 0, torch.nan, targets.abs())


@options
class Pinball(Mean):
    """The mean pinball loss of the quantile alpha: max(alpha e, (alpha - 1) e), e = target - output."""

    tasks: ClassVar[frozenset[Targets]] = NUMBERS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    alpha: Annotated[Share, Field(gt=0, lt=1)] = 0.5
    """Which quantile of the targets outputs are to be, between 0 and 1; half of the absolute error at 0.5."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses, [n, k]."""
        away = targets - outputs
        return torch.maximum(self.alpha * away, (self.alpha - 1.0) * away)


@options
class HammingLoss(Mean):
    """The share of tags that are wrong."""

    tasks: ClassVar[frozenset[Targets]] = TAGS
    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float | None] = 0.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where a tag is wrong, [n, k]."""
        return (outputs > 0) != (targets > 0)


@options
class SubsetAccuracy(Mean):
    """The share of examples all of whose tags are right."""

    tasks: ClassVar[frozenset[Targets]] = TAGS
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float | None] = 1.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where all tags are right, [n]."""
        return ((outputs > 0) == (targets > 0)).all(dim=1)
