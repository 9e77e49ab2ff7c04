"""What the loop, the engines and the runner ask of a problem, whatever it is about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedsim.attacks.attack import Attack
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.server.strategy import ProblemView


@dataclass(frozen=True)
class Trial:
    """How the global model is judged under attacks.

    attacks: which, of different labels. on: `test`, `train` or both, the sets whose examples are attacked. examples:
    a sample of at most so many of each set; None: all. clients: attack each client's own examples too, all of them.
    streams: of what attacks draw.
    """

    attacks: tuple[Attack, ...]
    on: tuple[str, ...]
    examples: int | None
    clients: bool
    streams: Streams


@runtime_checkable
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

    def attacked(self, params: Tensor, trial: Trial) -> dict[str, float]:
        """Measure the global model under attacks."""
        ...

    def attacked_measures(self, trial: Trial) -> list[str]:
        """The names that `attacked` gives. InputError: this cannot be attacked so."""
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


PARTITION, ADVERSARIAL = "partition.png", "adversarial.png"


EVALUATED_AT_ONCE = 2**24
"""Numbers that an evaluation's forward pass may make at once: with more they leave the cache, at twice the time."""
CLIENTS_EVALUATED = 1_000


def choose_device(wanted: str) -> torch.device:
    """The device that an experiment asks for; auto is cuda where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device", wanted, "there is no CUDA device here; use cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
