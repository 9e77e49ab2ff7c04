"""A model that walks among fifty clients: how far from the optimum it is, by how much it avoids where it has been.

f_i(w) = |w - c_i|^2 / 2 in four dimensions, c_i a wave along the ring of a Watts-Strogatz graph and noise, so that a
walk that stays near where it is sees the same for long. One step at rate 1 times (n + 1)^-0.9; nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.table import Table
from torch import nn

import fedsim
from experiments.gossip import HERE
from experiments.parts import Claim, Part
from experiments.studies import Numbers, band, cell, picture
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.sweep import Outcome

CLIENTS, DIMENSION, HOPS, EVERY = 50, 4, 1000, 25
SEEDS = range(6)
ALPHAS = (0.0, 1.0, 5.0, 20.0)
LABELS: Mapping[str, Mapping[str, object]] = {
    **{f"alpha {alpha:g}": {"alpha": alpha} for alpha in ALPHAS},
    "to any neighbour, corrected": {"alpha": 0.0, "target": "degree"},
}
"""Walks, and their options."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A walk. errors: |theta - optimum|^2 after every so many hops, [S, points]."""

    label: str
    errors: Numbers

    @property
    def last(self) -> Numbers:
        """The mean of the errors over the second half of the hops, [S]."""
        return np.asarray(self.errors[:, self.errors.shape[1] // 2 :].mean(axis=1))


Results = Mapping[str, Measured]


def centres(seed: int) -> Numbers:
    """c_i, [N, d]."""
    random = np.random.Generator(np.random.PCG64([seed, 7]))
    angle = 2 * np.pi * np.arange(CLIENTS)[:, None] / CLIENTS * np.array([1, 1, 2, 2])
    drawn: Numbers = np.cos(angle + np.array([0, np.pi / 2] * 2)) + 0.3 * random.normal(size=(CLIENTS, DIMENSION))
    return drawn


def problem(points: Numbers) -> Supervised:
    """Of an example a coordinate, sqrt(d / 2) e_j with the target sqrt(d / 2) c_ij, the gradient is w - c_i."""
    model, scale = nn.Linear(DIMENSION, 1, bias=False), np.sqrt(DIMENSION / 2)
    nn.init.zeros_(model.weight)
    x, y = np.tile(scale * np.eye(DIMENSION), (CLIENTS, 1)), scale * points.reshape(-1)
    lists = list(np.arange(CLIENTS * DIMENSION).reshape(CLIENTS, DIMENSION))
    return fedsim.supervised(x, y, model=model, clients=lists, loss="squared_error", device="cpu")


def walked(options: Mapping[str, object], seed: int, hops: int = HOPS) -> Numbers:
    """The errors of a walk."""
    points = centres(seed)
    made = fedsim.experiment(
        rounds=hops,
        seed=seed,
        strategy={"kind": "random_walk", "graph": "watts_strogatz", "memory_power": 0.6, **options},
        client={"kind": "random_walk", "steps": 1, "batch_size": "full", "lr": 1.0},
        selection={"kind": "uniform", "fraction": 1.0},
        evaluation={"every": 0},
    )
    simulation, found = build_simulation(made, problem(points)), list[float]()
    for number in range(1, hops + 1):
        simulation.step()
        if number % EVERY == 0:
            away = simulation.state.params.numpy() - points.mean(axis=0)
            found.append(float(away @ away))
    return np.array(found)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:  # noqa: ARG001
    """Walk, which takes about two minutes, and needs no folder."""
    return {
        label: Measured(label, np.array([walked(options, seed) for seed in SEEDS])) for label, options in LABELS.items()
    }


def table(results: Results) -> Table:
    """A row a walk."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(SEEDS) - 1}")
    laid.add_column("walk")
    laid.add_column(f"squared error, hops {HOPS // 2} to {HOPS}", justify="right")
    for row in results.values():
        laid.add_row(row.label, cell(row.last, 5))
    return laid


def draw(results: Results, path: Path) -> None:
    """The mean squared error against hops, a line a walk."""
    with picture(path, "hops", "mean squared distance from the optimum", log="y") as axis:
        for number, row in enumerate(results.values()):
            hops = EVERY * np.arange(1.0, row.errors.shape[1] + 1)
            band(axis, number, row.label, hops, row.errors.mean(axis=0, keepdims=True))


def falls(results: Results) -> tuple[str, bool]:
    """Whether the error falls as alpha grows."""
    means = [float(results[f"alpha {alpha:g}"].last.mean()) for alpha in ALPHAS]
    words = ", ".join(f"alpha {alpha:g}: {mean:.5f}" for alpha, mean in zip(ALPHAS, means, strict=True))
    return words, all(later < before for before, later in pairwise(means))


def fifth(results: Results) -> tuple[str, bool]:
    """Whether alpha 5 leaves a fifth of the plain walk's error."""
    share = float(results["alpha 5"].last.mean() / results["alpha 0"].last.mean())
    return f"{share:.3f}", share <= 0.2


PART = Part(
    HERE,
    "walks",
    measure,
    table,
    draw,
    (
        Claim("falls", "the mean squared error falls as alpha goes from 0 to 1, 5 and 20", falls),
        Claim("fifth", "alpha 5 leaves at most a fifth of the plain walk's", fifth),
    ),
)
