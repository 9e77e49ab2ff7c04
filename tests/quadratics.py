"""Federated quadratics, whose local maps, fixed points and optimum have closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from small_problems import DEVICE
from torch import nn

import fedsim
from fedsim.runner import build_simulation


@dataclass(frozen=True)
class Quadratics:
    """f_i(w) = mean_j (x_ij . w - y_ij)^2 over client i's examples; its gradient is H_i w - b_i.

    H_i = 2/n X^T X and b_i = 2/n X^T y. Every client has the same weight, so that uniform means are p-weighted ones.
    """

    x: np.ndarray
    y: np.ndarray
    clients: list[np.ndarray]

    def terms(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.x[self.clients[client]], self.y[self.clients[client]]
        return 2 / len(y) * x.T @ x, 2 / len(y) * x.T @ y

    def optimum(self) -> np.ndarray:
        """Where the mean of the gradients is zero."""
        terms = [self.terms(client) for client in range(len(self.clients))]
        return np.linalg.solve(sum(h for h, _ in terms), sum(b for _, b in terms))

    def local(self, client: int, steps: int, lr: float, mu: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """A, c with w -> A w + c after `steps` gradient steps on f_i + mu/2 |w - start|^2 from w."""
        h, b = self.terms(client)
        one = np.eye(len(b))
        moved, fixed = one.copy(), np.zeros(len(b))
        for _ in range(steps):
            fixed = fixed - lr * (h @ fixed - b + mu * fixed)
            moved = moved - lr * (h @ moved + mu * (moved - one))
        return moved, fixed

    def run(
        self, rounds: int, strategy: dict[str, Any], client: dict[str, Any], count: int | None = None
    ) -> np.ndarray:
        """The final parameters of a simulation with uniform weights in double precision."""
        model = nn.Linear(self.x.shape[1], 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        problem = fedsim.supervised(
            self.x,
            self.y,
            model=model,
            clients=self.clients,
            dtype=torch.float64,
            device=DEVICE,
        )
        experiment = fedsim.experiment(
            rounds=rounds,
            strategy=strategy,
            client=client,
            selection={"kind": "uniform", "count": count or len(self.clients)},
            evaluation={"every": 0},
        )
        simulation = build_simulation(experiment, problem)
        for _ in simulation:
            pass
        return simulation.state.params.cpu().numpy()
