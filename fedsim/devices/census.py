"""What device models may know of the clients, and the ranges that their options share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

LONGEST = 1e9
"""Seconds, 31 years: the most that an option or a row of a trace may say, so that ticks stay far from 2^63."""
Seconds = Annotated[float, Field(ge=1e-9, le=LONGEST)]
"""A duration in seconds, from one tick to 31 years."""
Spread = Annotated[float, Field(ge=0, le=10)]
"""Standard deviation of the logarithm of a log-normal factor."""


@dataclass(frozen=True, eq=False)
class Census:
    """What device models may know of N clients.

    sizes: int64 [N], how many examples each has, on the CPU. labels: float64 [N], the mean label of each client's
    examples, NaN where it has none; None where examples have no labels.
    """

    sizes: Tensor
    labels: NDArray[np.float64] | None
