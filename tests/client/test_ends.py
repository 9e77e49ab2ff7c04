"""Where a rule of a step sends something else than where its clients are: everybody takes that for where they ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fedsim
from fedsim.client import Need, Optimizer, Remembered, Stack, Step
from fedsim.client.curriculum import MODEL
from fedsim.client.training import KEPT
from fedsim.core.options import options
from fedsim.engine.cohort import PRIVATE
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, blobs, mlp, small_experiment, small_problem

EVERYBODY = torch.arange(6)


@options
class Sevens(Optimizer):
    """Stay, send sevens, and keep the first number of where the client stays."""

    @property
    def needs(self) -> frozenset[Need]:
        """An end, and what is kept."""
        return frozenset({"end", "state"})

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Stay."""

    def end(self, memory: Remembered, rows: Stack) -> Stack:
        """Sevens."""
        return Stack([torch.full_like(leaf, 7.0) for leaf in rows.leaves])

    def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:
        """One number."""
        return {"first": ()}

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:
        """See the class."""
        return {"first": rows.leaves[0].flatten(1)[:, 0]}


def after_a_round(problem: Supervised, kind: str = "sgd", **tables: Any) -> Simulation:
    """All six clients have sent sevens."""
    client = {"kind": kind, **TRAINING, "optimizer": Sevens(), **tables.pop("client", {})}
    experiment = small_experiment(1, client=client, selection={"kind": "uniform", "fraction": 1.0}, **tables)
    simulation = build_simulation(experiment, problem)
    simulation.step()
    return simulation


def remembered(simulation: Simulation, name: str) -> Tensor:
    """What each client keeps."""
    return simulation.parts.engine.memories().look(name, EVERYBODY)[0]


def test_parameters_are_those_that_are_sent_and_running_statistics_have_moved():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    problem = fedsim.supervised(**blobs(), model=model, dtype=torch.float64)
    found = after_a_round(problem)
    trained, statistics = found.params.split([problem.trained, 16])
    assert torch.allclose(trained, torch.full_like(trained, 7.0))
    start = problem.initial()[problem.trained :]
    assert bool((statistics != start).any())
    assert bool((statistics - start).abs().max() < 3.0)
    assert torch.equal(remembered(found, KEPT + "first"), problem.initial()[0].expand(6))


def test_what_stays_with_a_client_is_of_what_is_sent_too():
    problem = fedsim.supervised(**blobs(), model=mlp(), dtype=torch.float64).keeping("head")
    found = after_a_round(problem, evaluation={"clients": False})
    assert torch.allclose(found.params, torch.full_like(found.params, 7.0))
    assert torch.equal(remembered(found, PRIVATE), torch.full((6, 27), 7.0, dtype=torch.float64))


def test_feddyn_remembers_the_change_that_is_sent():
    problem = small_problem()
    found = after_a_round(problem, "feddyn", strategy={"kind": "feddyn", "alpha": 0.5})
    expected = -0.5 * (7.0 - problem.initial())
    assert torch.allclose(remembered(found, "gradient"), expected.expand(6, -1))


def test_a_curriculum_scores_by_the_model_that_is_sent():
    found = after_a_round(small_problem(), client={"curriculum": {"score": "local", "floor": 1}})
    assert torch.equal(remembered(found, MODEL), torch.full((6, 83), 7.0, dtype=torch.float64))
