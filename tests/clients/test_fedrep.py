"""FedRep trains what stays with a client first, and then what is shared; without the first it is FedBABU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.engine.cohort import PRIVATE, Cohort
from fedsim.exchange.messages import Order, Replies
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import blobs, mlp, small_experiment
from fedsim.testing.rounds import engine_of

EVERYBODY = {"kind": "uniform", "fraction": 1.0}
WHOLE = {"kind": "fedrep", "batch_size": "full", "lr": 0.2, "steps": 2, "head_steps": 3}
"""Steps without draws."""
BATCHES = {"kind": "fedrep", "batch_size": 4, "lr": 0.1, "epochs": 1, "head_epochs": 2}
BODY, HEAD = ("1.weight", "1.bias"), ("3.weight", "3.bias")
SLOW = {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 1.0}}
WINDOWS: dict[str, dict[str, Any]] = {
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 2}, "devices": SLOW, "selection": EVERYBODY},
    "fedfix": {"strategy": {"kind": "fedfix", "window": 3.0}, "devices": SLOW, "selection": EVERYBODY},
}


def problem(shared: Any = "body", model: nn.Module | None = None, **settings: Any) -> Supervised:
    """Six clients, of whom the first five are judged on four examples of the test set each."""
    tests = None if settings else [*np.arange(20).reshape(5, 4), []]
    model = mlp() if model is None else model
    given = {**blobs(**settings), "test_clients": tests}
    return supervised(**given, model=model, shared=shared, dtype=torch.float64, device="cpu")


def simulated(client: dict[str, Any], rounds: int = 2, own: Supervised | None = None, **tables: Any) -> Simulation:
    tables = {"evaluation": {"every": 1}, "client": client} | tables
    return build_simulation(small_experiment(rounds, **tables), problem() if own is None else own)


def final(simulation: Simulation) -> Tensor:
    """What is shared at the end of a run, [d_s]."""
    for _ in simulation:
        pass
    return simulation.state.params


def private_rows(simulation: Simulation) -> Tensor:
    return engine_of(simulation).memories().look(PRIVATE, torch.arange(simulation.parts.problem.num_clients))[0].clone()


def untimed(rows: Any) -> list[dict[str, Any]]:
    return [{**row, "wall": 0.0} for row in rows]


def step(model: nn.Module, names: tuple[str, ...], x: Tensor, y: Tensor, lr: float, mu: float, start: Any) -> None:
    """One step of these parameters, towards where they started by mu."""
    parts = [model.get_parameter(name) for name in names]
    gradient = torch.autograd.grad(functional.cross_entropy(model(x), y), parts)
    with torch.no_grad():
        for name, part, own in zip(names, parts, gradient, strict=True):
            part -= lr * (own + (mu * (part - start[name]) if mu else 0.0))


def by_hand(own: Supervised, rounds: int, mu: float = 0.0) -> tuple[Tensor, Tensor]:
    """What everybody's rounds of `WHOLE` come to: the shared parameters, and each client's own."""
    model = mlp().double()
    theta = {name: model.get_parameter(name).detach().clone() for name in BODY}
    heads = [{name: model.get_parameter(name).detach().clone() for name in HEAD} for _ in range(6)]
    share = own.sizes.double() / own.sizes.sum()
    for _ in range(rounds):
        ends = []
        for client in range(6):
            index = own.partition.indices(client)
            x, y = own.data.x[index], own.data.y[index]
            model.load_state_dict({**theta, **heads[client]})
            for _ in range(3):
                step(model, HEAD, x, y, 0.2, 0.0, theta)
            heads[client] = {name: model.get_parameter(name).detach().clone() for name in HEAD}
            for _ in range(2):
                step(model, BODY, x, y, 0.2, mu, theta)
            ends.append({name: model.get_parameter(name).detach().clone() for name in BODY})
        theta = {name: sum(p * end[name] for p, end in zip(share, ends, strict=True)) for name in BODY}
    flat = [torch.cat([part[name].flatten() for name in part]) for part in (theta, *heads)]
    return flat[0], torch.stack(flat[1:])


@pytest.mark.parametrize("executor", ["loop", "stacked", "fused"])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_first_the_head_and_then_the_body_as_by_hand(executor: str, mu: float) -> None:
    strategy = {"kind": "fedprox", "proximal_mu": mu} if mu else "fedavg"
    found = simulated(WHOLE, 3, strategy=strategy, selection=EVERYBODY, engine={"executor": executor})
    theta, heads = by_hand(found.parts.problem, 3, mu)
    torch.testing.assert_close(final(found), theta, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(private_rows(found), heads, rtol=0.0, atol=1e-12)
    assert float((theta - found.parts.problem.initial()).norm()) > 0.1


def test_every_executor_comes_to_the_same_on_mini_batches() -> None:
    ends = []
    for executor in ("loop", "stacked", "fused"):
        found = simulated({**BATCHES, "optimizer": {"kind": "sgd", "momentum": 0.5}}, engine={"executor": executor})
        ends.append((final(found), private_rows(found)))
    for params, rows in ends[1:]:
        torch.testing.assert_close(params, ends[0][0], rtol=0.0, atol=1e-12)
        torch.testing.assert_close(rows, ends[0][1], rtol=0.0, atol=1e-12)


def test_a_head_that_is_not_trained_never_changes_and_the_body_is_that_of_a_frozen_one() -> None:
    frozen = mlp()
    for name in HEAD:
        frozen.get_parameter(name).requires_grad_(False)
    babu = simulated({**BATCHES, "head_epochs": 0}, 3)
    plain = simulated(
        {"kind": "sgd", "batch_size": 4, "lr": 0.1, "epochs": 1}, 3, problem("all", frozen), evaluation={"every": 0}
    )
    torch.testing.assert_close(final(babu), final(plain), rtol=0.0, atol=1e-12)
    assert torch.equal(private_rows(babu), babu.parts.problem.model.private.initial.expand(6, -1))


def test_who_is_not_selected_keeps_its_part_to_the_bit() -> None:
    found = simulated(BATCHES, 4)
    before = private_rows(found)
    for _ in range(4):
        found.step()
        now = private_rows(found)
        assert int((now != before).any(dim=1).sum()) == 4
        before = now


def test_both_trainings_have_mini_batches_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, plan = [], Cohort.plan

    def noted(cohort: Cohort, *given: Any, **named: Any) -> Any:
        made = plan(cohort, *given, **named)
        taken.append(made.index.clone())
        return made

    monkeypatch.setattr(Cohort, "plan", noted)
    simulated({**BATCHES, "head_epochs": 1}, 1, selection=EVERYBODY).step()
    head, body = taken
    assert head.shape == body.shape
    assert not torch.equal(head, body)


def test_the_steps_of_both_are_declared_and_d_s_numbers_cross() -> None:
    found = simulated({**BATCHES, "head_epochs": 3, "epochs": 2}, 1, own=problem())
    executor = engine_of(found).executor
    job = executor.assign(Order("train", torch.tensor([2, 3]), {"params": found.state.params}))
    assert job.cost.steps.tolist() == [5 * 3, 5]  # of 12 examples and of 1, in batches of 4
    row = found.step()
    assert (row["bytes_up"], row["bytes_down"]) == (4 * 8 * 56, 4 * 8 * 56)
    steps = simulated({**BATCHES, "head_epochs": None, "head_steps": 4}, 1)
    job = engine_of(steps).executor.assign(Order("train", torch.tensor([2]), {"params": found.state.params}))
    assert job.cost.steps.tolist() == [3 + 4]


def test_running_statistics_move_in_both_trainings() -> None:
    """Those that are shared, and the client's own: from one step alone they would have gone a tenth of the way."""
    statistics = {}
    for shared, client in (("body", WHOLE), ("body", {**WHOLE, "head_steps": 1, "steps": 1})):
        model = nn.Sequential(mlp()[1], nn.BatchNorm1d(8), nn.ReLU(), mlp()[3])
        found = simulated(client, 1, problem(shared, model), selection={"kind": "uniform", "count": 1})
        start = found.parts.problem.initial()[-16:-8]
        way = final(found)[-16:-8] - start
        statistics[client["steps"]] = way
    few, many = statistics[1], statistics[2]
    # What the means are of hardly moves: after k steps they have gone 1 - 0.9^k of the way.
    assert float(many.norm() / few.norm()) == pytest.approx((1 - 0.9**5) / (1 - 0.9**2), rel=0.1)


# Runs that go on.


@pytest.mark.parametrize("windows", WINDOWS)
def test_a_restored_run_ends_like_an_uninterrupted_one(windows: str) -> None:
    whole, first, second = (simulated(BATCHES, 6, **WINDOWS[windows]) for _ in range(3))
    rows = [first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    first.step()
    rows += second
    assert untimed(rows) == untimed(whole)
    assert torch.equal(private_rows(second), private_rows(whole))


@pytest.mark.parametrize("windows", WINDOWS)
def test_how_many_clients_fit_into_memory_changes_nothing(windows: str) -> None:
    found = []
    for memory in (2**28, 1):
        simulation = simulated(BATCHES, 6, engine={"executor": "stacked"}, **WINDOWS[windows])
        engine_of(simulation).executor.memory = memory
        found.append((untimed(simulation), private_rows(simulation)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("windows", WINDOWS)
def test_in_windows_a_part_goes_on_from_what_its_client_had_and_was_sent(
    windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is computed: at each row it is what replies come to in the order in which they have come."""
    found = simulated(BATCHES, 8, **WINDOWS[windows])
    engine, alone = engine_of(found), engine_of(simulated(BATCHES, 8)).executor
    heard, collect, late = list[Replies](), engine.collect, 0

    def listening(*given: Any, **named: Any) -> Replies | None:
        replies = collect(*given, **named)
        heard.extend([] if replies is None else [replies])
        return replies

    monkeypatch.setattr(engine, "collect", listening)
    for row in found:
        late += row["staleness"] > 0
        for replies in heard:
            for client, origin in zip(replies.clients.tolist(), replies.origin, strict=True):
                order = replace(replies.orders[origin], clients=torch.tensor([client]))
                alone.execute(alone.assign(order))
        heard.clear()
        rows, _ = alone.store.look(PRIVATE, torch.arange(6))
        torch.testing.assert_close(private_rows(found), rows, rtol=0.0, atol=1e-12)
    assert late > 2


# What goes with it.


@pytest.mark.parametrize(
    "tables",
    [
        {"aggregation": "median"},
        {"aggregation": "trimmed_mean"},
        {"strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": "adam"}},
        {"strategy": {"kind": "fedavg", "server_optimizer": {"kind": "sgd", "momentum": 0.9}}},
    ],
    ids=["median", "trimmed", "adam", "momentum"],
)
@pytest.mark.parametrize("shared", ["body", "head"])
def test_what_a_server_does_it_does_to_what_is_shared(tables: dict[str, Any], shared: str) -> None:
    """From the same start the first round of all comes to the same numbers as where everything is shared."""
    client = {"kind": "sgd", "batch_size": "full", "steps": 2, "lr": 0.2}
    tables = {"selection": EVERYBODY, "evaluation": {"clients": False}, **tables}
    part, whole = (simulated(client, 1, problem(own), **tables) for own in (shared, "all"))
    apart = part.parts.problem.model.private
    torch.testing.assert_close(final(part), apart.split(final(whole))[0], rtol=0.0, atol=1e-12)


def test_what_is_done_to_replies_is_done_to_what_is_shared() -> None:
    """The norm that bounds a reply is that of its 56 numbers."""
    tables = {"transforms": [{"kind": "clip", "max_norm": 0.01}], "selection": {"kind": "uniform", "count": 1}}
    found = simulated(BATCHES, 1, **tables)
    moved = final(found) - found.parts.problem.initial()
    assert moved.shape == (56,)
    assert float(moved.norm()) == pytest.approx(0.01)


@pytest.mark.parametrize(("kind", "name"), [("scaffold", "control"), ("feddyn", "gradient")])
def test_control_variates_are_of_what_is_shared(kind: str, name: str) -> None:
    client = {"kind": kind, "batch_size": 4, "lr": 0.1, "epochs": 1}
    found = simulated(client, 2, strategy=kind)
    list(found)
    assert engine_of(found).executor.store.shapes[name] == (56,)


def test_clients_are_judged_after_their_heads_are_tuned() -> None:
    """FedBABU's evaluation: the body stays what it is, and nothing is kept of the heads."""
    client = {**BATCHES, "head_epochs": 0}
    told = {"steps": 20, "batch_size": "full", "lr": 0.5, "trains": "head"}
    plain, tuned = simulated(client), simulated(client, evaluation={"every": 1, "finetune": told})
    first, last = list(plain)[-1], list(tuned)[-1]
    assert torch.equal(plain.state.params, tuned.state.params)
    assert torch.equal(private_rows(plain), private_rows(tuned))
    assert last["personal_accuracy"] > first["personal_accuracy"]
    own, correct = tuned.parts.problem, []
    for client_id in range(5):
        model = own.module(tuned.state.params)
        index = own.partition.indices(client_id)
        for _ in range(20):
            step(model, HEAD, own.data.x[index], own.data.y[index], 0.5, 0.0, {})
        x, y = (torch.tensor(part[4 * client_id : 4 * client_id + 4]) for part in blobs()["test"])
        correct.append(float((model(x).argmax(dim=1) == y).double().mean()))
    assert last["personal_accuracy"] == pytest.approx(np.mean(correct))


# What does not.


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"head_epochs": None}, r"client\.head_epochs = None: give exactly one of head_epochs and head_steps"),
        ({"head_steps": 2}, r"client\.head_epochs = 2: give exactly one of head_epochs and head_steps"),
        ({"curriculum": {"floor": 1}}, r"client\.curriculum = given: orders the examples of one training a round"),
        ({"optimizer": {"kind": "dog", "distance": "client"}}, r"client\.optimizer = dog: keeps something of one"),
        ({"optimizer": {"kind": "ivon", "precision": "client"}}, r"client\.optimizer = ivon: keeps something of one"),
    ],
)
def test_options_that_do_not_go_together_are_refused(client: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        simulated({**BATCHES, **client})


@pytest.mark.parametrize("kept", [(), ("statistics",)])
def test_something_must_be_shared_and_something_not(kept: tuple[str, ...]) -> None:
    model = nn.Sequential(mlp()[1], nn.BatchNorm1d(8), nn.ReLU(), mlp()[3])
    own = problem("all", model)
    with pytest.raises(InputError, match=r"^problem\.shared = all: the client fedrep trains what stays with it by"):
        simulated(BATCHES, 1, own.keeping(*kept) if kept else own, evaluation={"clients": False})


@pytest.mark.parametrize(
    ("trains", "words"),
    [("bodies", "= bodies: is no parameter of this model"), ([], r"= \[\]: nothing would be trained")],
)
def test_fine_tuning_of_nothing_is_refused(trains: Any, words: str) -> None:
    finetune = {"steps": 1, "trains": trains}
    with pytest.raises(InputError, match=rf"^evaluation\.finetune\.trains {words}"):
        simulated(BATCHES, evaluation={"finetune": finetune})
