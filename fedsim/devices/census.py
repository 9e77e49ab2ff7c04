"""What device models may know of the clients, and the ranges that their options share."""

from __future__ import annotations

from collections.abc import Callable
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

    sizes: int64 [N], how many examples each has, on the CPU. labels: reckons the mean label of each client's examples,
    float64 [N], NaN where it has none, by a pass over all of them; None where examples have no labels.
    """

    sizes: Tensor
    labels: Callable[[], NDArray[np.float64] | None]
