"""FedALA's client: its shares by hand on regressions, where it is FedAvg, and what it keeps and costs."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, TRAINING, small_experiment, small_problem

D, LR, SIZES = 4, 0.05, (4, 3, 5)
"""Three numbers of a weight and one of a bias, the last tensor."""
ONE_STEP = {"steps": 1, "batch_size": "full", "lr": LR}
ALL = {"kind": "uniform", "fraction": 1.0}
STARTS = np.cumsum((0, *SIZES))


def regressions() -> Supervised:
    """Three clients of unlike targets, with few examples."""
    generator = np.random.Generator(np.random.PCG64(7))
    x, w = generator.normal(size=(sum(SIZES), 3)), np.repeat(generator.normal(size=(3, 3)) * 2, SIZES, axis=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Linear(3, 1)
    lists = np.split(np.arange(len(x)), STARTS[1:-1])
    return fedsim.supervised(x, (x * w).sum(axis=1) + 1, model=model, clients=lists, dtype=torch.float64, device=DEVICE)


def simulated(problem: Supervised | None = None, rounds: int = 4, **tables: Any) -> Simulation:
    client = {"kind": "fedala", "share": 1.0} | ONE_STEP | tables.pop("client", {})
    client = {name: value for name, value in client.items() if value is not None}
    tables = {"selection": ALL, "evaluation": {"every": 0, "clients": False}} | tables
    return build_simulation(small_experiment(rounds, client=client, **tables), problem or regressions())


def kept(run: Simulation, name: str) -> Tensor:
    """What clients remember under a name, [N, ...]."""
    return run.parts.engine.memories().look(name, torch.arange(run.parts.problem.num_clients, device=DEVICE))[0]


def gradient(problem: Supervised, client: int, y: Tensor, places: Any = None) -> Tensor:
    """Of the mean square at the weight and the bias y [4], on some of a client's examples, by default all."""
    own = np.arange(STARTS[client], STARTS[client + 1])
    own = own if places is None else own[list(places)]
    x = torch.cat((problem.data.x[own], problem.data.x.new_ones(len(own), 1)), dim=1)
    return 2 / len(own) * x.T @ (x @ y - problem.data.y[own].view(-1))


def learnt(problem: Supervised, client: int, theta: Tensor, v: Tensor, w: Tensor, batches: Any, **of: Any) -> Tensor:
    """W after these batches, by the formula as it stands."""
    w, top = w.clone(), slice(4 - {1: 1, 2: 4}[of["tensors"]], 4)
    for places in batches:
        y = v + (theta - v) * w
        w[top] = (w - of["eta"] * gradient(problem, client, y, places) * (theta - v)).clamp(0, 1)[top]
    return w


@pytest.mark.parametrize("tensors", [1, 2])
def test_by_hand(tensors):
    """Round 1 begins at theta, which is v; in round 2 there are 3 passes over all examples, in rounds 3 and 4 one."""
    run = simulated(client={"eta": 0.3, "tensors": tensors, "first_passes": 3})
    problem, theta = run.parts.problem, run.state.params
    v, w = theta.repeat(3, 1), torch.ones(3, D, dtype=torch.float64, device=DEVICE)
    for passes in (0, 3, 1, 1):
        for client in range(3):
            w[client] = learnt(problem, client, theta, v[client], w[client], [None] * passes, tensors=tensors, eta=0.3)
        y = v + (theta - v) * w
        v = torch.stack([own - LR * gradient(problem, client, own) for client, own in enumerate(y)])
        sizes = torch.tensor(SIZES, dtype=torch.float64, device=DEVICE)
        theta = theta + sizes / sizes.sum() @ (v - theta)
        run.step()
        assert torch.allclose(run.state.params, theta, rtol=0, atol=1e-13)
        assert torch.allclose(kept(run, "personal"), v, rtol=0, atol=1e-13)
        assert torch.allclose(1 - kept(run, "own-share"), w, rtol=0, atol=1e-13)
    inner = w[:, 4 - (1 if tensors == 1 else 4) :]
    assert ((inner > 0) & (inner < 1)).any(), "everything is at a bound, so that little is compared"
    assert torch.equal(kept(run, "learnt"), torch.ones(3, dtype=torch.float64, device=DEVICE))


def met(found: Tensor, expected: list[Tensor]) -> int:
    """How many of these it is, to rounding."""
    return sum(torch.allclose(found, one, rtol=0, atol=1e-13) for one in expected)


def test_w_is_learnt_on_a_share_of_the_examples_in_batches_and_a_random_order():
    """Of 4, 3 and 5 examples 3, 2 and 4 by threes quarters; in batches of 2 in some order, and no other fits."""
    run = simulated(client={"eta": 0.3, "share": 0.8, "first_passes": 1, "batch_size": 2, "lr": 0.2}, rounds=2)
    run.step()
    problem, theta, v = run.parts.problem, run.state.params, kept(run, "personal")
    run.step()
    found, ones = 1 - kept(run, "own-share"), torch.ones(D, dtype=torch.float64, device=DEVICE)
    for client, (size, taken) in enumerate(zip(SIZES, (3, 2, 4), strict=True)):
        orders = {
            tuple(frozenset(places[begin : begin + 2]) for begin in range(0, taken, 2))
            for places in permutations(range(size), taken)
        }
        expected = [
            learnt(problem, client, theta, v[client], ones, map(sorted, order), tensors=2, eta=0.3) for order in orders
        ]
        assert met(found[client], expected) == 1


@pytest.mark.parametrize("executor", ["stacked", "loop", "fused"])
def test_where_w_stays_one_it_is_fedavg(executor):
    tables: dict[str, Any] = {"engine": {"executor": executor}, "selection": {"kind": "uniform", "count": 4}}
    own = simulated(small_problem(), client={**TRAINING, "steps": None, "eta": 0.0, "share": 0.8}, **tables)
    learning = simulated(small_problem(), client={**TRAINING, "steps": None, "share": 0.8}, **tables)
    usual = build_simulation(small_experiment(4, client={"kind": "sgd", **TRAINING}, **tables), small_problem())
    for mine, theirs in zip(own, usual, strict=True):
        assert torch.equal(own.params, usual.params)
        same = ("train_loss", "bytes_up", "bytes_down", "test_accuracy")
        assert [mine.get(name) for name in same] == [theirs.get(name) for name in same]
    list(learning)
    assert not torch.allclose(learning.state.params, usual.state.params, atol=1e-6)


def test_as_long_as_it_is_sent_its_own_model_there_is_nothing_to_learn():
    """In the first round, which is FedAvg's to the bit; and always, to rounding, where a client is alone."""
    usual = build_simulation(
        small_experiment(4, client={"kind": "sgd", **ONE_STEP}, selection=ALL, evaluation={"every": 0}), regressions()
    )
    run = simulated()
    run.step()
    usual.step()
    assert torch.equal(run.state.params, usual.state.params)
    assert not kept(run, "own-share").any()
    assert not kept(run, "learnt").any()
    alone = {"clients": [np.arange(10)], "dtype": torch.float64, "device": DEVICE}
    x = np.random.Generator(np.random.PCG64(0)).normal(size=(10, 3))
    ends = []
    for client in ({"kind": "fedala"}, {"kind": "sgd"}):
        problem = fedsim.supervised(x, x.sum(axis=1), model=nn.Linear(3, 1), **alone)
        problem.start_from({"weight": torch.ones(1, 3), "bias": torch.zeros(1)})
        made = small_experiment(
            5, client={**client, **ONE_STEP}, selection=ALL, evaluation={"every": 0, "clients": False}
        )
        ends.append(build_simulation(made, problem))
        list(ends[-1])
    assert torch.allclose(ends[0].state.params, ends[1].state.params, rtol=0, atol=1e-12)


def test_shares_stay_between_the_two_models():
    """With a rate of 1e9 all that differ come to one of the two, and a step of rate 0 stays there."""
    run = simulated(client={"eta": 1e9, "first_passes": 1, "lr": 0.1, "schedule": {"kind": "table", "factors": [1, 0]}})
    run.step()
    theta, v = run.state.params, kept(run, "personal")
    run.step()
    shares, now = kept(run, "own-share"), kept(run, "personal")
    assert set(shares.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(now, torch.where(shares == 1.0, v, theta.expand_as(v)))


def test_lower_layers_and_running_statistics_are_what_is_received():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    run = simulated(small_problem(model=model), client={**TRAINING, "steps": None, "tensors": 3}, rounds=3)
    list(run)
    shares = kept(run, "own-share")
    layout = run.parts.problem.layout
    assert layout.names[2:6] == ("1.weight", "1.bias", "2.weight", "2.bias")
    learnt_ones = dict(zip(layout.names, torch.split(shares, layout.sizes, dim=1), strict=True))
    for name, rows in learnt_ones.items():
        assert bool(rows.any()) == (name in ("1.bias", "2.weight", "2.bias")), name


def test_passes_drop_other_units():
    """In round 2 the draws of 3 passes over the clients' batches, 2 for two and 1 for four; and of 2 epochs' steps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    run = simulated(small_problem(model=model), client={"epochs": 1, "steps": None, "batch_size": 9, "first_passes": 3})
    network, drawn = run.parts.engine.executor.network, []
    gradients = network.gradients

    def noted(y: Any, batch: Any) -> Any:
        drawn.append((batch.draw.within, batch.draw.step))
        return gradients(y, batch)

    run.step()
    network.gradients = noted
    run.step()
    assert len(set(drawn)) == len(drawn) == 3 * 2 + 2


def test_who_does_not_take_part_keeps_all_that_it_has():
    run = simulated(small_problem(), client={**TRAINING, "steps": None}, selection={"kind": "uniform", "count": 2})
    for _ in range(4):
        before = {name: kept(run, name) for name in ("personal", "own-share", "learnt")}
        taken = list(run.parts.engine.trace.participation)
        run.step()
        away = [c for c, count in enumerate(run.parts.engine.trace.participation) if count == taken[c]]
        assert len(away) == 4
        for name, rows in before.items():
            assert torch.equal(kept(run, name)[away], rows[away])


def test_it_is_judged_by_its_own_model(tmp_path):
    data = small_problem()
    problem = fedsim.supervised(
        data.data.x.cpu().numpy(),
        data.data.y.cpu().numpy(),
        clients=np.split(np.arange(37), np.cumsum((7, 3, 12, 1, 5))),
        test=(data.x_test.cpu().numpy(), data.y_test.cpu().numpy()),
        test_clients=np.array_split(np.arange(20), 6),
        model=data.module(data.initial()),
        dtype=torch.float64,
        device=DEVICE,
    )
    made = small_experiment(3, client={"kind": "fedala", **TRAINING}, evaluation={"every": 1})
    result = fedsim.run(made, problem=problem, save=False)
    run = build_simulation(made, problem)
    rows = list(run)
    for client in range(6):
        own = problem.model.layout.flatten(result.model(client).state_dict())
        assert torch.equal(own, kept(run, "personal")[client])
    assert {"personal_accuracy", "client_accuracy", "test_accuracy"} <= rows[-1].keys()


def test_what_it_costs():
    """d up and down; beside the steps one pass over 0.8 of the examples: of 7, 3, 12, 1, 5, 9 by fours 2 1 3 1 1 2."""
    run = simulated(small_problem(), client={**TRAINING, "steps": None, "share": 0.8})
    orders, _ = run.parts.strategy.ask(run.state, torch.arange(6))
    cost = run.parts.engine.executor.assign(orders).cost
    assert cost.steps.tolist() == [4, 2, 6, 2, 4, 6]
    assert cost.effort is not None
    assert cost.effort.tolist() == [2, 1, 3, 1, 1, 2]
    assert cost.bytes_up == orders.nbytes == 83 * 8
    full = simulated(client={"share": 0.5})
    orders, _ = full.parts.strategy.ask(full.state, torch.arange(3))
    effort = full.parts.engine.executor.assign(orders).cost.effort
    assert effort is not None
    assert effort.tolist() == [1, 1, 1]
