"""Running statistics of batch normalisation in whole rounds: whose they are, how they are averaged, where they end."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
from clients.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.core.streams import Streams
from fedsim.engine.executor import Executor
from fedsim.exchange.messages import Order
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.models import initialise
from fedsim.problems.models.convolutional import ResNet
from fedsim.problems.models.dense import MLP
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.result import Round
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import DEVICE, blobs, small_experiment

pytestmark = pytest.mark.usefixtures("unpainted")

SAME = {"rtol": 0.0, "atol": 1e-12}
D, FEATURES = 6 * 2 + 7 * 8 + 8 * 2 + 9 * 3, 6 + 8
"""Trained numbers of the model, and channels that it normalises."""
EVERYBODY = {"kind": "uniform", "fraction": 1.0}


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        hidden = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), *hidden, nn.Linear(8, 3))


def normalised(statistics: Any = None, dtype: torch.dtype = torch.float64, **settings: Any) -> Supervised:
    """The small problem, for a model that normalises its input and its hidden layer."""
    return fedsim.supervised(**blobs(**settings), model=model(), statistics=statistics, dtype=dtype, device=DEVICE)


def after(rounds: int, problem: Supervised, **tables: Any) -> ServerState:
    """The server's state after so many rounds."""
    tables = {"selection": EVERYBODY, "evaluation": {"every": 0}} | tables
    simulation = build_simulation(small_experiment(rounds, **tables), problem)
    for _ in range(rounds):
        simulation.step()
    return simulation.state


def test_a_client_alone_trains_as_the_module_does_bit_for_bit():
    data = blobs(sizes=(23,))
    problem = normalised(dtype=torch.float32, sizes=(23,))
    executor = Executor(problem, Sgd(epochs=2, batch_size=5, lr=0.1), Streams(7), choice="loop")
    orders = Order("train", torch.arange(1), {"params": problem.initial()})
    found = executor.execute(executor.assign(orders)).payload["delta"][0].cpu()
    module, inputs = model(), torch.tensor(data["x"], dtype=torch.float32)
    start = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    keys = Streams(7).bits("batches", torch.tensor([0]), 2 * 23, turn=0)[0]
    for epoch in range(2):
        for rows in torch.argsort(keys[epoch * 23 : (epoch + 1) * 23], stable=True).split(5):
            optimizer.zero_grad()
            with one_core_an_operation():
                losses = problem.model.loss.examples(module(inputs[rows]), torch.tensor(data["y"])[rows])
                losses.backward(torch.full_like(losses, 1 / len(rows)))
            optimizer.step()
    change = problem.model.layout.named(found)
    assert set(change) == set(start) - {"1.num_batches_tracked", "3.num_batches_tracked"}
    for name, own in change.items():
        assert torch.equal(own, module.state_dict()[name] - start[name]), name


@pytest.mark.parametrize("statistics", ["averaged", "pooled"])
def test_a_loop_and_a_stack_of_any_size_come_to_the_same(statistics):
    loop, stacked, chunks = (
        after(3, normalised(statistics), engine=engine).params
        for engine in (
            {"executor": "loop"},
            {"executor": "stacked", "cores": 1},
            {"executor": "stacked", "memory_mib": 1, "cores": 2},
        )
    )
    assert (stacked - normalised(statistics).initial())[D:].abs().min() > 1e-3, "no statistic has moved"
    torch.testing.assert_close(loop, stacked, **SAME)
    assert torch.equal(chunks, stacked)


def test_a_population_in_another_order_comes_to_the_same():
    """A client's batches are drawn by its number, so all of its examples are in one."""
    data, back = blobs(), [5, 3, 4, 0, 2, 1]
    client = {"kind": "sgd", "steps": 3, "batch_size": "full", "lr": 0.1}
    whole = after(2, normalised(), client=client).params
    data["clients"] = [data["clients"][own] for own in back]
    turned = fedsim.supervised(**data, model=model(), dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(after(2, turned, client=client).params, whole, **SAME)


def test_statistics_are_averaged_with_the_weights_of_the_changes():
    """By hand, of one step on all examples of each client; its single example leaves client 3 what it was sent."""
    problem, data = normalised(), blobs()
    found = problem.model.layout.named(
        after(1, problem, client={"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 0.1}).params
    )
    inputs, sizes = torch.tensor(data["x"]), torch.tensor([len(own) for own in data["clients"]], dtype=torch.float64)
    means, variances = [], []
    for own in data["clients"]:
        x = inputs[own]
        alone = len(own) == 1
        means.append(torch.zeros(6, dtype=torch.float64) if alone else 0.1 * x.mean(dim=0))
        variances.append(torch.ones(6, dtype=torch.float64) if alone else 0.9 + 0.1 * x.var(dim=0))
    shares = (sizes / sizes.sum()).unsqueeze(1)
    torch.testing.assert_close(found["1.running_mean"].cpu(), (shares * torch.stack(means)).sum(dim=0), **SAME)
    torch.testing.assert_close(found["1.running_var"].cpu(), (shares * torch.stack(variances)).sum(dim=0), **SAME)
    pooled = normalised("pooled")
    vector = after(1, pooled, client={"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 0.1}).params
    told = pooled.tensors(vector)
    mean = (shares * torch.stack(means)).sum(dim=0)
    total = (shares * (torch.stack(variances) + torch.stack(means).square())).sum(dim=0) - mean.square()
    torch.testing.assert_close(told["1.running_mean"].cpu(), mean, **SAME)
    torch.testing.assert_close(told["1.running_var"].cpu(), total, **SAME)


@pytest.mark.parametrize(
    "tables",
    [
        {"strategy": {"kind": "fedavg", "weighting": "uniform", "server_lr": 0.3, "server_optimizer": "adam"}},
        {"strategy": {"kind": "fedavg", "weighting": "uniform", "server_optimizer": {"kind": "sgd", "momentum": 0.9}}},
        {
            "strategy": {
                "kind": "fedavg",
                "weighting": "uniform",
                "server_lr": 0.3,
                "server_optimizer": "lion",
                "server_weight_decay": 0.5,
            }
        },
        {"strategy": {"kind": "fednova", "weighting": "uniform"}},
        {"strategy": {"kind": "feddyn", "alpha": 0.1}, "client": {"kind": "feddyn"}},
        {"strategy": {"kind": "scaffold"}, "client": {"kind": "scaffold"}},
        {"strategy": {"kind": "fedprox", "weighting": "uniform", "proximal_mu": 2.0}},
        {"client": {"weight_decay": 3.0}},
        {"client": {"clip_norm": 0.1, "optimizer": {"kind": "sgd", "momentum": 0.5}}},
        {"client": {"optimizer": "adam"}},
        {
            "strategy": {"kind": "fedprox", "weighting": "uniform"},
            "client": {"optimizer": {"kind": "sgd", "momentum": 0.5}, "weight_decay": 0.1},
        },
        {"client": {"optimizer": "lion", "weight_decay": 2.0}},
    ],
    ids=lambda tables: "-".join(str(value) for table in tables.values() for value in table.values()),
)
@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_what_moves_parameters_leaves_statistics_to_the_plain_mean(tables, executor):
    """What a step normalises its input by does not depend on parameters: these statistics are FedAvg's."""
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1}
    engine, plain = {"executor": executor}, {"kind": "fedavg", "weighting": "uniform"}
    given = {"strategy": tables.get("strategy", plain), "client": client | tables.get("client", {})}
    layout = normalised().model.layout
    expected = after(2, normalised(), strategy=plain, client=client, engine=engine)
    found = after(2, normalised(), **given, engine=engine)
    assert (found.params - expected.params)[:D].abs().max() > 1e-3
    for name, own in layout.named(expected.params).items():
        if name.startswith("1.running"):
            torch.testing.assert_close(layout.named(found.params)[name], own, **SAME)
    for name, vector in found.memory.items():
        assert not vector.dim() or bool((vector[D:] == 0).all()), name


def test_statistics_cross_the_network_and_frozen_ones_do_not():
    for statistics, numbers in (("averaged", D + 2 * FEATURES), ("pooled", D + 2 * FEATURES), ("frozen", D)):
        problem = normalised(statistics, dtype=torch.float32)
        assert problem.dimension == numbers
        result = fedsim.run(small_experiment(1, selection=EVERYBODY), problem=problem, save=False)
        assert result.history["bytes_up"][-1] == result.history["bytes_down"][-1] == 6 * 4 * numbers
        assert set(problem.tensors(result.params)) == set(model().state_dict()) - {
            "1.num_batches_tracked",
            "3.num_batches_tracked",
        }


def test_frozen_statistics_stay_those_of_the_start():
    start = {name: own.double() for name, own in model().state_dict().items()}
    start |= {"1.running_mean": torch.arange(6.0), "1.running_var": torch.arange(6.0) + 2}
    problem = normalised("frozen")
    problem.start_from(start)
    told = problem.tensors(after(1, problem).params)
    assert torch.equal(told["1.running_mean"].cpu(), torch.arange(6.0, dtype=torch.float64))
    assert not torch.equal(told["1.weight"].cpu(), start["1.weight"])
    del start["1.running_var"]
    with pytest.raises(InputError, match=r"^problem\.start = '?1\.running_var"):
        problem.start_from(start)


@pytest.mark.parametrize("statistics", ["averaged", "pooled"])
def test_a_saved_model_is_one_of_pytorchs_layers_and_can_be_started_from(statistics):
    problem = normalised(statistics)
    vector = after(2, problem).params
    told = problem.tensors(vector)
    theirs = model().double()
    theirs.load_state_dict(dict(told))
    theirs.eval()
    x, y = blobs()["test"]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
        torch.testing.assert_close(
            problem.module(vector)(torch.tensor(x, device=DEVICE)).cpu(), theirs(torch.tensor(x))
        )
    assert problem.evaluate(vector, clients=False)["test_loss"] == pytest.approx(float(loss), abs=1e-9)
    again = normalised(statistics)
    again.start_from(told)
    torch.testing.assert_close(again.initial(), vector, **SAME)


def test_a_servers_state_says_what_is_trained_when_it_is_read_again():
    state = after(1, normalised())
    assert state.trained == D
    found = decode(encode(state))
    assert (found.trained, found.params.tolist()) == (D, state.params.tolist())
    assert after(1, normalised("frozen")).trained is None


def test_a_run_of_statistics_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    tables: dict[str, Any] = {"checkpoint": {"every": 1}, "strategy": {"kind": "fedavg", "server_optimizer": "adam"}}
    tables["problem"] = {"dataset": "digits", "model": {"kind": "mlp", "hidden": [4], "norm": "batch"}}
    tables |= {"partition": {"kind": "iid", "clients": 6}, "client": {"kind": "sgd", "steps": 2}}
    whole = fedsim.run(small_experiment(3, **tables), save=False)

    def interrupt(told: Round) -> None:
        if told.row["round"] == 2:
            raise KeyboardInterrupt

    fedsim.run(small_experiment(3, **tables), out=tmp_path / "cut", callbacks=[interrupt])
    assert torch.equal(fedsim.resume(tmp_path / "cut").params, whole.params)
    assert (whole.params - whole.problem.initial())[-8:].abs().min() > 0


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"client": {"kind": "fedzo"}, "strategy": {"kind": "fedzo"}}, r"^client\.kind = "),
        ({"transforms": [{"kind": "clip", "max_norm": 1.0}]}, r"^transforms\.0\.kind = "),
        ({"order_transforms": [{"kind": "noise", "std": 1.0}]}, r"^order_transforms\.0\.kind = "),
    ],
)
def test_what_takes_statistics_for_parameters_is_refused_and_frozen_ones_are_none(tables, words):
    with pytest.raises(InputError, match=words + r".*statistics = .frozen."):
        after(1, normalised(), **tables)
    assert bool(after(1, normalised("frozen"), **tables).params.isfinite().all())


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ("pooled", "problem.normalisation = pooled: the model has no batch"),
        ("local_statistics", "private = statistics: the model has no batch"),
        ("local", "private = norm: the model has no layer that normalises"),
    ],
)
def test_statistics_of_nothing_are_refused(statistics, words):
    with pytest.raises(InputError, match=re.escape(words)):
        fedsim.supervised(**blobs(), model=nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), statistics=statistics)


def test_a_rule_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InputError, match=r"^statistics = silo: .*pooled.*frozen.*local_statistics.* or 'local'"):
        normalised("silo")


def test_what_stays_with_each_client_is_no_part_of_what_is_shared():
    """A mean and a second number a channel, and with FedBN a scale and a shift as well."""
    shared = [normalised(statistics).dimension for statistics in ("averaged", "local_statistics", "local")]
    assert shared == [D + 2 * FEATURES, D, D - 2 * FEATURES]


def test_a_defence_of_two_views_normalises_both_together():
    """A loop and a stack agree, whose last batches are filled up."""
    adversarial = {
        "kind": "trades",
        "attack": {"kind": "pgd", "epsilon": 0.1, "steps": 2, "domain": "none"},
    }
    client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1, "adversarial": adversarial}
    loop, stacked = (
        after(1, normalised(), client=client, engine={"executor": executor}).params for executor in ("loop", "stacked")
    )
    torch.testing.assert_close(loop, stacked, rtol=0.0, atol=1e-10)
    plain = after(1, normalised(), client={key: client[key] for key in client if key != "adversarial"}).params
    assert (plain - stacked)[D:].abs().max() > 1e-4


def test_the_networks_of_the_library_take_batch_normalisation():
    image = ResNet(width=2, norm="batch").build((1, 4, 4), 3, 0)
    initialise(image, Streams(0))
    for module, shape in ((image, (1, 4, 4)), (MLP(norm="batch").build((6,), 3, 0), (6,))):
        initialise(module, Streams(0))
        data = blobs(shape=shape)
        loop, stacked = (
            after(1, fedsim.supervised(**data, model=module, dtype=torch.float64, device=DEVICE), engine=engine).params
            for engine in ({"executor": "loop"}, {"executor": "stacked"})
        )
        torch.testing.assert_close(loop, stacked, rtol=0.0, atol=1e-9)
