"""Problems that are solved in milliseconds and have everything that is uneven about real ones.

`small_problem` has six clients of 1 to 12 examples, so that cohorts are ragged, batches partial, and one client takes a
single step an epoch. `small_functions` are functions of four clients that only tell values, with noise. `Quadratics`
have closed forms: of local steps, of fixed points and of the optimum.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.configuration.tables import Experiment
from fedsim.configuration.tables import experiment as checked
from fedsim.nets.stack import Layout
from fedsim.problems.benchmark_functions import BenchmarkFunctions
from fedsim.problems.black_box import BlackBox
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation, setting_of
from fedsim.server.strategy import ProblemView

DEVICE = os.environ.get("FEDSIM_TEST_DEVICE", "cpu")
"""Where the kit computes: `FEDSIM_TEST_DEVICE=cuda pytest` runs it on a GPU."""
TRAINING = {"epochs": 2, "batch_size": 4, "lr": 0.1}
"""How the clients of a small experiment train, unless they are told otherwise."""


def blobs(
    sizes: tuple[int, ...] = (7, 3, 12, 1, 5, 9), shape: tuple[int, ...] = (6,), classes: int = 3
) -> dict[str, Any]:
    """Examples around one centre a class, dealt to clients of these sizes: arguments for `fedsim.supervised`.

    x: [n, *shape], y: class numbers [n]; 20 more are held out.
    """
    generator = np.random.Generator(np.random.PCG64(5))
    total = sum(sizes) + 20
    y = generator.integers(0, classes, total)
    x = generator.normal(size=(classes, *shape))[y] + 0.5 * generator.normal(size=(total, *shape))
    ends = np.cumsum(sizes)
    lists = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    train = slice(0, sum(sizes))
    held = slice(sum(sizes), None)
    return {"x": x[train], "y": y[train], "clients": lists, "test": (x[held], y[held])}


def mlp(inputs: int = 6, classes: int = 3, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A network of 8 hidden units, with the same parameters at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), activation(), nn.Linear(8, classes))


def small_problem(
    dtype: torch.dtype = torch.float64, model: nn.Module | None = None, *, tested: bool = False, **settings: Any
) -> Supervised:
    """The examples of `blobs(**settings)` for a model, by default `mlp()`, whose d is 83; 20 more inputs are public.

    tested: deal the examples that are held out to the clients, who are judged on them.
    """
    data = blobs(**settings)
    public = np.random.Generator(np.random.PCG64(7)).normal(size=(20, *data["x"].shape[1:]))
    if tested:
        data["test_clients"] = np.array_split(np.arange(20), len(data["clients"]))
    own = mlp() if model is None else model
    return supervised(**data, model=own, public=public, dtype=dtype, device=DEVICE)


@dataclass
class Fewer:
    """What a strategy knows of a problem while it has heard of its first clients alone. sizes: theirs, int64 [n]."""

    whole: ProblemView
    sizes: Tensor

    @property
    def num_clients(self) -> int:
        """How many they are."""
        return len(self.sizes)

    @property
    def layout(self) -> Layout:
        """As of the problem."""
        return self.whole.layout

    @property
    def trained(self) -> int | None:
        """As of the problem."""
        return self.whole.trained

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Those of the problem."""
        return self.whole.bounds

    @property
    def cells(self) -> Tensor | None:
        """As of the problem."""
        return self.whole.cells

    def classes(self) -> int:
        """Those of the problem."""
        return self.whole.classes()

    def features(self) -> int:
        """Those of the problem's model."""
        return self.whole.features()

    def initial(self) -> Tensor:
        """The problem's parameters to start from, [d]."""
        return self.whole.initial()


def small_functions(dtype: torch.dtype = torch.float64) -> BlackBox:
    """Four clients' quadratics of six coordinates in the box [0, 1]^6, which answer with noise and know no gradient."""
    engine = {"device": DEVICE, "precision": str(dtype).removeprefix("torch.")}
    return BenchmarkFunctions(dimension=6, clients=4, noise=0.01).build(setting_of(small_experiment(engine=engine)))


def small_experiment(rounds: int = 3, **tables: Any) -> Experiment:
    """An experiment for `small_problem`: two epochs of batches of 4, four of the six clients in a round.

    tables: as of `fedsim.experiment`, in place of these.
    """
    defaults: dict[str, Any] = {
        "name": "small",
        "selection": {"kind": "uniform", "count": 4},
        "client": {"kind": "sgd", **TRAINING},
        "evaluation": {"every": 0},
    }
    return checked(rounds=rounds, **(defaults | tables))


@dataclass(frozen=True)
class Quadratics:
    """f_i(w) = mean_j (x_ij . w - y_ij)^2 over client i's examples; its gradient is H_i w - b_i.

    H_i = 2/n X^T X and b_i = 2/n X^T y. x: [n, d]. y: [n]. clients: the indices of each one's examples. Every client
    has the same weight, so that uniform means are p-weighted ones.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    clients: Sequence[NDArray[np.int64]]

    def terms(self, client: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """H_i [d, d] and b_i [d]."""
        x, y = self.x[self.clients[client]], self.y[self.clients[client]]
        return 2 / len(y) * x.T @ x, 2 / len(y) * x.T @ y

    def optimum(self) -> NDArray[np.float64]:
        """Where the mean of the gradients is zero, [d]."""
        terms = [self.terms(client) for client in range(len(self.clients))]
        curvature, slope = np.sum([h for h, _ in terms], axis=0), np.sum([b for _, b in terms], axis=0)
        return np.asarray(np.linalg.solve(curvature, slope))

    def local(
        self, client: int, steps: int, lr: float, mu: float = 0.0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A [d, d], c [d] with w -> A w + c after `steps` gradient steps on f_i + mu/2 |w - start|^2 from w."""
        h, b = self.terms(client)
        one = np.eye(len(b))
        moved, fixed = one.copy(), np.zeros(len(b))
        for _ in range(steps):
            fixed = fixed - lr * (h @ fixed - b + mu * fixed)
            moved = moved - lr * (h @ moved + mu * (moved - one))
        return moved, fixed

    def run(
        self, rounds: int, strategy: dict[str, Any], client: dict[str, Any], count: int | None = None
    ) -> NDArray[np.float64]:
        """The final parameters [d] of a simulation from 0 in double precision; count: clients in a round, or all.

        strategy, client: tables of an experiment.
        """
        model = nn.Linear(self.x.shape[1], 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        problem = supervised(self.x, self.y, model=model, clients=self.clients, dtype=torch.float64, device=DEVICE)
        experiment = checked(
            rounds=rounds,
            strategy=strategy,
            client=client,
            selection={"kind": "uniform", "count": count or len(self.clients)},
            evaluation={"every": 0},
        )
        simulation = build_simulation(experiment, problem)
        for _ in simulation:
            pass
        return np.asarray(simulation.state.params.cpu().numpy())


def small_quadratics() -> Quadratics:
    """Six clients of five examples each in three dimensions, with curvatures and optima of their own."""
    generator = np.random.Generator(np.random.PCG64(11))
    x = generator.normal(size=(30, 3)) * np.repeat(generator.uniform(0.5, 1.5, size=(6, 3)), 5, axis=0)
    targets = np.repeat(generator.normal(size=(6, 3)) * 2, 5, axis=0)
    y = (x * targets).sum(axis=1) + 0.1 * generator.normal(size=30)
    return Quadratics(x, y, [np.arange(5 * client, 5 * client + 5) for client in range(6)])
