"""FedDF: where it is FedAvg, a round by hand, what it counts, and what it cannot be about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.running.build import build_simulation
from fedsim.testing.problems import blobs, mlp, small_experiment, small_functions, small_problem
from fedsim.testing.rounds import everybody, exchange, hear
from strategies.feddf import FedDF

DISTILLED = {"kind": "feddf", "steps": 6, "batch_size": 8, "lr": 0.01}


def end(strategy: Any, problem: Any = None, **tables: Any):
    given = small_experiment(strategy=strategy, **tables)
    return fedsim.run(given, problem=small_problem() if problem is None else problem, save=False)


def test_without_steps_it_is_fedavg_to_the_bit_and_needs_nothing():
    alone = fedsim.supervised(**blobs(), model=mlp(), dtype=torch.float64)
    assert alone.public is None
    assert torch.equal(end({"kind": "feddf", "steps": 0}, alone).params, end("fedavg", alone).params)


def test_of_linear_models_it_is_fedavg():
    """But for rounding, of which Adam makes steps of the size lr: they lead nowhere, and are not taken."""
    plain = end({"kind": "fedavg", "weighting": "uniform"}, small_problem(model=linear())).params
    for optimizer in ("sgd", "adam"):
        table = {**DISTILLED, "weighting": "uniform", "optimizer": optimizer}
        torch.testing.assert_close(end(table, small_problem(model=linear())).params, plain, rtol=0, atol=1e-12)
        other = end({**table, "teacher": "probabilities"}, small_problem(model=linear())).params
        assert float((other - plain).abs().max()) > 1e-5
    both = [
        end({"kind": kind, "weighting": "examples", **more}, small_problem(model=linear())).params
        for kind, more in (("fedavg", {}), ("feddf", {"teacher_weighting": "examples", "optimizer": "sgd", "steps": 6}))
    ]
    torch.testing.assert_close(*both, rtol=0, atol=1e-12)


def linear() -> nn.Module:
    return seeded(lambda: nn.Linear(6, 3))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return make()


def test_a_student_that_has_not_learnt_stays_where_it_began():
    found, plain = end({**DISTILLED, "lr": 5.0}), end("fedavg")
    assert torch.equal(found.params, plain.params)
    assert found.history["distillation_loss"] == found.history["distillation_loss_before"]
    assert end(DISTILLED).params.sub(plain.params).norm() > 0.01


def test_a_round_by_hand():
    """FedAvg's step at half the rate, then the student, whose teachers count alike; its draws are its own."""
    table = {**DISTILLED, "server_lr": 0.5, "temperature": 2.0, "optimizer": {"kind": "adam", "beta2": 0.999}}
    simulation = build_simulation(small_experiment(strategy=table), small_problem())
    state = simulation.state
    _, replies = exchange(simulation, state, everybody(simulation))
    later, metrics, done = hear(simulation, state, replies)
    share = replies.examples.double() / replies.examples.sum()
    student, layout = mlp().double(), simulation.parts.problem.layout
    student.load_state_dict(layout.named(state.params + 0.5 * share @ replies.payload["delta"]))
    inputs = simulation.parts.problem.public
    teachers = [layout.named(state.params + row) for row in replies.payload["delta"]]
    said = torch.stack([torch.func.functional_call(student, one, (inputs,)) for one in teachers]).mean(0)
    wanted = torch.softmax(said / 2.0, -1).detach()

    def loss(own) -> torch.Tensor:
        p = torch.log_softmax(student(inputs[own]) / 2.0, -1)
        return 4.0 * (wanted[own] * (wanted[own].log() - p)).sum(-1).mean()

    seed = Streams(int(state.memory["seed"]))
    orders = [seed.permutation("public", torch.tensor([2**32 - 1]), 20, turn=1, step=number)[0] for number in range(3)]
    rule = torch.optim.Adam(student.parameters(), lr=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(rule, T_max=6)
    first = loss(slice(None)).item()
    for own in torch.cat(orders)[:48].view(6, 8):
        rule.zero_grad()
        loss(own).backward()
        rule.step()
        falling.step()
    torch.testing.assert_close(later.params, layout.flatten(student.state_dict()), rtol=1e-9, atol=1e-12)
    assert (done, later.round) == (True, 1)
    assert metrics["distillation_loss_before"] == pytest.approx(first, rel=1e-9)
    assert metrics["distillation_loss"] == pytest.approx(loss(slice(None)).item(), rel=1e-9)
    assert metrics["distillation_loss"] < metrics["distillation_loss_before"]
    assert metrics["train_loss"] > 0.0


def test_teachers_are_what_clients_were_sent_and_have_changed():
    """One client, who was sent something else than the server's model: it is the teacher."""
    alone = {"selection": {"kind": "uniform", "count": 1}, "order_transforms": [{"kind": "noise", "std": 0.5}]}
    found = end({**DISTILLED, "steps": 400, "server_lr": 1e-9}, rounds=1, **alone).history
    assert found.last("distillation_loss") < 0.05 * found.last("distillation_loss_before")
    simulation = build_simulation(small_experiment(strategy=DISTILLED), small_problem())
    orders, replies = exchange(simulation, simulation.state, torch.tensor([2]))
    shifted = orders.payload["params"] + torch.linspace(-1.0, 1.0, 83)
    elsewhere = replace(replies, orders=[replace(orders, payload={"params": shifted})])
    ours = simulation.state.params + replies.payload["delta"][0]  # who has moved by as much, from the server's model
    state = replace(simulation.state, params=ours)
    losses = [FedDF(steps=1).refine(state, told, simulation.parts.bench)[1] for told in (replies, elsewhere)]
    assert abs(losses[0]["distillation_loss_before"]) < 1e-15
    assert losses[1]["distillation_loss_before"] > 1e-3


def test_bytes_and_queries_are_those_of_fedavg():
    columns = ("bytes_up", "bytes_down", "queries", "time")
    ours, plain = (end(strategy).history for strategy in (DISTILLED, "fedavg"))
    assert {name: ours[name] for name in columns} == {name: plain[name] for name in columns}


def test_who_fails_teaches_nothing_and_without_teachers_there_is_nothing_to_learn():
    simulation = build_simulation(small_experiment(strategy=DISTILLED), small_problem())
    _, replies = exchange(simulation, simulation.state, everybody(simulation))
    later, metrics, done = hear(simulation, simulation.state, replies.where(torch.zeros(6, dtype=torch.bool)))
    assert torch.equal(later.params, simulation.state.params)
    assert (later.round, done, metrics) == (1, True, {})


@pytest.mark.parametrize(
    ("problem", "table", "why"),
    [
        (lambda: fedsim.supervised(**blobs(), model=mlp()), {}, r"^problem.public = \(nothing\): feddf needs inputs"),
        (small_functions, {}, "^strategy.kind = feddf: it distils models, and this problem has none"),
        (lambda: small_problem().keeping("head"), {}, "^strategy.kind = feddf: .* a part stays with each client"),
        (small_problem, {"optimizer": "ivon"}, "^strategy.optimizer = ivon: asks for .*, which a server does not give"),
        (small_problem, {"optimizer": "nothing"}, "^strategy.optimizer.kind = nothing: not one of"),
        (small_problem, {"lr": 0.0}, "^strategy.lr = 0.0"),
        (small_problem, {"teacher": "both"}, "^strategy.teacher = both"),
    ],
)
def test_what_it_cannot_be_about_is_refused_in_a_line(problem, table, why):
    functions = problem is small_functions
    client = {"client": {"kind": "fedzo", "steps": 1}} if functions else {}
    with pytest.raises(InputError, match=why):
        end({**DISTILLED, **table}, problem(), evaluation={"every": 0, "clients": False}, **client)


def test_numbers_are_not_distilled():
    x = torch.zeros(4, 2)
    problem = fedsim.supervised(x, x[:, 0], model=nn.Linear(2, 1), clients=[[0, 1], [2, 3]], public=x)
    with pytest.raises(InputError, match=r"^strategy.kind = feddf: .* and the targets are numbers"):
        end(DISTILLED, problem, selection={"kind": "uniform", "count": 2})


def test_places_are_distilled_one_by_one():
    """A model of tokens, each of which has a class of its own."""
    x = torch.arange(24).view(6, 4) % 5
    y = (x + torch.tensor([[0], [0], [0], [1], [1], [1]])) % 3  # the clients disagree
    model = seeded(lambda: nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    problem = fedsim.supervised(x, y, model=model, clients=[[0, 1, 2], [3, 4, 5]], public=x, dtype=torch.float64)
    own = {"kind": "sgd", "epochs": 20, "batch_size": 1, "lr": 0.5}
    found = end({**DISTILLED, "steps": 50}, problem, selection={"kind": "uniform", "count": 2}, client=own).history
    assert found.last("distillation_loss") < 0.9 * found.last("distillation_loss_before")


def test_one_shot_on_classes_that_few_have():
    """One round of many steps: clients have a class and a bit; their mean is far from them, and the student is not."""
    sizes = (30, 30, 30)
    data = blobs(sizes, shape=(6,), classes=3)
    order = data["y"].argsort()
    shards = [order[first : first + 30] for first in (0, 30, 60)]
    kinds = {"fedavg": {"kind": "fedavg"}, "feddf": {"kind": "feddf", "steps": 300, "lr": 0.01}}
    found = {}
    for name, table in kinds.items():
        problem = fedsim.supervised(**{**data, "clients": shards}, model=mlp(), public=data["x"], dtype=torch.float64)
        found[name] = end(
            table,
            problem,
            rounds=1,
            client={"kind": "sgd", "epochs": 30, "batch_size": 10, "lr": 0.1},
            selection={"kind": "uniform", "count": 3},
            evaluation={"every": 1},
        ).history.last("test_accuracy")
    assert found["feddf"] > found["fedavg"] + 0.1, found
