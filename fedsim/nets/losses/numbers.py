"""Losses of numbers: a = output - target."""

from __future__ import annotations

import math
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, options
from fedsim.nets.elementwise import in_whole_registers
from fedsim.nets.losses.base import Pointwise, Targets


@options
class SquaredError(Pointwise):
    """The squared error a^2: the mean is what is learnt."""

    tasks = ("numbers",)
    curves = True

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [...] and targets [...]."""
        return (outputs - targets) ** 2

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and 2 a."""
        difference = outputs - targets
        return difference**2, 2.0 * difference


@options
class LogCosh(Pointwise):
    """The logarithm of cosh(a): convex, 1-Lipschitz, 0 at the target."""

    tasks = ("numbers",)
    curves = True

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [...] and targets [...]."""
        away = (outputs - targets).abs()
        # log cosh a = a + log(1 + e^(-2 a)) - log 2, which does not overflow.
        return away + in_whole_registers(functional.softplus, -2.0 * away) - math.log(2.0)

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and tanh(a)."""
        return self.each(outputs, targets), torch.tanh(outputs - targets)


@options
class AbsoluteError(Pointwise):
    """The absolute error |a|: the median is what is learnt."""

    tasks = ("numbers",)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [...] and targets [...]."""
        return (outputs - targets).abs()

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and the sign of a."""
        difference = outputs - targets
        return difference.abs(), difference.sign()


@options
class Huber(Pointwise):
    """Huber's loss: a^2 / 2 where |a| is at most delta, delta (|a| - delta / 2) beyond: outliers pull no harder."""

    tasks = ("numbers",)
    curves = True

    delta: PositiveFloat = 1.0
    """From where on it grows evenly."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [...] and targets [...]."""
        away = (outputs - targets).abs()
        within = away.clamp(max=self.delta)
        return within * (away - 0.5 * within)

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and a, not beyond -delta and delta."""
        return self.each(outputs, targets), (outputs - targets).clamp(-self.delta, self.delta)


@options
class Pinball(Pointwise):
    """The pinball loss: (1 - q) a where a is above 0, -q a below; the quantile q is what is learnt."""

    tasks = ("numbers",)

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """q, the share of the targets that outputs are to be above."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [...] and targets [...]."""
        difference = outputs - targets
        return difference.clamp(min=0.0) - self.quantile * difference

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and (a above 0) - q."""
        difference = outputs - targets
        return difference.clamp(min=0.0) - self.quantile * difference, (difference > 0).to(outputs) - self.quantile


@options
class Poisson(Pointwise):
    """Poisson's loss e^z - t z of an output z and a count t: -log of a distribution of mean e^z, but for a constant."""

    tasks = ("numbers",)
    curves = True

    def fitted(self, targets: Tensor, task: Targets, outputs: int) -> Self:
        """See `Loss.fitted`. InputError: a target is below 0."""
        if bool((targets < 0).any()):
            raise InputError("problem.loss", "poisson", f"is of counts, and a target is {float(targets.min()):g}")
        return super().fitted(targets, task, outputs)

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [...] and targets [...]."""
        return outputs.exp() - targets * outputs

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and e^z - t."""
        mean = outputs.exp()
        return mean - targets * outputs, mean - targets
