"""What clients that train tell of the model that they were sent: its mean loss on all of their training examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.engine.executor import Executor
from fedsim.exchange.messages import Order, Size
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor
from fedsim.testing.problems import DEVICE, blobs, mlp, small_experiment, small_problem

EVERYBODY = torch.arange(6)
ASKED = {"report-start-loss": True}
SIZES = torch.tensor([7, 3, 12, 1, 5, 9])


def executor_of(problem: Supervised, name: str = "stacked", **client: Any) -> Executor:
    table = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, **client}
    return build_executor(small_experiment(strategy="term", client=table, engine={"executor": name}), problem)


def told(made: Executor, params: Tensor, clients: Tensor = EVERYBODY, round_: int = 0) -> Tensor:
    """[C], in the order of the clients."""
    job = made.assign(Order("train", clients, {"params": params}, ASKED, round=round_))
    return made.execute(job).payload["start-loss"][:, 0]


def dropping() -> nn.Module:
    """With dropout and statistics, of which a loss before training is without the one, and by the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("executor", "model"),
    [("stacked", mlp), ("loop", mlp), ("fused", mlp), ("stacked", dropping), ("loop", dropping)],
)
def test_it_is_the_mean_over_all_examples_before_training(executor, model):
    """By other sums than the problem's own; and where the model is another, so is the loss."""
    problem = fedsim.supervised(**blobs(), model=model(), dtype=torch.float64, device=DEVICE)
    made = executor_of(problem, executor)
    for factor in (1.0, 0.5):
        params = problem.initial() * factor
        expected = problem.losses(params, EVERYBODY.to(DEVICE))[:, 0]
        torch.testing.assert_close(told(made, params), expected, rtol=0, atol=1e-12)


OTHERS: dict[str, dict[str, Any]] = {
    "ditto": {"lam": 0.3},
    "pfedme": {"lam": 2.0},
    "apfl": {"adaptive": True},
    "perfedavg": {"inner_lr": 0.1, "form": "hf"},
    "fedala": {},
    "moon": {},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_clients_with_more_than_one_model_tell_it_of_the_one_that_was_sent(kind):
    """In a second round, when their own is another; beside what else they do, at a pass and a number more."""
    problem = small_problem()
    made, params = executor_of(problem, kind=kind, **OTHERS[kind]), problem.initial()
    told(made, params)
    expected = problem.losses(params * 0.5, EVERYBODY.to(DEVICE))[:, 0]
    torch.testing.assert_close(told(made, params * 0.5, round_=1), expected, rtol=0, atol=1e-12)
    plain, asked = (made.assign(Order("train", EVERYBODY, {"params": params}, config)) for config in ({}, ASKED))
    assert asked.encoded == plain.encoded + 8
    torch.testing.assert_close(made.work(asked) - made.work(plain), (-(-SIZES // 4)).double() / 3)


@pytest.mark.parametrize("kind", ["ditto", "apfl"])
def test_the_model_for_all_is_what_it_is_without_their_own_where_losses_weigh(kind):
    client = {**OTHERS[kind], "kind": kind, "epochs": 2, "batch_size": 4}
    params = [
        fedsim.run(small_experiment(2, strategy="term", client=table), problem=small_problem(tested=True), save=False)
        for table in (client, {"kind": "sgd", "epochs": 2, "batch_size": 4})
    ]
    assert torch.equal(params[0].params, params[1].params)


def test_a_client_tells_alone_what_it_tells_among_others():
    problem = small_problem(torch.float32)
    made, params = executor_of(problem), problem.initial()
    together = told(made, params)
    for client in range(6):
        assert torch.equal(told(made, params, EVERYBODY[client : client + 1]), together[client : client + 1])


def test_where_a_part_of_the_model_stays_with_clients_it_is_of_each_ones_own():
    """In the second round of a client its head is the one that it ended the first with, and not yet the next."""
    whole = small_problem()
    problem = whole.keeping("head")
    made, private = executor_of(problem), problem.model.private
    params = problem.initial()
    told(made, params)
    models = made.models(params, EVERYBODY)
    assert not torch.equal(models[0], models[1])
    assert private is not None
    torch.testing.assert_close(
        told(made, params, round_=1), whole.losses(models, EVERYBODY.to(DEVICE))[:, 0], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("batch_size", [4, "full"])
def test_it_takes_one_number_and_a_pass_forward(batch_size):
    """Of 7, 3, 12, 1, 5 and 9 examples in batches of 4, or in one: a third of as many steps."""
    problem = small_problem()
    made, payload = executor_of(problem, batch_size=batch_size), {"params": problem.initial()}
    plain, asked = (made.assign(Order("train", EVERYBODY, payload, config)) for config in ({}, ASKED))
    assert asked.encoded == plain.encoded + 8
    assert asked.cost.reply["start-loss"] == Size(1, 64)
    assert plain.cost.effort is None
    batches = -(-SIZES // 4) if batch_size == 4 else torch.ones_like(SIZES)
    torch.testing.assert_close(asked.cost.effort, batches.double() / 3)
    torch.testing.assert_close(made.work(asked), plain.cost.steps.double() + batches.double() / 3)
    attacked = {"kind": "standard", "attack": {"kind": "pgd", "epsilon": 0.1, "steps": 2, "domain": "none"}}
    both = executor_of(problem, batch_size=batch_size, adversarial=attacked)
    beside = [both.assign(Order("train", EVERYBODY, payload, config)).cost.effort for config in ({}, ASKED)]
    torch.testing.assert_close(beside[1] - beside[0], batches.double() / 3)


def test_a_model_that_gives_no_number_makes_no_reply():
    problem = small_problem()
    made = executor_of(problem)
    job = made.assign(Order("train", EVERYBODY, {"params": problem.initial() * torch.nan}, ASKED))
    assert not bool(made.execute(job).finite.any())
