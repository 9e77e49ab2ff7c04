"""What stays with a client is its own, and everybody else sees only what is shared."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedsim.core.errors import FedsimError, InputError
from fedsim.core.graph import decode, encode
from fedsim.core.options import options
from fedsim.engine.cohort import PRIVATE
from fedsim.engine.executor import Executor
from fedsim.engine.store import ClientStore
from fedsim.exchange.actions import SCORE
from fedsim.exchange.messages import Order
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.personal import own_models
from fedsim.running.runner import run
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import blobs, mlp, small_experiment

BODY, HEAD = 6 * 8 + 8, 8 * 3 + 3
"""d_s and p, of a model of 6-8-3 whose last layer stays with the clients."""


def normed() -> nn.Module:
    """A model of 6-8-3 with a layer that normalises, of 16 parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


@options
class Batched:
    """Normalised by the batch, for the digits."""

    def build(self, shape: tuple[int, ...], num_classes: int, vocabulary: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


def problem(model: nn.Module | None = None, dtype: torch.dtype = torch.float64, **settings: Any) -> Supervised:
    """Six clients, of whom the first five are judged on four examples of the test set each."""
    tests = [*np.arange(20).reshape(5, 4), []]
    return supervised(**blobs(**settings), test_clients=tests, model=model or mlp(), dtype=dtype, device="cpu")


def personal(rounds: int = 3, own: Supervised | None = None, named: str = "head", **tables: Any) -> Simulation:
    tables = {"evaluation": {"every": 1}, **tables}
    return build_simulation(small_experiment(rounds, **tables), (own or problem()).keeping(named))


def private_rows(simulation: Simulation, clients: int = 6) -> torch.Tensor:
    return simulation.parts.engine.memories().look(PRIVATE, torch.arange(clients))[0]


def told(rows: Any) -> list[dict[str, Any]]:
    return [{**row, "wall": 0.0} for row in rows]


# What is shared and what is not.


def test_a_vector_and_its_two_parts():
    own = problem(normed()).keeping("norm", "*.bias").model.private
    assert own.own.names == ("0.bias", "1.weight", "1.bias", "3.bias")
    models = torch.randn(3, 99, dtype=torch.float64)
    shared, rest = own.split(models)
    assert (shared.shape, rest.shape) == ((3, 6 * 8 + 8 * 3), (3, 8 + 16 + 3))
    assert torch.equal(rest[:, 8:16], models[:, 56:64])
    assert torch.equal(own.join(shared, rest), models)
    assert torch.equal(own.join(shared[1], rest)[2], own.join(shared[1:2].expand(3, -1), rest)[2])


def test_of_what_is_shared_the_first_numbers_are_trained():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    found = {named: problem(model).keeping(named) for named in ("2.*", "norm", "statistics")}
    assert {named: (own.dimension, own.trained) for named, own in found.items()} == {
        "2.*": (56 + 16 + 16, 56 + 16),
        "norm": (56 + 27, None),
        "statistics": (56 + 16 + 27, None),
    }


@pytest.mark.parametrize("named", [("2.weight",), ("norm", "heads"), ("*",)])
def test_what_names_nothing_or_all_is_refused(named):
    with pytest.raises(InputError, match="private"):
        problem().keeping(*named)


def test_strategies_bytes_and_models_are_of_what_is_shared():
    simulation = personal()
    assert simulation.state.params.shape == (BODY,)
    row = simulation.step()
    assert (row["bytes_up"], row["bytes_down"]) == (4 * 8 * BODY, 4 * 8 * BODY)
    held = simulation.parts.problem.tensors(simulation.params)
    assert list(held) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(("statistics", "shared"), [("local_statistics", 0), ("local", 2 * 8), ("averaged", -2 * 8)])
def test_the_table_of_normalisation_says_what_crosses(statistics, shared):
    """Of a model with 8 channels d - 2F numbers, d or d + 2F."""
    tables = {"dataset": "digits", "model": f"{__name__}:Batched", "normalisation": {"statistics": statistics}}
    partition = {"kind": "iid", "clients": 4, "holdout": 0.3}
    experiment = small_experiment(1, problem=tables, partition=partition)
    row = build_simulation(experiment, build_problem(experiment)).step()
    assert row["bytes_up"] == 4 * 4 * (64 * 8 + 8 + 2 * 8 + 8 * 10 + 10 - shared)
    assert ("personal_accuracy" in row) == (statistics != "averaged")
    assert ("test_accuracy" in row) == (statistics == "averaged")


@pytest.mark.parametrize("statistics", ["local_statistics", "local"])
def test_a_model_that_does_not_normalise_has_nothing_that_could_stay(statistics):
    tables = {"dataset": "digits", "normalisation": {"statistics": statistics}}
    with pytest.raises(InputError, match=rf"^problem\.normalisation\.statistics = {statistics}: the model has no"):
        build_problem(small_experiment(1, problem=tables))


# What clients have of their own.


def test_who_is_not_selected_keeps_what_it_had_and_begins_with_the_problems_start():
    simulation = personal(5)
    initial = simulation.parts.problem.model.private.initial
    before, taken, untrained = private_rows(simulation), set[int](), []
    assert torch.equal(before, initial.expand(6, -1))
    for _ in range(5):
        row = simulation.step()
        moved = set((private_rows(simulation) != before).any(dim=1).nonzero().flatten().tolist())
        assert len(moved) == 4
        taken |= moved
        untrained.append((row["personal_untrained"], len(set(range(5)) - taken)))
        before = private_rows(simulation)
    assert all(said == known for said, known in untrained)
    assert untrained[0][0] > 0


def test_alone_a_client_trains_as_if_nothing_stayed_with_it():
    """Of one client what is sent and what stays are together what plain training comes to."""
    whole = supervised(**blobs(sizes=(12,)), model=mlp(), dtype=torch.float64, device="cpu")
    tables = {"selection": {"kind": "uniform", "fraction": 1.0}, "evaluation": {"clients": False}}
    plain, split = build_simulation(small_experiment(4, **tables), whole), personal(4, whole, **tables)
    assert [row["train_loss"] for row in plain] == pytest.approx([row["train_loss"] for row in split], rel=1e-12)
    joined = split.parts.problem.model.private.join(split.state.params, private_rows(split, 1))
    torch.testing.assert_close(joined[0], plain.state.params, rtol=0, atol=1e-12)
    assert (plain.state.params - whole.initial()).norm() > 0.1


@pytest.mark.parametrize(
    ("strategy", "client"),
    [("fedavg", "sgd"), ("fedprox", "sgd"), ("fednova", "sgd"), ("feddyn", "feddyn"), ("scaffold", "scaffold")],
)
@pytest.mark.parametrize("kept", ["head", "statistics", "0.*"])
def test_every_executor_comes_to_the_same(strategy, client, kept):
    """Whatever a method sends and remembers beside, of the shape of what is shared."""
    found = []
    model = mlp() if kept == "head" else nn.Sequential(mlp()[1], nn.BatchNorm1d(8), mlp()[3])
    for executor in ("loop", "stacked", "fused") if kept == "head" else ("loop", "stacked"):
        training = {"kind": client, "epochs": 2, "batch_size": 4, "lr": 0.1}
        tables = {"strategy": strategy, "client": training, "engine": {"executor": executor}}
        simulation = personal(2, problem(model), kept, **tables)
        rows = list(simulation)
        found.append((simulation.state.params, private_rows(simulation), rows[-1]["personal_loss"]))
    for params, rows, loss in found[1:]:
        torch.testing.assert_close(params, found[0][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(rows, found[0][1], rtol=0, atol=1e-10)
        assert loss == pytest.approx(found[0][2], rel=1e-10)
    assert (found[0][1] - simulation.parts.problem.model.private.initial).norm() > 0.1


def test_a_proximal_term_pulls_to_where_a_client_begins():
    """At a penalty mu with lr mu = 1 each step ends at its beginning less lr times the gradient: like one step."""
    tables = {
        "selection": {"kind": "uniform", "fraction": 1.0},
        "client": {"kind": "sgd", "steps": 2, "batch_size": "full", "lr": 0.1},
    }
    pulled, one = personal(1, strategy={"kind": "fedprox", "proximal_mu": 10.0}, **tables), personal(1, **tables)
    pulled.step()
    one.step()
    start = one.parts.problem.model.private.initial
    assert ((private_rows(pulled) - start).norm() < 0.7 * (private_rows(one) - start).norm()).item()


def test_a_curriculum_scores_by_the_clients_own_models():
    """In the second round, by what was sent and what each has kept."""
    client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1, "curriculum": {"floor": 2}}
    simulation = personal(2, client=client, selection={"kind": "uniform", "fraction": 1.0})
    simulation.step()
    own, params, rows = simulation.parts.problem, simulation.state.params, private_rows(simulation)
    order = Order("train", torch.arange(6), {"params": params}, round=1)
    executor = simulation.parts.engine.executor
    told = executor.execute(executor.assign(order)).metrics["difficulty"]
    for client, difficulty in enumerate(told):
        index = own.partition.indices(client)
        outputs = own.module(params, rows[client])(own.data.x[index]).detach()
        assert float(difficulty) == pytest.approx(float(nn.functional.cross_entropy(outputs, own.data.y[index])))


def test_losses_that_are_asked_for_are_of_the_clients_own_models():
    simulation = personal(2)
    list(simulation)
    executor, own = simulation.parts.engine.executor, simulation.parts.problem
    order = Order(SCORE, torch.tensor([5, 2]), {"params": simulation.state.params}, round=2, counts=False)
    found = executor.execute(executor.assign(order)).payload["loss"][:, 0]
    rows = private_rows(simulation)
    for client, loss in zip((5, 2), found, strict=True):
        index = own.partition.indices(client)
        outputs = own.module(simulation.state.params, rows[client])(own.data.x[index]).detach()
        assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(outputs, own.data.y[index])), rel=1e-12)


# Runs that go on.


def test_a_restored_run_ends_like_an_uninterrupted_one():
    whole, first, second = personal(5), personal(5), personal(5)
    rows = [first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    first.step()
    rows += second
    assert told(rows) == told(whole)
    assert torch.equal(private_rows(second), private_rows(whole))


def test_how_many_clients_fit_into_memory_changes_nothing_of_an_asynchronous_run():
    """Clients are executed ahead of their replies there, but not those whose own models are judged meanwhile."""
    tables = {
        "strategy": {"kind": "fedbuff", "size": 2},
        "selection": {"kind": "uniform", "count": 6},
        "devices": {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 1.0}},
        "engine": {"executor": "stacked"},
    }
    found = []
    for memory in (2**28, 1):
        simulation = personal(6, **tables)
        simulation.parts.engine.executor.memory = memory
        found.append(told(simulation))
    assert [row["personal_loss"] for row in found[0]] == pytest.approx([row["personal_loss"] for row in found[1]])


# How they are judged.


def test_each_client_is_judged_by_its_own_model_on_its_own_examples(tmp_path):
    experiment = small_experiment(3, evaluation={"every": 1})
    result = run(experiment, problem=problem(normed()).keeping("norm"), out=tmp_path / "run")
    data, correct = blobs(), []
    for client in range(5):
        x, y = (part[4 * client : 4 * client + 4] for part in data["test"])
        model = result.model(client)
        correct.append(float((model(torch.tensor(x)).argmax(dim=1) == torch.tensor(y)).double().mean()))
    summary = result.summary
    assert len(set(correct)) > 1
    assert summary["personal_accuracy_mean"] == pytest.approx(np.mean(correct))
    assert summary["personal_accuracy"] == pytest.approx(np.mean(correct))
    assert summary["personal_accuracy_worst"] == min(correct)
    assert summary["personal_accuracy_p10"] == pytest.approx(np.quantile(correct, 0.1))
    assert summary["personal_accuracy_std"] == pytest.approx(np.std(correct))
    with (tmp_path / "run" / "clients.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["personal_accuracy"]) for row in table[:5]] == pytest.approx(correct)
    assert (table[5]["examples"], table[5]["personal_accuracy"]) == ("0", "")
    held = load_file(tmp_path / "run" / "own.safetensors")
    assert torch.equal(held["1.weight"][2], result.model(2)[1].weight)
    assert "personal_accuracy" in repr(result)
    with pytest.raises(FedsimError, match="name one"):
        result.model()


def test_accuracy_is_weighted_by_examples_and_its_mean_is_not():
    """Of two clients that are judged one has 15 examples and the other 1."""
    data, tests = blobs(), {0: list(range(15)), 5: [15]}
    own = supervised(**data, test_clients=[tests.get(c, []) for c in range(6)], model=mlp(), dtype=torch.float64)
    simulation = personal(4, own, selection={"kind": "uniform", "fraction": 1.0})
    row = list(simulation)[-1]
    rows, x, y = private_rows(simulation), *map(torch.tensor, data["test"])
    models = {c: own.keeping("head").module(simulation.state.params, rows[c]) for c in tests}
    right = {c: (models[c](x[index]).argmax(dim=1) == y[index]).double() for c, index in tests.items()}
    assert row["personal_accuracy"] == pytest.approx(float(torch.cat(list(right.values())).mean()))
    assert row["personal_accuracy_mean"] == pytest.approx(sum(float(own.mean()) for own in right.values()) / 2)
    assert row["personal_accuracy"] != row["personal_accuracy_mean"]


def test_a_clients_numbers_follow_neither_the_others_nor_chunks(monkeypatch):
    from fedsim.engine import personal as module

    first = personal(2, problem(normed()), "norm")
    rows = told(first)
    monkeypatch.setattr(module, "EVALUATED_AT_ONCE", 1)
    second = personal(2, problem(normed()), "norm")
    assert told(second) == rows


@pytest.mark.parametrize("finetune", [None, {"epochs": 1, "batch_size": 4}])
def test_whoever_has_how_many_examples_each_is_judged_on_its_own_and_alone_to_the_same_bits(finetune, monkeypatch):
    """From none to more than four batches of 32, which go through models with those who have about as many."""
    from fedsim.engine import personal as module

    counts = [0, 1, 40, 32, 33, 140, 2, 97, 64, 0, 65]
    generator = np.random.default_rng(0)
    order, ends = generator.permutation(sum(counts)), np.cumsum(counts)
    tests = [order[end - count : end] for count, end in zip(counts, ends, strict=True)]
    data = blobs(sizes=tuple(range(1, 12)))
    inputs, answers = generator.normal(size=(sum(counts), 6)), generator.integers(0, 3, sum(counts))
    own = supervised(
        **(data | {"test": (inputs, answers)}), test_clients=tests, model=mlp(), dtype=torch.float64, device="cpu"
    )
    evaluation = {"every": 0} if finetune is None else {"every": 0, "finetune": finetune}
    result = run(small_experiment(2, evaluation=evaluation), problem=own.keeping("head"), save=False)
    rows, count = result.problem.judged.own()
    together = result.own.owned.outputs(rows, count)
    for client, place in enumerate(torch.split(torch.arange(sum(counts)), counts)):
        found = result.model(client)(torch.tensor(inputs[tests[client]])).detach()
        torch.testing.assert_close(together[place], found, rtol=0, atol=1e-12)
    monkeypatch.setattr(module, "WORTH_A_THREAD", -1)
    assert torch.equal(result.own.owned.outputs(rows, count), together)
    monkeypatch.setattr(module, "EVALUATED_AT_ONCE", 1)
    assert torch.equal(result.own.owned.outputs(rows, count), together)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"evaluation": {"on": "train"}}, r"evaluation\.on = "),
        (
            {"evaluation": {"keep_best": "personal_accuracy"}},
            r"evaluation\.keep_best = personal_accuracy: is of models of",
        ),
        ({"evaluation": {"keep_best": "test_accuracy"}}, r"evaluation\.keep_best = test_accuracy: is of models of"),
        ({"evaluation": {"attacks": {"kind": "fgsm", "epsilon": 0.1}}}, r"evaluation\.attacks = "),
        ({"stopping": {"patience": 2}}, r"stopping\.metric = "),
        ({"client": {"kind": "fedzo"}}, r"client\.kind = "),
        (
            {"client": {"kind": "sgd", "epochs": 1, "optimizer": {"kind": "ivon", "precision": "client"}}},
            r"client\.optimizer = ivon: keeps something of each parameter",
        ),
    ],
)
def test_what_does_not_go_with_models_of_their_own_is_refused(tables, words):
    with pytest.raises(InputError, match=f"^{words}"):
        personal(**tables)


def test_nobody_is_judged_on_what_it_is_trained_on():
    nothing = supervised(**blobs(), model=mlp(), dtype=torch.float64)
    with pytest.raises(InputError, match=r"partition\.holdout"):
        personal(1, nothing)
    assert "personal_loss" not in personal(1, nothing, evaluation={"clients": False}).step()


def test_rows_that_lie_in_a_row_are_lent_and_others_copied():
    """Clients 4, 2, 5, 0 have come in this order; 1 and 3 have not yet."""
    store = ClientStore({"v": (2,)}, 6, torch.device("cpu"), torch.float64, 10**6, {"v": torch.ones(2).double()})
    came, numbers = torch.tensor([4, 2, 5, 0]), torch.arange(8.0, dtype=torch.float64).view(4, 2)
    store.admit(came)
    store.write(came, {"v": numbers})
    assert store.along(torch.arange(6)).tolist() == [4, 2, 5, 0, 1, 3]
    for clients, lent in (([4, 2, 5, 0], True), ([2, 5], True), ([2, 4], False), ([4, 5], False), ([0, 1], False)):
        given = torch.tensor(clients)
        rows = store.lend("v", given)
        assert torch.equal(rows, store.look("v", given)[0])
        own = store._blocks["v"]
        assert (rows.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()) == lent
    assert store.lend("v", torch.tensor([], dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("finetune", [None, {"steps": 2, "lr": 0.1}])
def test_who_has_come_when_changes_nothing_of_what_is_judged_nor_is_what_clients_keep_written_to(finetune):
    """Where one client after the other has come, backwards, rows lie the other way round."""
    client = {"kind": "ditto", "lam": 0.2, "steps": 2, "batch_size": 4, "lr": 0.1}
    found = list[torch.Tensor]()
    for order in (range(6), range(5, -1, -1)):
        made = build_simulation(small_experiment(1, client=client, evaluation={"finetune": finetune}), problem())
        executor, parts = made.parts.engine.executor, made.parts
        for number in order:
            sent = Order("train", torch.tensor([number]), {"params": made.params})
            executor.execute(executor.assign(sent))
        before = parts.engine.memories().look("personal", torch.arange(6))[0]
        owned = own_models(parts.engine, parts.problem, parts.strategy, made.state, parts.tuning)
        found.append(owned.outputs(*parts.problem.judged.own()))
        assert torch.equal(parts.engine.memories().look("personal", torch.arange(6))[0], before)
    assert torch.equal(*found)


def test_clients_columns_ask_each_for_its_model_once(monkeypatch):
    """The sixth has no example to be judged on, and is asked all the same."""
    client = {"kind": "apfl", "adaptive": True, "steps": 2, "batch_size": 4, "lr": 0.1}
    result, asked = run(small_experiment(1, client=client), problem=problem(), save=False), list[int]()
    own_models = Executor.own_models

    def counted(self: Executor, order: Order, clients: torch.Tensor, *rest: Any) -> Any:
        asked.extend(clients.tolist())
        return own_models(self, order, clients, *rest)

    monkeypatch.setattr(Executor, "own_models", counted)
    assert result.own is not None
    columns = result.own.client_measures()
    assert sorted(asked) == list(range(6))
    assert torch.equal(columns["alpha"], result.own.owned.told(torch.arange(6))["alpha"])


def test_a_run_stops_by_what_the_clients_models_come_to():
    simulation = personal(9, stopping={"metric": "personal_loss", "target": 5.0})
    assert len(list(simulation)) == 1
    assert "personal_loss reached" in simulation.stopped
