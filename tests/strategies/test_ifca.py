"""IFCA: by hand on regressions, as FedAvg with one model, where models begin, and groups that are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.result import Result
from fedsim.running.simulation import Simulation
from fedsim.server import Replies, ServerState
from fedsim.testing.problems import DEVICE, TRAINING, blobs, small_experiment, small_problem
from strategies.ifca import IFCA

D, EXAMPLES, LR = 3, (4, 6, 5, 3, 7, 5), 0.1
ONE_STEP = {"steps": 1, "batch_size": "full", "lr": LR}
ALL = {"kind": "uniform", "fraction": 1.0}


def regressions() -> Supervised:
    """Of w for the first three clients and of -w for the others, with noise; the weight begins at zero."""
    generator = np.random.Generator(np.random.PCG64(3))
    x, ends = generator.normal(size=(sum(EXAMPLES), D)), np.cumsum(EXAMPLES)
    w = np.repeat(generator.normal(size=(1, D)), len(x), axis=0) * np.repeat((1, 1, 1, -1, -1, -1), EXAMPLES)[:, None]
    y = (x * w).sum(axis=1) + 0.1 * generator.normal(size=len(x))
    model = nn.Linear(D, 1, bias=False)
    nn.init.zeros_(model.weight)
    lists = np.split(np.arange(len(x)), ends[:-1])
    return fedsim.supervised(x, y, model=model, clients=lists, dtype=torch.float64, device=DEVICE)


def loss_and_gradient(problem: Supervised, client: int, w: Tensor) -> tuple[Tensor, Tensor]:
    begin = sum(EXAMPLES[:client])
    own = slice(begin, begin + EXAMPLES[client])
    x, y = problem.data.x[own], problem.data.y[own].view(-1)
    away = x @ w - y
    return away.square().mean(), 2 / len(y) * x.T @ away


def simulated(problem: Supervised | None = None, rounds: int = 3, **tables: Any) -> Simulation:
    client = {"kind": "ifca"} | (tables.pop("client", None) or ONE_STEP)
    strategy = {"kind": "ifca", "spread": 0.5} | tables.pop("strategy", {})
    tables = {"selection": ALL, "evaluation": {"every": 0, "clients": False}} | tables
    made = small_experiment(rounds, strategy=strategy, client=client, **tables)
    return build_simulation(made, regressions() if problem is None else problem)


def models(state: ServerState) -> Tensor:
    """All of them, [k, d]."""
    return torch.cat((state.params.unsqueeze(0), state.memory["others"]))


def holding(state: ServerState, rows: Tensor) -> ServerState:
    """The state with other models [k, d]."""
    return replace(state, params=rows[0], memory={**state.memory, "others": rows[1:]})


def exchanged(run: Simulation, state: ServerState, clients: Sequence[int] = range(6)) -> Replies:
    engine = run.parts.engine
    orders, window = run.parts.strategy.ask(state, torch.tensor(list(clients)))
    engine.submit(orders)
    replies = engine.collect(window, state.round)
    assert replies is not None
    return replies


def chosen(replies: Replies) -> list[int]:
    return replies.payload["cluster"][:, 0].tolist()


BEGIN = torch.tensor([[0.5, -1.0, 0.3], [-0.4, 0.8, -0.2], [9.0, 9.0, 9.0]], dtype=torch.float64, device=DEVICE)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("averaging", ["model", "gradient"])
def test_each_model_moves_by_the_changes_of_those_whom_it_costs_least(averaging, weighting):
    run = simulated(strategy={"clusters": 3, "averaging": averaging, "weighting": weighting, "server_lr": 0.5})
    problem, state = run.parts.problem, holding(run.state, BEGIN)
    replies = exchanged(run, state)
    following, metrics, done = run.parts.strategy.tell(state, replies)
    costs = torch.stack([torch.stack([loss_and_gradient(problem, c, w)[0] for w in BEGIN]) for c in range(6)])
    best = costs.argmin(dim=1).tolist()
    assert chosen(replies) == best
    assert set(best) == {0, 1}, "one model is to be left, and one is not"
    share = torch.tensor(EXAMPLES if weighting == "examples" else [1] * 6, dtype=torch.float64, device=DEVICE)
    for number, model in enumerate(BEGIN):
        own = [client for client in range(6) if best[client] == number]
        way = torch.zeros_like(model)
        for client in own:
            way -= LR * loss_and_gradient(problem, client, model)[1] * share[client]
        way /= share[own].sum() if averaging == "model" and own else share.sum()
        assert torch.allclose(models(following)[number], model + 0.5 * way, rtol=0, atol=1e-14)
    assert torch.equal(models(following)[2], BEGIN[2])
    assert done
    assert (metrics["clusters_used"], metrics["cluster_0"], metrics["cluster_1"]) == (2, best.count(0), best.count(1))
    assert metrics["cluster_2"] == 0


def test_whom_nobody_chooses_keeps_its_momenta_and_others_have_their_own():
    """Momentum 0.9: the first model moves by m <- 0.9 m + Delta over its own rounds, two of the three."""
    run = simulated(strategy={"server_optimizer": {"kind": "sgd", "momentum": 0.9}})
    strategy, state = run.parts.strategy, holding(run.state, BEGIN[:2])
    ways: dict[int, list[Tensor]] = {0: [], 1: []}
    of = {number: [c for c, best in enumerate(chosen(exchanged(run, state))) if best == number] for number in (0, 1)}
    for clients in (of[0], of[1], of[0]):
        replies = exchanged(run, state, clients)
        (number,) = set(chosen(replies))
        ways[number].append(replies.payload["delta"].mean(dim=0))
        before, (state, _, _) = models(state), strategy.tell(state, replies)
        assert torch.equal(models(state)[1 - number], before[1 - number])
    first, second = ways[0]
    moved = BEGIN[:2].clone()
    moved[0] += first + (0.9 * first + second)
    moved[1] += ways[1][0]
    assert torch.allclose(models(state), moved, rtol=0, atol=1e-14)


def test_of_equal_models_the_first_is_chosen_and_of_diverged_ones_none():
    run = simulated()
    assert chosen(exchanged(run, holding(run.state, BEGIN[:1].repeat(2, 1)))) == [0] * 6
    for value in (1e200, float("nan")):
        diverged = torch.full((1, D), value, dtype=torch.float64, device=DEVICE)
        assert chosen(exchanged(run, holding(run.state, torch.cat((diverged, BEGIN[:1]))))) == [1] * 6


def test_a_number_that_names_no_model_is_of_no_use():
    run = simulated()
    state = holding(run.state, BEGIN[:2])
    replies = exchanged(run, state)
    odd = replies.payload["cluster"].clone()
    odd[2] = 200
    spoiled = replace(replies, payload={**replies.payload, "cluster": odd})
    kept = torch.arange(6) != 2
    found, without = (run.parts.strategy.tell(state, said)[0] for said in (spoiled, replies.where(kept)))
    assert torch.equal(models(found), models(without))


def test_other_orders_of_the_models_order_the_result():
    ends, numbers = {}, {}
    for order in ((0, 1, 2), (2, 0, 1)):
        run = simulated(strategy={"clusters": 3}, client={"epochs": 2, "batch_size": 2, "lr": LR})
        state = holding(run.state, BEGIN[list(order)])
        for _ in range(3):
            replies = exchanged(run, state)
            state, _, _ = run.parts.strategy.tell(state, replies)
        ends[order], numbers[order] = models(state), [order[number] for number in chosen(replies)]
    assert numbers[2, 0, 1] == numbers[0, 1, 2]
    assert torch.equal(ends[2, 0, 1], ends[0, 1, 2][[2, 0, 1]])
    assert not torch.equal(ends[0, 1, 2][:2], BEGIN[:2])


@pytest.mark.parametrize("executor", ["stacked", "loop", "fused"])
@pytest.mark.parametrize(
    "server", [{}, {"server_optimizer": "adam", "server_lr": 0.1}, {"weighting": "examples", "report_norms": True}]
)
def test_with_one_model_it_is_fedavg(executor, server):
    tables: dict[str, Any] = {"engine": {"executor": executor}, "selection": {"kind": "uniform", "count": 4}}
    own = simulated(small_problem(), strategy={"clusters": 1} | server, client=TRAINING, **tables)
    tables |= {"strategy": {"kind": "fedavg", "weighting": "uniform"} | server, "evaluation": {"every": 0}}
    usual = build_simulation(small_experiment(3, client={"kind": "sgd", **TRAINING}, **tables), small_problem())
    for mine, theirs in zip(own, usual, strict=True):
        assert torch.equal(own.params, usual.params)
        assert mine["bytes_up"] == theirs["bytes_up"] + 4  # a byte of each
        same = ("train_loss", "bytes_down", "change_norm", "change_norm_l1", "test_accuracy")
        assert [mine.get(name) for name in same] == [theirs.get(name) for name in same]
        assert mine["cluster_0"] == 4
    assert (own.params - usual.parts.problem.initial()).norm() > 0.1


def test_models_begin_with_the_entries_of_each_parameter_in_another_order():
    run = simulated(small_problem(), strategy={"clusters": 4, "spread": 0.0}, client=TRAINING)
    first, *others = models(run.state)
    assert torch.equal(first, run.parts.problem.initial())
    for one in others:
        assert not torch.equal(one, first)
        for mine, same in zip(*(torch.split(rows, [48, 8, 24, 3]) for rows in (one, first)), strict=True):
            assert torch.equal(mine.sort().values, same.sort().values)
            assert len(mine) == 3 or not torch.equal(mine, same)
    assert len({tuple(one.tolist()) for one in others}) == 3
    again = simulated(small_problem(), strategy={"clusters": 2, "spread": 0.0}, client=TRAINING, seed=1)
    assert not torch.equal(models(again.state)[1], others[0])


def test_parameters_of_a_size_have_orders_of_their_own():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    run = simulated(small_problem(model=model, classes=6), strategy={"spread": 0.0}, client=TRAINING)
    orders = [rows.argsort(dim=1).argsort(dim=1) for rows in torch.split(models(run.state), [36, 36], dim=1)]
    places = [first.argsort()[other] for first, other in orders]
    assert not torch.equal(*places)


def test_or_with_noise_in_the_measure_of_each_parameter():
    """Of 4000 and 20 numbers of mean square 4 and 0: deviations 0.5 x 2 and 0.5, to a few percent, and a sixth."""
    model = nn.Sequential(nn.Linear(200, 20), nn.BatchNorm1d(20, affine=False), nn.Linear(20, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(20, 200, generator=torch.Generator().manual_seed(0)).sign() * 2)
        model[0].bias.zero_()
    problem = fedsim.supervised(
        np.ones((4, 200)), np.ones(4), model=model, clients=[[0, 1], [2, 3]], dtype=torch.float64, device=DEVICE
    )
    made = IFCA(clusters=3, spread=0.5)
    begun = made.init(problem)
    state = made.seeded(begun, Streams(0))
    away = state.memory["others"] - state.params
    for part, deviation in zip(torch.split(away, [4000, 20, 20, 1, 40], dim=1)[:2], (1.0, 0.5), strict=True):
        assert float(part.std()) == pytest.approx(deviation, rel=5 / np.sqrt(part.numel()))
        assert not torch.isclose(part[0], part[1]).any()
    assert not away[:, -40:].any(), "running statistics are no draw"
    assert torch.equal(begun.memory["others"][0], problem.initial()), "init draws nothing"


def test_models_that_begin_alike_are_refused():
    with pytest.raises(InputError, match=r"^strategy\.spread = 0\.0: two models begin alike.* give a spread"):
        simulated(strategy={"spread": 0.0})
    assert simulated(strategy={"spread": 0.0, "clusters": 1})


def dropping() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_models_are_chosen_by_all_training_examples_without_dropout(executor):
    """In evaluation mode, also for judging, where a client's tests, which are of other labels, have no say."""
    data = blobs(sizes=(70, 30, 33, 40), shape=(6,))
    data["y"][:100] = (data["y"][:100] + 1) % 3  # of the first two clients
    tests = np.split(np.arange(20), 4)
    data["test"][1][:10] = (data["test"][1][:10] + 2) % 3
    problem = fedsim.supervised(**data, test_clients=tests, model=dropping(), dtype=torch.float64, device=DEVICE)
    client = {"kind": "ifca", "epochs": 3, "batch_size": 8, "lr": 0.2}
    made = small_experiment(
        6, strategy={"kind": "ifca", "clusters": 3}, client=client, selection=ALL, engine={"executor": executor}
    )
    result = fedsim.run(made, problem=problem, save=False)
    run = build_simulation(made, problem)
    for _ in run:
        pass
    x, y = torch.from_numpy(data["x"]).to(DEVICE), torch.from_numpy(data["y"]).to(DEVICE)
    best = []
    for own in np.split(np.arange(173), [70, 100, 133]):
        costs = [nn.functional.cross_entropy(problem.module(one)(x[own]), y[own]) for one in models(run.state)]
        best.append(int(torch.stack(costs).argmin()))
    assert len(set(best)) > 1
    assert chosen(exchanged(run, run.state, range(4))) == best
    assert result.own is not None
    told = result.own.client_measures()
    assert told["cluster"].tolist() == best
    assert "accuracy" not in told, "there is no model for all"
    x, y = (torch.from_numpy(part).to(DEVICE) for part in data["test"])
    for client, own in enumerate(tests):
        right = problem.module(models(run.state)[best[client]])(x[own]).argmax(dim=1) == y[own]
        assert float(told["personal_accuracy"][client]) == float(right.double().mean())
    assert torch.equal(problem.model.layout.flatten(result.model(2).state_dict()), models(run.state)[best[2]])


def test_what_it_costs():
    """Three models down, a change and a byte up; and beside the steps a forward pass, 1/3, of all examples for each."""
    run = simulated(strategy={"clusters": 3}, client={"epochs": 2, "batch_size": 2, "lr": LR})
    orders, _ = run.parts.strategy.ask(run.state, torch.arange(6))
    assert orders.nbytes == 3 * D * 8
    cost = run.parts.engine.executor.assign(orders).cost
    batches = torch.tensor([2, 3, 3, 2, 4, 3])
    assert cost.steps.tolist() == (2 * batches).tolist()
    assert cost.effort is not None
    assert torch.allclose(cost.effort.cpu(), batches.double())
    assert cost.bytes_up == 8 * D + 1
    full = simulated(strategy={"clusters": 3}).parts.engine.executor.assign(orders).cost
    assert full.effort is not None
    assert torch.allclose(full.effort, torch.ones_like(full.effort))


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"aggregation": "median"}, r"aggregation\.kind = median: ifca combines parts"),
        (
            {"strategy": {"averaging": "gradient"}, "client": {"steps": 5, "batch_size": "full"}},
            r"client\.steps = 5: .*",
        ),
        ({"strategy": {"averaging": "gradient"}, "client": {"steps": 1}}, r"client\.steps = 1: .*one step each"),
        ({"selection": {"kind": "oort", "count": 2}}, r"selection\.kind = oort"),
        ({"evaluation": {"every": 0}}, r"partition\.holdout"),
    ],
)
def test_what_does_not_go_with_several_models_is_a_line(tables, said):
    with pytest.raises(InputError, match=said):
        simulated(**tables)


@pytest.mark.parametrize("client", [{"steps": 1}, {"epochs": 1}])
def test_what_goes(client):
    full = {"batch_size": "full", **client}
    assert simulated(strategy={"averaging": "gradient"}, client=full).step()
    assert simulated(strategy={"clusters": 1}, aggregation="median").step()


@pytest.mark.parametrize(
    ("strategy", "client", "said"), [("ifca", "sgd", "client.kind"), ("fedbuff", "ifca", "other-models")]
)
def test_strategy_and_client_need_each_other(strategy, client, said):
    with pytest.raises(InputError, match=said):
        small_experiment(1, strategy=strategy, client={"kind": client, **TRAINING})


def shifted(seed: int, clusters: int, rounds: int) -> Result:
    """Twenty clients of 60 digits, of which every other one has labels that are 5 further."""
    experiment = fedsim.experiment(
        seed=seed,
        rounds=rounds,
        problem={"dataset": "shifted_digits", "model": {"kind": "mlp", "hidden": [64]}},
        partition={"kind": "natural"},
        strategy={"kind": "ifca", "clusters": clusters},
        client={"kind": "ifca", "steps": 5, "batch_size": "full", "lr": 0.5},
        selection=ALL,
        evaluation={"every": 0},
    )
    result = fedsim.run(experiment, save=False)
    assert result.problem.sizes.tolist() == [60] * 20
    return result


def groups(result: Result) -> tuple[set[int], set[int]]:
    """The models of even clients, and those of odd ones."""
    assert result.own is not None
    found = result.own.owned.told(torch.arange(20))["cluster"].tolist()
    return set(found[::2]), set(found[1::2])


def test_two_groups_are_found():
    result = shifted(seed=0, clusters=2, rounds=8)
    even, odd = groups(result)
    assert len(even) == len(odd) == len(even | odd) - 1 == 1
    assert result.history.last("personal_accuracy") > 0.85
    assert (result.history.last("cluster_0"), result.history.last("cluster_1")) == (10, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "least", "most"), [(1, 0.44, 0.49), (2, 0.94, 0.97), (4, 0.92, 0.97)])
def test_two_groups_are_found_in_six_of_six_runs(clusters, least, most):
    """One model for all is right on half of them; of four models each has clients of one group alone."""
    for seed in range(6):
        result = shifted(seed, clusters, rounds=30)
        even, odd = groups(result)
        assert least <= result.history.last("personal_accuracy") <= most
        if clusters > 1:
            assert not even & odd
            assert 2 <= len(even | odd) == result.history.last("clusters_used") <= clusters
