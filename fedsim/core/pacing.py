"""Pacing: how many of N items, easiest first, are in after t of T steps.

n(t) = clip(int(N g(t / (a T))), 1, N), where g(0) = b and all are in from t = a T on. The functions are those of Wu,
Dyer and Neyshabur 2021, as the authors of "When Do Curricula Work in Federated Learning?" (Vahidian et al. 2023) use
them: for examples within a client's local training, and for clients within a run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Annotated

from fedsim.core.options import Share, one_of, options

ROUNDING = 1e-9
"""So that 100 items times a share of 0.29 are 29, and 0.07 of 100 steps are 7, whatever the last bit of the product."""
STEEPNESS = 10.0
"""Of the exponential and the logarithmic function."""


@options
class Pacing(ABC):
    """What all functions share: when all items are in, and how many are at first."""

    a: Share = 0.8
    """The share of the steps after which all items are in; at 0 they are from the first."""
    b: Share = 0.2
    """The share of the items that is in at first."""

    def items(self, step: int, total: int, count: int) -> int:
        """n(t) for step t of T = total and N = count."""
        if self.b == 1.0 or step >= self.a * total - ROUNDING:
            return count
        share = self.share(step / (self.a * total))
        return min(max(int(share * count + ROUNDING), 1), count)

    @abstractmethod
    def share(self, way: float) -> float:
        """The share g of the items, at a part of the way in [0, 1)."""


@options
class Linear(Pacing):
    """b + (1 - b) w, w = t / (a T)."""

    def share(self, way: float) -> float:
        """See `Pacing`."""
        return self.b + (1.0 - self.b) * way


@options
class Quadratic(Pacing):
    """b + (1 - b) w^2."""

    def share(self, way: float) -> float:
        """See `Pacing`."""
        return self.b + (1.0 - self.b) * way**2


@options
class SquareRoot(Pacing):
    """b + (1 - b) w^(1/2)."""

    def share(self, way: float) -> float:
        """See `Pacing`."""
        return self.b + (1.0 - self.b) * math.sqrt(way)


@options
class Step(Pacing):
    """The share b until t = a T, then all."""

    def share(self, way: float) -> float:  # noqa: ARG002
        """See `Pacing`."""
        return self.b


@options
class Exponential(Pacing):
    """b + (1 - b) (e^(10 w) - 1) / (e^10 - 1)."""

    def share(self, way: float) -> float:
        """See `Pacing`."""
        return self.b + (1.0 - self.b) * math.expm1(STEEPNESS * way) / math.expm1(STEEPNESS)


@options
class Logarithmic(Pacing):
    """b + (1 - b) (1 + ln(w + e^-10) / 10)."""

    def share(self, way: float) -> float:
        """See `Pacing`."""
        return self.b + (1.0 - self.b) * (1.0 + math.log(way + math.exp(-STEEPNESS)) / STEEPNESS)


Schedule = Annotated[
    Linear | Quadratic | SquareRoot | Step | Exponential | Logarithmic,
    one_of(
        linear=Linear, quadratic=Quadratic, sqrt=SquareRoot, step=Step, exponential=Exponential, logarithmic=Logarithmic
    ),
]
"""A pacing function, or its name, or a table with `kind`, a and b."""


@lru_cache(maxsize=4096)
def passes(
    pacing: Pacing, floor: int, published: bool, count: int, epochs: int, batch_size: int | None
) -> tuple[tuple[int, ...], int]:
    """Over how many of N = count examples each pass of a client is, and its local steps.

    floor: n(t) is at least that. batch_size: examples of a step, None: all. published: there are E (floor(N / B) + 1)
    steps and the last pass is completed; else E ceil(N / B) steps, after which the last pass is cut off.
    """
    width = count if batch_size is None else batch_size
    total = epochs * (count // width + 1 if published else -(-count // width))
    taken, step = [], 0
    while step < total:
        items = min(max(pacing.items(step, total, count), floor), count)
        taken.append(items)
        step += -(-items // width)
    return tuple(taken), step if published else total
