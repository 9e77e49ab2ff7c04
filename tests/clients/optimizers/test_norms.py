"""Rules whose step depends on the norm of a client's gradient: one number a client, over all of its parameters."""

from __future__ import annotations

import pytest
import torch
from oracles import Q_APART, Given, Q, W, assert_finishes_early, assert_held, assert_stays_without_gradient, exact, path

from clients.optimizers.adagrad_norm import AdaGradNorm
from clients.optimizers.normalised import Normalised
from fedsim.client import Beginning, Stack


def test_adagrad_norm_is_that_of_its_authors_together_and_alone():
    """Where one leaf is all parameters, and where each number is a leaf of its own."""
    wanted = [[0.40012, 0.20016, 0.088315, 0.589742], [0.32498, -0.137615, 0.831815, 0.387807]]
    for problem in (Q, Q_APART):
        assert_held(AdaGradNorm(), [*wanted, [0.35491, -0.330757, 0.516787, 0.226388]], lr=1.0, problem=problem)


def test_normalised_steps_have_the_length_of_the_rate():
    """By hand: g = (3, 4), so that y goes to (0.94, 0.92), where g = (1.02 + 1.72, 0.34 + 3.44) = (2.74, 3.78)."""
    once, twice = path(Normalised(), [2], clients=slice(0, 1))[:, 0]
    assert torch.allclose(once, exact([0.94, 0.92]))
    assert torch.allclose(twice, exact([0.94 - 0.274 / 4.668618, 0.92 - 0.378 / 4.668618]), atol=1e-6)
    for problem in (Q, Q_APART, W):
        walked = path(Normalised(), [5, 5], problem=problem)
        start = problem.start.flatten()
        lengths = torch.cat([walked[:1] - start, walked.diff(dim=0)]).norm(dim=2)
        assert torch.allclose(lengths, exact(0.1))


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_factor_of_the_loss_changes_no_normalised_step(factor):
    scaled = [Given(exact([[3.0, 4.0], [-1.0, 0.5]]) * own) for own in (1.0, factor)]
    one, other = (path(Normalised(), [2], problem=problem) for problem in scaled)
    assert torch.allclose(one, other, rtol=1e-14)


def test_no_step_of_adagrad_norm_is_longer_than_the_rate():
    noisy = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    walked = path(AdaGradNorm(initial=0.0), [30], problem=Given(noisy))[:, 0]
    assert float(walked.diff(dim=0).norm(dim=1).max()) <= 0.1
    assert float((walked[0] - 1.0).norm()) == pytest.approx(0.1)


@pytest.mark.parametrize("optimizer", [AdaGradNorm(), AdaGradNorm(initial=0.0), Normalised()], ids=str)
def test_who_has_finished_stays_and_who_has_no_gradient_stays(optimizer):
    assert_finishes_early(optimizer)
    assert_stays_without_gradient(optimizer)


def test_adagrad_norm_remembers_one_number_a_client():
    (square,) = AdaGradNorm().begin(Stack([torch.zeros(3, 2), torch.zeros(3)]), Beginning(torch.ones(3)))["v"].leaves
    assert square.shape == (3,)
