"""Staleness discounts: a factor s(u) for an update from a model that the server has changed u times since."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from fedsim.core.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, one_of, options


@options
class Constant:
    """1."""

    def factor(self, staleness: Tensor) -> Tensor:
        """The factors, float64 [k], of so many rounds, int64 [k]."""
        return torch.ones(staleness.shape, dtype=torch.float64)


@options
class Polynomial:
    """(1 + u)^-exponent. Xie et al. 2019; with 1/2 also Nguyen et al. 2022."""

    exponent: NonNegativeFloat = 0.5
    """How fast it falls; 0: not."""

    def factor(self, staleness: Tensor) -> Tensor:
        """The factors, float64 [k], of so many rounds, int64 [k]."""
        return (1.0 + staleness.double()) ** -self.exponent


@options
class Hinge:
    """1 up to u = threshold, then 1 / (slope (u - threshold) + 1). Xie et al. 2019."""

    slope: PositiveFloat = 10.0
    """How fast it falls after the threshold."""
    threshold: NonNegativeInt = 4
    """The largest staleness that is not discounted."""

    def factor(self, staleness: Tensor) -> Tensor:
        """The factors, float64 [k], of so many rounds, int64 [k]."""
        return 1.0 / (self.slope * (staleness.double() - self.threshold).clamp(min=0.0) + 1.0)


Discount = Annotated[
    Constant | Polynomial | Hinge,
    one_of(constant=Constant, polynomial=Polynomial, hinge=Hinge),
]
"""A discount, or its name, or a table with `kind` and its options."""
