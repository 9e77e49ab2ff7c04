"""Learning rates over rounds: a factor for round r = 0, 1, 2, ... by which the base rate is multiplied."""

from __future__ import annotations

import math
from typing import Annotated

from fedsim.core.errors import DivergedError
from fedsim.core.options import LARGEST, PositiveFloat, PositiveInt, Share, one_of, options


@options
class Constant:
    """1."""

    def factor(self, round: int) -> float:  # noqa: A002, ARG002
        """The factor in a round."""
        return 1.0


@options
class Exponential:
    """gamma^r."""

    gamma: PositiveFloat
    """Factor of a round."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        return float(self.gamma**round)


@options
class Step:
    """gamma^floor(r / every)."""

    every: PositiveInt
    """Rounds between two steps."""
    gamma: PositiveFloat
    """Factor of a step."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        return float(self.gamma ** (round // self.every))


@options
class Cosine:
    """end + (1 - end) (1 + cos(pi r / rounds)) / 2, and `end` from round `rounds` on."""

    rounds: PositiveInt
    """Rounds that it takes to `end`."""
    end: Share = 0.0
    """The last factor."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        way = min(round / self.rounds, 1.0)
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * way))


@options
class Linear:
    """From 1 in round 0 to `end` in round `rounds`, and `end` from there on."""

    rounds: PositiveInt
    """Rounds that it takes to `end`."""
    end: Share = 0.0
    """The last factor."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        return 1.0 + (self.end - 1.0) * min(round / self.rounds, 1.0)


@options
class Rise:
    """From `begin` in round 0 in equal steps to 1 in round `rounds`, and 1 from there on."""

    rounds: PositiveInt
    """Rounds that it takes to 1."""
    begin: Share = 0.0
    """The first factor."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        return self.begin + (1.0 - self.begin) * min(round / self.rounds, 1.0)


Schedule = Annotated[
    Constant | Exponential | Step | Cosine | Linear,
    one_of(constant=Constant, exponential=Exponential, step=Step, cosine=Cosine, linear=Linear),
]
"""A schedule, or its name, or a table with `kind` and its options."""


def scheduled(lr: float, schedule: Schedule, round: int) -> float:  # noqa: A002
    """A learning rate in a round. DivergedError: it has grown beyond what rates may be."""
    try:
        rate = lr * schedule.factor(round)
    except OverflowError:
        rate = math.inf
    if rate > LARGEST:
        raise DivergedError(f"the learning rate of round {round + 1} is {rate:.3g}; lower the gamma of its schedule")
    return rate


Growth = Annotated[Constant | Rise, one_of(constant=Constant, rise=Rise)]
"""What grows to its full size: the same in all rounds, or rising."""
