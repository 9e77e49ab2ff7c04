"""What every engine of the benchmark table is given to do, and the interface it is driven by.

The rule is federated averaging weighted by examples: each chosen client starts at theta, takes plain SGD
steps over `epochs` fresh shuffles of its examples, the last partial batch kept, and theta becomes
sum_i n_i theta_i / sum_i n_i. Who works is a function of the round, and in which order a client visits its
examples one of (round, client), so engines that follow both end in the same parameters up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Pgd:
    """Every batch is replaced by l_inf PGD on it, with inputs in [0, 1], from a random start."""

    epsilon: float
    steps: int

    @property
    def step_size(self) -> float:
        """Of each step."""
        return 2.5 * self.epsilon / self.steps


@dataclass(frozen=True)
class Paced:
    """Passes over the first n(t) = N (b + (1 - b) t / (a T)) examples, by ascending loss of the model of the round."""

    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """One federated problem with its schedule.

    x: float32 [n, ...], or int64 for characters; y: int64 [n]. clients: the rows of each client, int64 [n_i].
    x_test, y_test: the central test set. model: an importable function that makes the module with its initial
    parameters, the same at each call. forward: the same network as a function of its parameters, in the module's
    order. per_round: clients a round, None for all. rounds: after how many rounds the engines' accuracies are
    compared. attack, curriculum: how local training differs from that; engines that cannot do it are left out.
    """

    name: str
    x: Tensor
    y: Tensor
    clients: list[Indices]
    x_test: Tensor
    y_test: Tensor
    model: Callable[[], nn.Module]
    forward: Callable[[Sequence[Tensor], Tensor], Tensor]
    epochs: int
    batch_size: int
    lr: float
    rounds: int
    per_round: int | None
    attack: Pgd | None = None
    curriculum: Paced | None = None

    @property
    def cohort_size(self) -> int:
        """How many clients work in a round."""
        return len(self.clients) if self.per_round is None else self.per_round

    def chosen(self, round: int) -> list[int]:  # noqa: A002
        """Name the clients of a round (counted from 0), ascending."""
        if self.per_round is None:
            return list(range(len(self.clients)))
        drawn = np.random.default_rng((1, round)).choice(len(self.clients), self.per_round, replace=False)
        return sorted(drawn.tolist())

    def orders(self, round: int, client: int) -> Iterator[Tensor]:  # noqa: A002
        """Yield for each epoch the order in which a client of n examples visits them: int64 [n]; or without end."""
        # PyTorch's generator on the CPU uses only the lower 32 bits of a seed.
        generator = torch.Generator().manual_seed(round * len(self.clients) + client)
        for _ in range(self.epochs) if self.curriculum is None else count():
            yield torch.randperm(len(self.clients[client]), generator=generator)

    def examples(self, client: int) -> tuple[Tensor, Tensor]:
        """Copy out a client's inputs [n, ...] and labels [n]."""
        rows = torch.from_numpy(self.clients[client])
        return self.x[rows], self.y[rows]

    def accuracy(self, parameters: Mapping[str, Tensor]) -> float:
        """Measure the share of the test set that the model with this state dict labels rightly."""
        model = self.model()
        model.load_state_dict({**model.state_dict(), **parameters})
        model.eval()
        with torch.no_grad():
            batches = torch.split(self.x_test, 1000)
            labels = torch.cat([model(x).argmax(1) for x in batches])
        return float((labels == self.y_test).float().mean())


class Peer(Protocol):
    """An engine of the table. `start` is timed apart; each `round` advances the global model by one round."""

    def missing(self) -> str | None:
        """Say why this engine cannot do its work here ("not installed"), or None."""

    def start(self) -> None:
        """Do all that is done once, however many rounds follow."""

    def round(self) -> None:
        """Run one round."""

    def parameters(self) -> dict[str, Tensor]:
        """Copy the present global model, as a state dict."""

    def accuracy(self) -> float:
        """Measure the test accuracy of the present global model."""

    def stop(self) -> None:
        """Give back everything that `start` took; may be called twice, and after a failure."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
