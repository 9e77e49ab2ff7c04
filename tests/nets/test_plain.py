"""All steps in one loop of PyTorch's operations, held to the same steps as one call of the network each, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedsim.exchange.messages import Order
from fedsim.nets import plain
from fedsim.parallel import cores
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, small_experiment, small_problem
from fedsim.testing.rounds import engine_of


def images() -> Supervised:
    """Convolutions, which lie with their channels innermost, one of them with steps; and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.25), nn.Conv2d(4, 8, 1, stride=2)),
            *(nn.GroupNorm(2, 8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 3)),
        )
    return small_problem(torch.float32, model, shape=(3, 6, 6))


def made(client: dict[str, Any], at_once: bool = True, memory: int | None = None, **tables: Any) -> Simulation:
    """Two rounds of four of six clients, one of which has a single example.

    memory: of how many clients there is room for.
    """
    tables = {"client": {"kind": "sgd", **TRAINING, **client}} | tables
    engine = {"executor": "loop", "precision": "float32"}
    simulation = build_simulation(small_experiment(rounds=2, engine=engine, **tables), images())
    executor = engine_of(simulation).executor
    assert executor._in_any_order
    if memory is not None:
        executor.memory = memory * executor._row_bytes
    if not at_once:
        assert executor.network is not None
        executor.network.loop, executor._in_any_order = None, False
    return simulation


def ends(client: dict[str, Any], at_once: bool = True, memory: int | None = None, **tables: Any) -> torch.Tensor:
    """Where the server's model is after these rounds."""
    simulation = made(client, at_once, memory, **tables)
    for _ in simulation:
        pass
    return simulation.state.params


def told(client: dict[str, Any], at_once: bool) -> dict[str, torch.Tensor]:
    """What all clients tell of their training from the first model, with the loss of the last epoch."""
    simulation = made(client, at_once)
    payload = {"params": simulation.state.params}
    executor = engine_of(simulation).executor
    result = executor.execute(executor.assign(Order("train", torch.arange(6), payload, {"report-loss": True})))
    return {**result.payload, **result.metrics}


@pytest.mark.parametrize(
    "client",
    [
        {},
        {"weight_decay": 0.1, "inverse_decay": 0.5},
        {"optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True}, "clip_norm": 0.3},
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
        {"optimizer": "lion", "lr": 0.01, "weight_decay": 0.1},
        {"epochs": None, "steps": 3, "batch_size": 1},
    ],
    ids=str,
)
def test_the_bits_are_those_of_single_steps(client):
    assert torch.equal(ends(client), ends(client, at_once=False))


@pytest.mark.parametrize(
    "client",
    [
        {"epochs": 3},
        {"epochs": None, "steps": 3},
        {"curriculum": {"floor": 2, "pacing": {"kind": "linear", "b": 0.3}}},
        {"curriculum": {"floor": 1, "score": "both", "budget": "published"}},
    ],
    ids=str,
)
def test_changes_and_losses_of_each_epoch_and_each_curriculum_are_those_of_single_steps(client):
    expected, found = told(client, at_once=False), told(client, at_once=True)
    assert set(found) == set(expected) >= {"delta", "last-loss", "loss"}
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["scaffold", "feddyn"])
def test_corrections_are_those_of_single_steps(kind):
    client, strategy = {"kind": kind}, {"kind": kind}
    assert torch.equal(ends(client, strategy=strategy), ends(client, at_once=False, strategy=strategy))


def test_company_and_cores_change_no_bit(monkeypatch):
    expected = ends({})
    assert torch.equal(ends({}, memory=1), expected)
    assert torch.equal(ends({}, memory=3), expected)
    monkeypatch.setattr(plain, "WORTH_A_THREAD", 0)
    with cores.at_most(2):
        assert torch.equal(ends({}), expected)


def test_a_client_that_diverges_is_lost_alone():
    problem = images()
    simulation = build_simulation(
        small_experiment(rounds=1, engine={"executor": "loop", "precision": "float32"}), problem
    )
    problem.data.x[problem.data.order[: int(problem.sizes[0])]] = torch.inf
    executor = engine_of(simulation).executor
    order = Order("train", torch.arange(6), {"params": problem.initial()})
    result = executor.execute(executor.assign(order))
    assert result.finite.tolist() == [False] + [True] * 5
