"""What the loop, the engines and the runner ask of a problem, whatever it is about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.strategy import ProblemView


class Problem(ProblemView, Protocol):
    """N clients, each with data or with a black-box function, and how the global model is judged.

    sizes: examples of each client, int64 [N] on the CPU; examples: the same on the device; of black boxes one each.
    largest: the largest of them. device, dtype: of the parameters.
    """

    sizes: Tensor
    examples: Tensor
    largest: int
    device: torch.device
    dtype: torch.dtype

    @property
    def dimension(self) -> int:
        """d, how many parameters there are."""
        ...

    def evaluate(self, params: Tensor, *, clients: bool, on: Collection[str]) -> dict[str, float]:
        """Measure the global model; nothing of this counts as a query."""
        ...

    def evaluates_clients(self, wanted: bool | str) -> bool:
        """Whether `evaluate` is to measure clients too."""
        ...

    def measures(self, clients: bool | str, on: Collection[str]) -> list[str]:
        """The names that `evaluate` gives."""
        ...

    def labels(self) -> np.ndarray | None:
        """The mean label of each client's examples, [N]; None where there are no labels."""
        ...

    def tensors(self, params: Tensor) -> Mapping[str, Tensor]:
        """Parameters [d] by name, as they are saved."""
        ...

    def illustrate(self, place: Callable[[str], Path], params: Tensor | None) -> None:
        """Draw the problem's own pictures into the run folder, before the first round (no params) and at the end."""
        ...
