"""Learning rates over rounds: a factor for round r = 0, 1, 2, ... by which the base rate is multiplied."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from fedsim.core.errors import DivergedError, InputError
from fedsim.core.options import LARGEST, PositiveFloat, PositiveInt, Share, one_of, options


def read_factors(given: object) -> object:
    """Factors as they are, or from the file of this path: TOML, or a part of it, in which `factors` is an array.

    InputError: the file cannot be read, or has no factors; of whichever option it is that names it.
    """
    if not isinstance(given, str | Path):
        return given
    from fedsim.core.documents import read_toml  # which experiments need that name a file
    from fedsim.core.files import reason

    try:
        return read_toml(Path(given))["factors"]
    except OSError as error:
        raise InputError("", str(given), f"cannot be read: {reason(error)}") from error
    except KeyError:
        raise InputError("", str(given), "write factors = [...] into it, as fedsim schedule does") from None
    except ValueError as error:
        raise InputError("", str(given), f"is no TOML: {error}") from error


Factor = Annotated[float, Field(ge=0, le=LARGEST)]
Factors = Annotated[
    tuple[Factor, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(read_factors, json_schema_input_type=str | tuple[Factor, ...]),
]
"""Factors; a TOML array, or the path of a file that has one."""


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
class CosinePower:
    """end + (1 - end) (power^h - 1) / (power - 1), h = (1 + cos(pi r / rounds)) / 2; `end` from round `rounds` on.

    It falls faster than a cosine at first and slower in the end, where small rates matter (Hundt et al. 2019).
    """

    rounds: PositiveInt
    """Rounds that it takes to `end`."""
    end: Share = 0.0
    """The last factor."""
    power: Annotated[float, Field(gt=1, le=LARGEST)] = 10.0
    """How much faster; towards 1 it is a cosine."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        half = 0.5 * (1.0 + math.cos(math.pi * min(round / self.rounds, 1.0)))
        decades = math.log(self.power)
        return self.end + (1.0 - self.end) * math.expm1(half * decades) / math.expm1(decades)


@options
class Table:
    """One factor a round, and the last one from there on."""

    factors: Factors
    """The factors; or a TOML file that has them, as `fedsim schedule` writes it, found from the folder of the
    experiment.
    """

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        return self.factors[min(round, len(self.factors) - 1)]


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


@options
class Smooth:
    """A r^4 until a quarter of `rounds`, rounded down, then in equal steps to 1 in round `rounds`, and 1 from there on.

    Where both meet they have one slope, which A follows from.
    """

    rounds: PositiveInt
    """Rounds that it takes to 1."""

    def factor(self, round: int) -> float:  # noqa: A002
        """The factor in a round."""
        bend, way = self.rounds // 4, min(round, self.rounds)
        if not bend:
            return way / self.rounds
        steep = 4.0 * bend**3
        whole = bend**4 + steep * (self.rounds - bend)
        return (float(way**4) if way < bend else bend**4 + steep * (way - bend)) / whole


Schedule = Annotated[
    Constant | Exponential | Step | Cosine | CosinePower | Linear | Table,
    one_of(
        constant=Constant,
        exponential=Exponential,
        step=Step,
        cosine=Cosine,
        cosine_power=CosinePower,
        linear=Linear,
        table=Table,
    ),
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


Growth = Annotated[Constant | Rise | Smooth, one_of(constant=Constant, rise=Rise, smooth=Smooth)]
"""What grows to its full size: the same in all rounds, or rising."""
