"""Rules that read a client's loss, or shorten steps by their own metric; and what of the loss they are told."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from oracles import (
    Q_APART,
    Given,
    Q,
    Quadratic,
    assert_finishes_early,
    assert_held,
    assert_stays_without_gradient,
    exact,
    path,
)
from torch import Tensor

import fedsim
from clients.optimizers.induced import Induced
from clients.optimizers.sania import Sania
from fedsim.client import Beginning, Optimizer, Remembered, Stack, Step, inner, options
from fedsim.core.errors import InputError
from fedsim.nets.descent import Rule
from fedsim.testing.problems import small_experiment, small_problem

ADAM_SQR = [[0.666667, 0.75, 0.75, 0.444444], [0.37644, 0.506642, 0.585554, -0.075396]]
ADAGRAD_SQR = [[0.666667, 0.75, 0.75, 0.444444], [0.521589, 0.628335, 0.667808, 0.18457]]
ORACLES = {
    # The authors' classes.
    "adam_sqr": (Sania(), 1.0, [*ADAM_SQR, [0.223299, 0.280687, 0.609294, -0.484701]]),
    "adagrad_sqr": (Sania(metric="adagrad_sqr"), 1.0, [*ADAGRAD_SQR, [0.433119, 0.546008, 0.631566, 0.013579]]),
    "plain": (
        Induced(),
        0.1,
        [
            [0.914286, 0.885714, 0.863201, 0.93844],
            [0.827984, 0.767715, 0.726981, 0.865031],
            [0.741274, 0.645653, 0.600737, 0.778999],
        ],
    ),
}
FIRST = {
    "log": (Induced(metric="log"), [[0.937438, 0.916584], [0.87134, 0.826845], [0.801318, 0.729761]]),
    "rms": (Induced(metric="rms"), [[0.941176, 0.941176], [0.881317, 0.88123], [0.82044, 0.820095]]),
}
"""Of the first client alone."""
EVERY = [
    *(Sania(), Sania(metric="adagrad_sqr"), Sania(root=True)),
    *(Induced(), Induced(metric="log"), Induced(metric="rms"), Induced(momentum=0.0, beta=0.0)),
]


@pytest.mark.parametrize("name", ORACLES)
def test_steps_are_those_of_the_authors_together_and_alone(name):
    optimizer, lr, wanted = ORACLES[name]
    for problem in (Q, Q_APART):
        assert_held(optimizer, wanted, lr=lr, problem=problem)


@pytest.mark.parametrize("name", FIRST)
def test_the_first_clients_steps_are_those_of_the_authors_alone_and_among_others(name):
    optimizer, wanted = FIRST[name]
    together = path(optimizer, [3, 3])
    torch.testing.assert_close(together[:, 0], exact(wanted), rtol=0, atol=6e-7)
    for client in range(2):
        assert torch.equal(path(optimizer, [3], clients=slice(client, client + 1))[:, 0], together[:, client])


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_who_has_finished_stays_and_who_has_no_gradient_stays(optimizer):
    assert_finishes_early(optimizer)
    assert_stays_without_gradient(optimizer)


def test_what_is_remembered_is_in_as_many_vectors_as_is_said():
    y = Stack([torch.zeros(3, 2)])
    for optimizer in EVERY:
        memory = optimizer.begin(y, Beginning(torch.ones(3)))
        assert sum(part.leaves[0].shape == (3, 2) for part in memory.values()) == optimizer.vectors
        assert all(len(part) == 3 for part in memory.values())


def scaled_by(units: Tensor) -> Quadratic:
    """Q of y = units z, as a function of z."""
    curvatures = units.view(2, 1) * Q.curvatures * units
    return Quadratic(curvatures, Q.least / units.view(2, 1), Q.start / units.view(2, 1), vector=True)


def test_units_of_the_parameters_do_not_matter_to_sania_without_a_floor():
    units = exact([100.0, 0.01])
    for optimizer, same in (
        (Sania(epsilon=1e-300), True),
        (Sania(metric="adagrad_sqr", epsilon=1e-300), True),
        (Sania(epsilon=1e-300, root=True), False),
    ):
        here, there = (path(optimizer, [8, 8], lr=1.0, problem=own) for own in (Q, scaled_by(units)))
        away = float((here - there * units).abs().max())
        assert (away < 1e-14) if same else (away > 1.0)


def test_steps_of_sania_are_right_to_the_last_digits_where_losses_are_small():
    """1 - sqrt(1 - x) of a small x is x / 2 + x^2 / 8: of x = 2 l / n = 1e-6 float32 alone has one digit."""
    y, gradient = (Stack([torch.full((1, 4), own)]) for own in (0.0, 1.0))
    optimizer = Sania()
    optimizer.step(optimizer.begin(y, Beginning(torch.ones(1))), y, Step(0, 1.0, gradient, torch.tensor([2e-6])))
    assert torch.allclose(y.leaves[0], torch.tensor(-5e-7), rtol=1e-6, atol=0)


def test_sania_stays_where_the_loss_is_none_or_below():
    for loss in (0.0, -1.0):
        y, optimizer = Stack([torch.zeros(1, 2)]), Sania()
        memory = optimizer.begin(y, Beginning(torch.ones(1)))
        optimizer.step(memory, y, Step(0, 1.0, Stack([torch.ones(1, 2)]), torch.tensor([loss])))
        assert not y.leaves[0].any()


def test_no_step_of_the_plain_metric_is_longer_than_its_bound():
    """lr / (2 sqrt xi), where |g| = 1 / sqrt xi: here 0.1 at |g| = 2."""
    optimizer, lengths = Induced(xi=0.25, momentum=0.0, beta=0.0), []
    for size in (0.5, 1.9, 2.0, 2.1, 10.0, 1000.0):
        (there,) = path(optimizer, [1], problem=Given(exact([[0.6, 0.8]]) * size))
        lengths.append(float((there - 1.0).norm()))
    assert max(lengths) == lengths[2] == pytest.approx(0.1, abs=1e-15)
    assert lengths == pytest.approx([0.1 * s / (1.0 + 0.25 * s * s) for s in (0.5, 1.9, 2.0, 2.1, 10.0, 1000.0)])


def test_the_logarithm_of_a_loss_below_0_is_refused():
    y, optimizer = Stack([torch.zeros(2, 2)]), Induced(metric="log")
    memory = optimizer.begin(y, Beginning(torch.ones(2)))
    optimizer.step(memory, y, Step(0, 1.0, Stack([torch.ones(2, 2)]), torch.tensor([0.0, 1.0])))
    assert not y.leaves[0][0].any()
    assert y.leaves[0][1].all()
    with pytest.raises(
        InputError,
        match=r"optimizer\.metric = log: a client's loss, with its corrections, is -0\.3, below 0; take plain",
    ):
        optimizer.step(memory, y, Step(1, 1.0, Stack([torch.ones(2, 2)]), torch.tensor([-0.3, 1.0])))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Induced, {"beta_rms": 0.5}),
        (Induced, {"metric": "log", "epsilon": 0.1}),
        (Sania, {"metric": "adagrad_sqr", "beta2": 0.5}),
    ],
)
def test_options_of_another_metric_are_refused(kind, given):
    option = list(given)[-1]
    with pytest.raises(InputError, match=rf"^{option} = .*only; leave it out"):
        kind(**given)


def test_a_value_is_what_the_corrected_gradient_is_of():
    """Its terms are squares, of which differences to both sides are exact."""
    generator = torch.Generator().manual_seed(0)
    rows, shift, start, along = (
        Stack([torch.randn(3, *shape, dtype=torch.float64, generator=generator) for shape in ((2, 2), (4,))])
        for _ in range(4)
    )
    rule, losses = Rule(Sania(), None, 0.7, 0.0, pull=0.3), torch.arange(3).double()
    ahead, behind = (Stack(torch._foreach_add(rows.leaves, along.leaves, alpha=way)) for way in (1.0, -1.0))
    slope = (rule.value(losses, ahead, shift, start) - rule.value(losses, behind, shift, start)) / 2
    torch.testing.assert_close(slope, inner(along, rule.corrected(rows, rows.zeros(), shift)))
    weights = rule.value(losses, start, shift, start) - losses
    torch.testing.assert_close(weights, 0.2 * start.flat().square().sum(1))
    assert rule.value(losses, rows, None, None) is losses


@options
class Marching(Optimizer):
    """Each number moves by 0.1, whatever the gradient; what it is told of losses is written down."""

    heard: ClassVar[list[tuple[Tensor, Tensor, Tensor]]] = []

    @property
    def needs(self):
        """The loss."""
        return frozenset({"loss"})

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        self.heard.append((step.loss.clone(), step.gradient.flat(), rows.flat()))
        torch._foreach_add_(rows.leaves, 0.1)


def told(strategy: object = "fedavg", **client: object) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The losses, gradients and places of all steps of two rounds of all clients."""
    Marching.heard.clear()
    table = {"kind": "sgd", "steps": 3, "batch_size": 2, "lr": 0.1, "optimizer": Marching(), **client}
    selection = {"kind": "uniform", "fraction": 1.0}
    made = small_experiment(rounds=2, strategy=strategy, client=table, selection=selection)
    fedsim.run(made, problem=small_problem(torch.float64), save=False)
    return list(Marching.heard)


def test_rules_are_told_the_loss_with_what_decay_and_corrections_add_to_it():
    """Everybody moves by 0.1 a step, from the server's model, which follows."""
    plain = told()
    assert len(plain) == 6
    d = plain[0][2].shape[1]
    far = [d * (0.1 * number) ** 2 for number in (0, 1, 2)] * 2
    for number, (bare, own, decayed) in enumerate(
        zip(plain, told(proximal_mu=0.5), told(weight_decay=0.3, proximal_mu=0.5), strict=True)
    ):
        assert torch.equal(bare[2], own[2])
        torch.testing.assert_close(own[0] - bare[0], torch.full_like(bare[0], 0.25 * far[number]))
        torch.testing.assert_close(decayed[0] - own[0], 0.15 * bare[2].square().sum(1))


def test_under_feddyn_the_loss_has_the_gradient_that_rules_are_given():
    """Between the first of three steps and the last, by Simpson's rule, where each is on all examples.

    In the second round clients are pulled by what they remember of the first, too.
    """
    own = told({"kind": "feddyn", "alpha": 40.0}, kind="feddyn", batch_size="full", weight_decay=3.0)
    for (one, g0, _), (_, g1, _), (other, g2, _) in (own[:3], own[3:]):
        slopes = (g0 + 4.0 * g1 + g2).sum(1)
        torch.testing.assert_close(other - one, 0.2 / 6.0 * slopes, rtol=1e-3, atol=0)
