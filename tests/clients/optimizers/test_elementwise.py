"""Rules that treat each number by itself: the numbers of their official packages, and what bounds them."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import Given, P, assert_finishes_early, assert_held, assert_stays_without_gradient, exact, path

from clients.optimizers.adabelief import AdaBelief
from clients.optimizers.adagrad import AdaGrad
from clients.optimizers.adam import Adam
from clients.optimizers.amsgrad import AmsGrad
from clients.optimizers.diffgrad import DiffGrad
from fedsim.client import Beginning, Stack, Step

# Of torch.optim and of the packages adabelief-pytorch and torch-optimizer.
ORACLES = {
    "adam": (
        Adam(beta2=0.999),
        [[0.9] * 4, [0.800626, 0.800279, 0.801742, 0.80019], [0.702458, 0.701057, 0.707395, 0.700712]],
    ),
    "amsgrad": (
        AmsGrad(beta2=0.5),
        [[0.9] * 4, [0.798188, 0.798962, 0.796816, 0.799228], [0.696888, 0.696123, 0.703189, 0.697154]],
    ),
    "adabelief": (
        AdaBelief(epsilon=1e-8),
        [[0.888889] * 4, [0.773078, 0.772515, 0.774965, 0.772375], [0.653938, 0.651339, 0.663525, 0.650727]],
    ),
    "diffgrad": (
        DiffGrad(),
        [
            [0.904743, 0.901799, 0.901799, 0.914185],
            [0.84561, 0.844712, 0.830276, 0.862123],
            [0.790474, 0.790694, 0.765983, 0.810991],
        ],
    ),
}
"""A rule, and where the first client and the second are after each step."""
# On what a server has averaged: with rates of 0.1 and betas of 0.9 and 0.99.
SERVERS = {
    "amsgrad": (AmsGrad(epsilon=1e-3, variant="paper"), [1.099667, 1.09975, 1.153498, 1.201709, 1.208279, 1.295958]),
    "adabelief": (AdaBelief(beta2=0.99, epsilon=1e-8), [1.111111, 1.111111, 1.154186, 1.196068, 1.19192, 1.263467]),
    "diffgrad": (DiffGrad(beta2=0.99, epsilon=1e-3), [1.094941, 1.097956, 1.13419, 1.171438, 1.161043, 1.20749]),
}
EVERY = [
    *(Adam(decay="decoupled"), AmsGrad(), AmsGrad(variant="paper"), AdaBelief(), DiffGrad()),
    *(AdaGrad(), AdaGrad(initial=0.0)),
]


@pytest.mark.parametrize("name", ORACLES)
def test_steps_are_those_of_the_official_package_together_and_alone(name):
    assert_held(*ORACLES[name])


@pytest.mark.parametrize("name", SERVERS)
def test_steps_on_averaged_changes_are_those_of_the_official_package(name):
    assert_held(*SERVERS[name], problem=P)


def test_adam_without_a_maximum_goes_further_where_it_bites():
    third = exact([[0.692993, 0.696123], [0.687073, 0.697154]])
    torch.testing.assert_close(path(Adam(beta2=0.5), [3, 3])[-1], third, rtol=0, atol=6e-7)


@pytest.mark.parametrize(
    ("optimizer", "official"),
    [
        (Adam(decay="decoupled"), lambda y: torch.optim.AdamW([y], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)),
        (Adam(), lambda y: torch.optim.Adam([y], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)),
        (AmsGrad(), lambda y: torch.optim.Adam([y], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5, amsgrad=True)),
        (AdaGrad(), lambda y: torch.optim.Adagrad([y], lr=0.1, initial_accumulator_value=0.01, weight_decay=0.5)),
    ],
    ids=["adamw", "adam", "amsgrad", "adagrad"],
)
def test_with_a_decay_rules_are_those_of_torch(optimizer, official):
    """Of constant gradients (3, 4), but for the decay."""
    y = torch.ones(2, dtype=torch.float64, requires_grad=True)
    own, wanted = official(y), []
    for _ in range(5):
        y.grad = exact([3.0, 4.0])
        own.step()
        wanted.append(y.detach().clone())
    found = path(optimizer, [5], problem=Given(exact([[3.0, 4.0]] * 5)), decay=0.5)
    torch.testing.assert_close(found[:, 0], torch.stack(wanted), rtol=0, atol=1e-14)


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_who_has_finished_stays_and_who_has_no_gradient_stays(optimizer):
    assert_finishes_early(optimizer)
    assert_stays_without_gradient(optimizer)


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_what_is_remembered_is_in_as_many_vectors_as_is_said(optimizer):
    assert len(optimizer.begin(Stack([torch.zeros(3, 2)]), Beginning(torch.ones(3)))) == optimizer.vectors


def projected(optimizer):
    """Where it ends on [-1, 1] from 0 after 6000 gradients of 4, -1, -1 again and again, at rates 0.5 / sqrt t."""
    y = Stack([torch.zeros(1, 1, dtype=torch.float64)])
    memory = optimizer.begin(y, Beginning(torch.ones(1)))
    for number in range(6000):
        gradient = Stack([torch.full_like(y.leaves[0], -1.0 if number % 3 else 4.0)])
        optimizer.step(memory, y, Step(number, 0.5 / math.sqrt(number + 1), gradient))
        y.leaves[0].clamp_(-1.0, 1.0)
    return float(y.leaves[0])


def test_adam_ends_at_the_worst_point_of_the_counterexample_and_amsgrad_at_the_best():
    """The sum of three gradients is 2, so -1 is best (Reddi, Kale and Kumar 2018, theorem 1)."""
    options = {"beta1": 0.0, "beta2": 1 / 17, "epsilon": 1e-12}
    assert projected(Adam(**options)) == 1.0
    assert projected(AmsGrad(**options, variant="paper")) == pytest.approx(-0.99668, abs=1e-5)


def test_a_constant_gradient_makes_adabeliefs_steps_grow_and_a_large_epsilon_bounds_them():
    """About lr sqrt(t / 4.26): 1.6, 5 and 20 lr at 10, 100 and 1000."""
    constant = Given(exact([[3.0, 4.0]] * 1001))
    walked = path(AdaBelief(), [1001], problem=constant)[:, 0]
    sizes = (walked[:-1] - walked[1:])[:, 0] / 0.1  # from the second step on
    assert [round(float(sizes[t]), 1) for t in (8, 98, 998)] == [1.6, 5.0, 20.0]
    bounded = path(AdaBelief(epsilon=1.0), [100], problem=constant)[:, 0]
    assert float((bounded[:-1] - bounded[1:]).max()) < 0.1 * 4


def test_diffgrad_steps_half_to_all_of_adams_way():
    """With Adam's epsilon before the correction of v; exactly half from the second step of a constant gradient on."""
    noisy = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gradients, most in ((noisy, 1.0), (exact([[3.0, 4.0]] * 30), 0.5)):
        problem, epsilon = Given(gradients), 1e-300
        own = path(DiffGrad(epsilon=epsilon), [30], problem=problem)[:, 0].diff(dim=0)
        full = path(Adam(beta2=0.999, epsilon=epsilon), [30], problem=problem)[:, 0].diff(dim=0)
        share = own / full
        assert 0.5 - 1e-12 < float(share.min()) <= float(share.max()) < most + 1e-12
    assert float(own[0, 0]) == pytest.approx(-0.05)


def test_no_number_moves_by_more_than_the_rate_under_adagrad():
    noisy = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    walked = path(AdaGrad(initial=0.0), [30], problem=Given(noisy))[:, 0]
    assert float(walked.diff(dim=0).abs().max()) <= 0.1
    assert torch.allclose((walked[0] - 1.0).abs(), exact(0.1))
