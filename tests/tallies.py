"""Clients whose only work is to be counted, so that the global model is a table of the weights that they were given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import fedsim
from fedsim.client import Client
from fedsim.core.options import options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order, Replies, Size, Update
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import DEVICE


@options
class Tally(Client):
    """Sends the unit vector of its own coordinate: theta_i - theta_i^0 is the sum of the weights of client i."""

    requires: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})
    same_every_round: ClassVar[bool] = True

    def cost(self, order: Order, examples: Tensor) -> Cost:
        params = order.payload["params"]
        return Cost(torch.zeros_like(examples), {"delta": Size.of(params)})

    def train(self, cohort: Cohort) -> Update:
        theta = cohort.received("params")
        return Update({"delta": one_hot(cohort.clients, theta.shape[-1]).to(theta.dtype)})


@dataclass
class Told:
    """What a strategy was told in one window, and its state before and after."""

    now: int
    replies: Replies
    before: ServerState
    after: ServerState


class Recorder:
    """A strategy that notes in `told` what it is told."""

    def __init__(self, simulation: Simulation) -> None:
        self._strategy, self._engine = simulation.parts.strategy, simulation.parts.engine
        self.told: list[Told] = []
        self.ask, self.down = self._strategy.ask, self._strategy.down
        simulation.parts = replace(simulation.parts, strategy=self)

    def tell(self, state: ServerState, replies: Replies) -> Any:
        answer = self._strategy.tell(state, replies)
        self.told.append(Told(self._engine.now, replies, state, answer[0]))
        return answer


def recorded(simulation: Simulation) -> list[Told]:
    """Run to the end; what its strategy was told."""
    recorder = Recorder(simulation)
    for _ in simulation:
        pass
    return recorder.told


def tally_problem(sizes: list[int], dtype: torch.dtype = torch.float64) -> Supervised:
    """N clients with so many examples each, and a model with one parameter for each client, all 0."""
    ends, population = np.cumsum(sizes), len(sizes)
    model = nn.Linear(population, 1, bias=False)
    nn.init.zeros_(model.weight)
    lists = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    x = np.zeros((int(ends[-1]), population))
    return fedsim.supervised(x, x[:, 0], model=model, clients=lists, dtype=dtype, device=DEVICE)


def tally(sizes: list[int] | int, **tables: Any) -> Simulation:
    """A simulation in which clients with so many examples (or so many clients with one) are counted."""
    sizes = [1] * sizes if isinstance(sizes, int) else sizes
    experiment = fedsim.experiment(**{"evaluation": {"every": 0}, **tables})
    return build_simulation(replace(experiment, client=Tally()), tally_problem(sizes))


def weights(simulation: Simulation) -> np.ndarray:
    """The total weight of each client, [N], after the run's end."""
    for _ in simulation:
        pass
    return simulation.state.params.cpu().numpy()


def spread(percent: float) -> dict[str, Any]:
    """Devices F-X: the fastest takes so many percent less than the slowest, which takes 1 s."""
    return {"compute": {"kind": "fixed", "spread": percent}}


def taus(population: int, percent: int) -> list[Fraction]:
    """The exact durations of F-X."""
    return [1 - Fraction(percent, 100) * Fraction(client, population - 1) for client in range(population)]


def taking(folder: Path, *seconds: float) -> dict[str, Any]:
    """Devices of clients 0, 1, ... that take so many seconds."""
    rows = [f"{client},{taken}" for client, taken in enumerate(seconds)]
    (folder / "paces.csv").write_text("\n".join(["client,seconds", *rows]))
    return {"compute": {"kind": "trace", "file": str(folder / "paces.csv")}}
