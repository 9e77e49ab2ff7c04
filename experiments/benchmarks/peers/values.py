"""Zeroth-order work of many clients, and a plain loop that does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Values:
    """f_i(x) = mean_j a_ij (x_j - c_ij)^2, of which only values can be asked for; F is their mean over the clients.

    From x, a client takes `steps` steps z <- z - lr g along differences of its values,
    g = (1/q) sum_j (f_i(z + mu u_j) - f_i(z)) / mu u_j, u_j ~ N(0, I), and the next x is the mean of their z.
    scale, centre: a and c, [C, d]. directions: q. rounds: after how many F is compared.
    """

    scale: Floats
    centre: Floats
    steps: int
    directions: int
    mu: float
    lr: float
    rounds: int

    def global_value(self, x: Floats) -> float:
        """Compute F(x)."""
        return float((self.scale * np.square(x - self.centre)).mean())


def zeroth_order() -> Values:
    """Make 10,000 clients of 50 coordinates, all in each round, 5 steps of 5 directions."""
    rng = np.random.default_rng(0)
    shape = (10_000, 50)
    scale, centre = rng.uniform(0.5, 1.5, shape).astype(np.float32), rng.normal(1.0, 1.0, shape).astype(np.float32)
    return Values(scale=scale, centre=centre, steps=5, directions=5, mu=1e-2, lr=1.0, rounds=10)


class PlainValues:
    """One client after the other in NumPy, the q + 1 points of a step in one call of its function."""

    def __init__(self, work: Values) -> None:
        self.work = work

    def missing(self) -> str | None:
        """Say None: nothing but NumPy is needed."""
        return None

    def start(self) -> None:
        """Begin at 0."""
        self.x: Floats = np.zeros(self.work.scale.shape[1], dtype=np.float32)
        self.rng = np.random.default_rng(1)

    def round(self) -> None:
        """Let every client search from x, and take the mean of where they end."""
        work, dimension = self.work, len(self.x)
        total = np.zeros_like(self.x)
        for scale, centre in zip(work.scale, work.centre, strict=True):
            z = self.x
            for _ in range(work.steps):
                directions = self.rng.standard_normal((work.directions, dimension), dtype=np.float32)
                points = np.vstack((z, z + work.mu * directions))
                values = np.square(points - centre) @ scale / dimension
                z = z - (work.lr / (work.mu * work.directions)) * ((values[1:] - values[0]) @ directions)
            total += z
        total /= len(work.scale)
        self.x = total

    def parameters(self) -> dict[str, Tensor]:
        """Copy x."""
        return {"x": torch.from_numpy(self.x.copy())}

    def accuracy(self) -> float:
        """Compute F, of which less is better."""
        return self.work.global_value(self.x)

    def stop(self) -> None:
        """Nothing to give back."""
