"""Learning rates within a round: over the steps of a client, and of clients whose batches are small.

Step s of the S that client c takes in a round has the rate

    lr_r * (1 + inverse_decay s)^(-inverse_power) * local_schedule(s, S) * scale(B_c / B_ref)

where lr_r is that of the round, B_c is how many examples its batches have, all that it has where these are fewer, B_ref
is what lr is meant for, and scale is 1, the ratio (linear, for sgd) or its root (sqrt, for rules that divide by what
gradients are like; Granziol et al. 2020).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import Share, one_of, options
from fedsim.core.schedules import Factors

Scaling = Literal["none", "linear", "sqrt"]


@options
class Same:
    """1."""

    def factor(self, step: int, steps: int) -> float:  # noqa: ARG002
        """The factor of a step, from 0, of so many."""
        return 1.0


@options
class LocalLinear:
    """1 - (1 - end) s / S: from 1 in the first step in equal steps to `end`, which would come after the last."""

    end: Share = 0.0
    """The factor after the last step."""

    def factor(self, step: int, steps: int) -> float:
        """The factor of a step, from 0, of so many."""
        return 1.0 + (self.end - 1.0) * (step / steps)


@options
class LocalCosine:
    """end + (1 - end) (1 + cos(pi s / S)) / 2."""

    end: Share = 0.0
    """The factor after the last step."""

    def factor(self, step: int, steps: int) -> float:
        """The factor of a step, from 0, of so many."""
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * (step / steps)))


@options
class LocalTable:
    """Factor floor(n s / S) of n: so many parts of the round, the same for clients with few and many steps."""

    factors: Factors
    """The factors, the first of them above 0; or a TOML file that has them, found from the folder of the experiment."""

    def __post_init__(self) -> None:
        if not self.factors[0]:
            raise InputError("factors", 0.0, "a client's first step would go nowhere; begin above 0")

    def factor(self, step: int, steps: int) -> float:
        """The factor of a step, from 0, of so many."""
        return self.factors[len(self.factors) * step // steps]


LocalSchedule = Annotated[
    Same | LocalLinear | LocalCosine | LocalTable,
    one_of(constant=Same, linear=LocalLinear, cosine=LocalCosine, table=LocalTable),
]
"""A schedule over the steps of a round, or its name, or a table with `kind` and its options."""


def scales(batches: Tensor, reference: int, scaling: Scaling) -> Tensor:
    """What the rates of clients with batches of so many examples, int64 [C], are multiplied by, float64 [C]."""
    ratio = batches.double() / reference
    return ratio.sqrt() if scaling == "sqrt" else ratio if scaling == "linear" else torch.ones_like(ratio)


def factors_of(steps: Tensor, schedule: LocalSchedule) -> Tensor:
    """The factors of each step of clients that take so many, int64 [C]: float64 [S, C], 0 after a client's last."""
    longest = int(steps.max()) if len(steps) else 0
    found = torch.zeros((longest, len(steps)), dtype=torch.float64)
    counts: list[int] = steps.tolist()
    for client, count in enumerate(counts):
        found[:count, client] = _column(schedule, count)
    return found.to(steps.device)


@lru_cache(maxsize=4096)
def _column(schedule: LocalSchedule, steps: int) -> Tensor:
    """The factors of so many steps, float64 [S]."""
    return torch.tensor([schedule.factor(step, steps) for step in range(steps)], dtype=torch.float64)
