"""Ditto: fixed points, the model for all as without it, and whose model is when what it is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from bowls import FULL, A, H, assert_close, bowls, ended, kept, simulation
from torch import Tensor

from fedsim.client.training import LocalTraining
from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, small_problem

DITTO: dict[str, Any] = {"kind": "ditto", **TRAINING}
EXECUTORS = ("stacked", "loop", "fused")


def pulled(theta: Tensor, lam: float) -> Tensor:
    """(h a + lam theta) / (h + lam), [3, 2]."""
    h = H.unsqueeze(1)
    return (h * A + lam * theta) / (h + lam)


@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0, 3.0])
def test_its_own_model_ends_between_its_minimum_and_the_model_for_all(lam):
    made = ended({"kind": "ditto", "lam": lam, **FULL}, 50)
    theta = made.state.params
    assert ((theta - A).norm(dim=1) > 0.5).all()
    assert_close(kept(made), pulled(theta, lam))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_without_a_pull_it_is_local_training_to_the_bit(executor):
    problem = small_problem()
    made = simulation({**DITTO, "lam": 0.0}, 3, problem, engine={"executor": executor})
    parts, v = made.parts.engine.executor, problem.initial()
    local = LocalTraining(**TRAINING)
    for number in range(3):
        order = Order("train", torch.arange(6), {"params": problem.initial()}, round=number)
        job = parts.assign(order)
        job = job[torch.argsort(job.cost.steps, descending=True, stable=True)]
        v = v if v.dim() == 1 else v[job.clients]
        rows = local.descend(Cohort(problem, parts.network, parts.streams, job, {}), v).params
        v = rows[torch.argsort(job.clients)]
        made.step()
        assert torch.equal(kept(made), v)
    assert ((v - made.state.params).norm(dim=1) > 1e-2).all()


@pytest.mark.parametrize(
    ("executor", "options"),
    [
        *itertools.product(EXECUTORS, [{}, {"own_batches": True}]),
        ("stacked", {"personal_lr": 0.02, "personal_epochs": 3}),
        ("stacked", {"optimizer": "adam", "lr": 0.01}),
    ],
)
def test_the_model_for_all_is_what_it_is_without_it(executor, options):
    tables = {"engine": {"executor": executor}, "selection": {"kind": "uniform", "count": 4}}
    plain = {name: value for name, value in options.items() if name in ("optimizer", "lr")}
    mine = ended({**DITTO, "lam": 0.7, **options}, 3, problem=small_problem(), **tables)
    theirs = ended({"kind": "sgd", **TRAINING, **plain}, 3, problem=small_problem(), **tables)
    assert torch.equal(mine.state.params, theirs.state.params)


def test_a_servers_proximal_term_is_of_the_model_for_all_alone():
    tables: dict[str, Any] = {"strategy": {"kind": "fedprox", "proximal_mu": 2.0}}
    mine, theirs = (
        ended({**table, **TRAINING}, 2, problem=small_problem(), **tables)
        for table in ({"kind": "ditto", "lam": 0.0}, {"kind": "sgd"})
    )
    assert torch.equal(mine.state.params, theirs.state.params)
    alone = ended({**DITTO, "lam": 0.0}, 2, problem=small_problem())
    assert torch.equal(kept(mine), kept(alone))


def first_changes(**options: Any) -> tuple[Tensor, Tensor]:
    """What six clients' two models have moved in the first round, without a pull, [6, d] each."""
    problem = small_problem()
    made = simulation({**DITTO, "lam": 0.0, **options}, 1, problem)
    executor = made.parts.engine.executor
    order = Order("train", torch.arange(6), {"params": problem.initial()})
    delta = executor.execute(executor.assign(order)).payload["delta"]
    return kept(made) - problem.initial(), delta


def test_both_models_see_the_same_batches_unless_they_are_to_have_their_own():
    own, delta = first_changes()
    assert_close(own, delta, 1e-15)
    own, delta = first_changes(own_batches=True)
    several = torch.tensor([7, 3, 12, 1, 5, 9]) > TRAINING["batch_size"]  # examples than a batch takes
    assert torch.equal((own - delta).norm(dim=1) > 1e-3, several)


def test_its_own_model_has_a_rate_and_passes_of_its_own():
    """A step on h/2 |v - a|^2 from 0 leaves (1 - lr h) of the way, and lam is of its own rate, too."""
    made = ended({"kind": "ditto", "lam": 0.0, "personal_lr": 0.1, "personal_epochs": 2, **FULL}, 1)
    assert_close(kept(made), A * (1.0 - (1.0 - 0.1 * H.unsqueeze(1)) ** 2))
    order = Order("train", torch.arange(3), {"params": torch.zeros(2, dtype=torch.float64)})
    assert made.parts.engine.executor.assign(order).cost.steps.tolist() == [5 + 2] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lam": 10.0}, r"lam = 10\.0: times the rate of the client's own model, 0\.1, it is 1 or more"),
        ({"lam": 1.0, "personal_lr": 1.0}, r"lam = 1\.0: times the rate of the client's own model, 1, it is 1 or more"),
        ({"lam": 0.1, "curriculum": {}}, "curriculum = given: "),
        (
            {"lam": 0.1, "optimizer": {"kind": "dog", "distance": "client"}},
            "optimizer = dog: keeps something",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=rf"^client\.{words}"):
        simulation({**DITTO, **options}, 1)


def test_who_is_not_selected_keeps_its_model_to_the_bit():
    made = simulation(
        {**DITTO, "lam": 0.5}, 6, small_problem(tested=True), selection={"kind": "uniform", "count": 2}, evaluation={}
    )
    before, untrained = kept(made), list[int]()
    assert torch.equal(before, made.state.params.expand(6, -1))
    for row in made:
        moved = (kept(made) != before).any(dim=1)
        assert int(moved.sum()) == 2
        before = kept(made)
        untrained.append(row["personal_untrained"])
    assert untrained[0] == 4
    assert untrained == sorted(untrained, reverse=True)


def told(rows: Any) -> list[dict[str, Any]]:
    return [{**row, "wall": 0.0} for row in rows]


def fleeting(rounds: int, **tables: Any) -> Simulation:
    """Asynchronous, of clients that take unlike times."""
    asynchronous = {
        "strategy": {"kind": "fedbuff", "size": 2},
        "devices": {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 1.0}},
        "evaluation": {"every": 1},
    }
    return simulation({**DITTO, "lam": 0.5}, rounds, small_problem(tested=True), **asynchronous | tables)


@pytest.mark.parametrize("tables", [{}, {"strategy": "fedavg", "selection": {"kind": "uniform", "count": 3}}])
def test_a_restored_run_ends_like_an_uninterrupted_one(tables):
    whole, first, second = (fleeting(5, **tables) for _ in range(3))
    rows = [first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    first.step()
    rows += second
    assert told(rows) == told(whole)
    assert torch.equal(kept(second), kept(whole))


def test_in_asynchronous_windows_it_is_drawn_to_the_model_that_it_was_sent_and_is_not_ahead_of_its_reply():
    """With so many steps that it has the closed form, by then, of the version that each reply answers."""
    tables = {
        "strategy": {"kind": "fedbuff", "size": 1},
        "devices": {"compute": {"kind": "fixed", "seconds": 1.0, "spread": 3.0}},
    }
    made = simulation({"kind": "ditto", "lam": 1.0, **FULL, "steps": 120}, 12, bowls(), **tables)
    versions, before, stale = [made.state.params], kept(made), 0
    for row in made:
        moved = (kept(made) != before).any(dim=1).nonzero().flatten().tolist()
        assert len(moved) == 1
        stale += row["staleness"]
        sent = versions[len(versions) - 1 - int(row["staleness"])]
        assert_close(kept(made)[moved], pulled(sent, 1.0)[moved], 1e-12)
        versions.append(made.state.params)
        before = kept(made)
    assert stale > 3
    assert (versions[-1] - versions[-2]).norm() > 1e-3
