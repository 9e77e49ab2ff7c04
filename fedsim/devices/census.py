"""What device models may know of the clients, and the ranges that their options share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

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
