"""Rules of a step on two quadratic functions at once, each alone, and against numbers of the rules' official packages.

f_c(y) = (y - s)' A_c (y - s) / 2 from y = (1, 1). A client's numbers are those that it has alone, to the bit, and who
has finished stays where it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import assert_finishes_early, assert_held, assert_stays_without_gradient, path
from torch import Tensor

import fedsim
from clients.optimizers.adam import Adam
from clients.optimizers.lion import Lion
from clients.optimizers.sgd import Sgd
from fedsim.client import Beginning, Optimizer, Remembered, Stack, Step, options
from fedsim.core.errors import BrokenPromiseError, InputError
from fedsim.nets.descent import Rule
from fedsim.testing.problems import small_experiment, small_problem

ORACLES = {
    # Lion of pytorch_optimizer, exactly.
    "lion": (Lion(), 0.5, [[0.85] * 4, [0.7075] * 4, [0.572125] * 4]),
    # By hand: g = (3, 4) and (4, 1.8), then (1.7, 2.9) and (0, 1.62); v = g, then 0.5 v + g.
    "momentum": (Sgd(momentum=0.5), 0.0, [[0.7, 0.6, 0.6, 0.82], [0.38, 0.11, 0.4, 0.568]]),
    "nesterov": (Sgd(momentum=0.5, nesterov=True), 0.0, [[0.55, 0.4, 0.4, 0.73]]),
}
"""A rule, a weight decay, and where the first client and the second are after each step."""


@pytest.mark.parametrize("name", ORACLES)
def test_steps_are_those_of_the_official_package_together_and_alone(name):
    optimizer, decay, wanted = ORACLES[name]
    assert_held(optimizer, wanted, decay=decay)


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9), Adam(), Lion()], ids=lambda own: type(own).__name__)
def test_who_has_finished_stays_and_the_others_go_on_as_if_alone(optimizer):
    assert_finishes_early(optimizer)


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9), Adam(), Lion()], ids=lambda own: type(own).__name__)
def test_who_has_no_gradient_stays(optimizer):
    assert_stays_without_gradient(optimizer)


def test_what_is_remembered_is_in_as_many_vectors_as_is_said():
    y = Stack([torch.zeros(3, 2)])
    for optimizer in (Sgd(momentum=0.9), Adam(), Lion()):
        assert len(optimizer.begin(y, Beginning(torch.ones(3)))) == optimizer.vectors > 0
    assert Sgd().begin(y, Beginning(torch.ones(3))) == {}


def test_a_decay_of_lion_bounds_each_number():
    """|y| <= 1 / decay is never left, and entered geometrically (Chen et al. 2023); here to its corner."""
    rule, y, gradient = (
        Rule(Lion(), None, 0.0, 0.5),
        Stack([torch.full((1, 2), 10.0, dtype=torch.float64)]),
        (3.0, -2.0),
    )
    stepper, seen = rule.stepper(y, Beginning(torch.ones(1))), []
    for number in range(200):
        stepper.take(y, Step(number, 0.1, Stack([torch.tensor([gradient], dtype=torch.float64)])))
        seen.append(y.leaves[0][0].clone())
    assert torch.allclose(torch.stack(seen[:2]), torch.tensor([[9.4, 9.6], [8.83, 9.22]], dtype=torch.float64))
    assert torch.allclose(seen[-1], torch.tensor([-1.999579, 2.00028], dtype=torch.float64), rtol=0, atol=6e-6)


def test_a_step_by_itself_is_what_adam_makes_it_whatever_the_gradient():
    (once,) = path(Adam(), [1, 1])
    assert torch.allclose(once, torch.full((2, 2), 0.9, dtype=torch.float64))


@options
class Rooted(Optimizer):
    """y <- y - lr times the root of how far m is from 0, with its sign: a rule of somebody's own, not compiled."""

    share: float = 0.5

    @property
    def vectors(self) -> float:
        """m."""
        return 1.0

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """m, zeros."""
        return {"m": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        mean = memory["m"].mul_(self.share).add_(step.gradient, 1.0 - self.share)
        rows.add_(Stack([leaf.sign() * leaf.abs().sqrt() for leaf in mean.leaves]), -step.lr)


def trained(executor: str, **client: object) -> Tensor:
    """Where a server of clients with this rule is after three rounds."""
    table = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.05, "optimizer": Rooted(), **client}
    made = small_experiment(rounds=3, client=table, engine={"executor": executor})
    return fedsim.run(made, problem=small_problem(), save=False).params


@pytest.mark.usefixtures("forked_workers")
def test_a_rule_of_ones_own_runs_under_every_executor():
    """Compiled networks take its steps one by one, for nothing compiles them."""
    stacked = trained("stacked")
    for executor in ("loop", "fused", "process"):
        assert torch.allclose(trained(executor), stacked, rtol=0, atol=1e-12)
    assert not torch.allclose(trained("stacked", optimizer=Rooted(share=0.9)), stacked, rtol=0, atol=1e-3)


def test_fednova_knows_no_weights_of_such_a_rule():
    with pytest.raises(InputError, match=r"client\.optimizer = .*: FedNova knows sgd, with momentum"):
        fedsim.experiment(strategy="fednova", client={"kind": "sgd", "epochs": 1, "optimizer": Rooted()})


@options
class Mistaken(Rooted):
    """Returns what can be no memory, or no end."""

    fault: str = "begin"

    @property
    def needs(self) -> Any:
        """An end of its own."""
        return frozenset({"end"})

    def begin(self, y: Stack, beginning: Beginning) -> Any:
        """Tensors, no stacks."""
        return {"m": y.leaves} if self.fault == "begin" else super().begin(y, beginning)

    def end(self, memory: Remembered, rows: Stack) -> Any:
        """One leaf of it."""
        return Stack(rows.leaves[:1])


@pytest.mark.parametrize(("fault", "said"), [("begin", "`begin` returns no stacks"), ("end", "`end` returns no stack")])
def test_what_is_no_memory_or_no_end_is_told_in_a_line(fault, said):
    with pytest.raises(BrokenPromiseError, match=rf"^client\.optimizer\.kind = .*Mistaken: {said}"):
        trained("stacked", optimizer=Mistaken(fault=fault))
