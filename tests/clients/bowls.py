"""Clients whose losses are quadratics with one minimum each, h_i/2 |w - a_i|^2, for what has a closed form there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.engine.executor import Individuals
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.personal import own_models
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import small_experiment

H = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
A = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, 1.5]], dtype=torch.float64)
"""Curvatures [C] and minima [C, 2] of three clients."""
FULL: dict[str, Any] = {"batch_size": "full", "steps": 5, "lr": 0.3}


def bowls(h: Tensor = H, a: Tensor = A, start: float | Tensor = 0.0) -> Supervised:
    """The problem, from w = start, [2] or both the same.

    Of (x_j w_j - y_j)^2, j = 1, 2, the mean has curvature x^2, and its minimum at y / x.
    """
    x = torch.eye(2, dtype=torch.float64) * h.sqrt().view(-1, 1, 1)  # [C, 2, 2]
    y = (x @ a.unsqueeze(2)).flatten()
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(start, dtype=torch.float64))
    clients = list(np.arange(2 * len(h)).reshape(-1, 2))
    return supervised(x.flatten(0, 1), y, model=model, clients=clients, dtype=torch.float64, device="cpu")


def simulation(client: dict[str, Any], rounds: int, problem: Supervised | None = None, **tables: Any) -> Simulation:
    """Of all clients in every round, of whom nobody is judged."""
    tables = {
        "selection": {"kind": "uniform", "fraction": 1.0},
        "evaluation": {"every": 1, "clients": False},
        "engine": {"executor": "stacked"},
    } | tables
    return build_simulation(small_experiment(rounds, client=client, **tables), problem or bowls())


def ended(client: dict[str, Any], rounds: int, **tables: Any) -> Simulation:
    """The same at its end."""
    made = simulation(client, rounds, **tables)
    for _ in made:
        pass
    return made


def mean_of(weights: Tensor, points: Tensor = A) -> Tensor:
    """Of points [C, 2], by weights [C] that need not sum to 1."""
    return (weights.unsqueeze(1) * points).sum(dim=0) / weights.sum()


def kept(made: Simulation, name: str = "personal") -> Tensor:
    """What clients remember, [N, ...]."""
    everybody: Sequence[int] = range(made.parts.problem.num_clients)
    return made.parts.engine.memories().look(name, torch.tensor(everybody))[0]


def judged(made: Simulation) -> Individuals:
    """What clients are judged by now."""
    parts = made.parts
    owned = own_models(parts.engine, parts.problem, parts.strategy, made.state, None)
    everybody = torch.arange(parts.problem.num_clients)
    state = {name: owned.store.look(name, everybody)[0] for name in owned.store.shapes}
    return owned.executor.own_models(owned.order, everybody, state, None)


def assert_close(found: Tensor, wanted: Tensor, within: float = 1e-13) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=within)
