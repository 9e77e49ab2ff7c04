"""Learning rates within a round: over the steps of a client, and of clients whose batches are small.

Step s of the S that client c takes in a round has the rate

    lr_r * (1 + inverse_decay s)^(-inverse_power) * local_schedule(s, S) * scale(B_c / B_ref)

where lr_r is that of the round, B_c is how many examples its batches have, all that it has where these are fewer, B_ref
is what lr is meant for, and scale is 1, the ratio (linear, for sgd) or its root (sqrt, for rules that divide by what
gradients are like; Granziol et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class StepRates:
    """What makes the rate of a step of that of the round.

    steps: how many all clients take; None: each its own number.
    """

    inverse_decay: float
    inverse_power: float
    schedule: LocalSchedule
    steps: int | None
    scaling: Scaling

    @property
    def differ(self) -> bool:
        """Whether steps of a round have different rates, of one client or of several."""
        return bool(self.inverse_decay) or self.scaling != "none" or not isinstance(self.schedule, Same)

    @property
    def apart(self) -> bool:
        """Whether clients have rates of their own; as options say it, so that none depends on who else is at work."""
        return self.scaling != "none" or (self.steps is None and not isinstance(self.schedule, Same))

    def decay(self, step: int) -> float:
        """The factor of a step of all clients alike."""
        decay = float((1.0 + self.inverse_decay * step) ** -self.inverse_power) if self.inverse_decay else 1.0
        return decay if self.steps is None else decay * self.schedule.factor(step, self.steps)

    def own(self, base: float, steps: Tensor, scales: Tensor) -> Tensor:
        """The rates of clients that take so many steps, int64 [C], and are scaled so, float64 [C]: float64 [S, C]."""
        factors = factors_of(steps, self.schedule if self.steps is None else Same())
        along = [base * self.decay(step) for step in range(len(factors))]
        return torch.tensor(along, dtype=torch.float64, device=factors.device).unsqueeze(1) * factors * scales

    def scales(self, batches: Tensor, reference: int) -> Tensor:
        """What the rates of clients with batches of so many examples, int64 [C], are multiplied by, float64 [C]."""
        ratio = batches.double() / reference
        if self.scaling == "none":
            return torch.ones_like(ratio)
        return ratio.sqrt() if self.scaling == "sqrt" else ratio

    def sums(self, base: float, taken: Tensor, own: Tensor | None) -> Tensor:
        """The sum of the rates of so many steps, int64 [C], float64 [C]. own: as of `own`, if clients are apart."""
        if own is not None:
            ends = (taken - 1).clamp(min=0).unsqueeze(0)
            return own.cumsum(0).gather(0, ends)[0] if len(own) else own.new_zeros(len(taken))
        if not self.differ:
            return taken.double() * base
        longest = int(taken.max()) if len(taken) else 0
        decayed = [self.decay(step) for step in range(longest)]
        return torch.tensor([0.0, *decayed], dtype=torch.float64, device=taken.device).cumsum(0)[taken] * base


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
