"""Smoothness is that of quadratics, whose Hessians are known."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.problems.own_data import supervised
from fedsim.problems.smoothness import client_loss, smoothness
from fedsim.testing.problems import small_problem, small_quadratics


def test_of_quadratics():
    own = small_quadratics()
    problem = supervised(
        own.x, own.y, model=nn.Linear(3, 1, bias=False), clients=own.clients, loss="squared_error", dtype=torch.float64
    )
    hessians = np.array([own.terms(client)[0] for client in range(6)])
    each, whole = smoothness(problem)
    assert each.tolist() == pytest.approx(np.linalg.eigvalsh(hessians)[:, -1], rel=1e-4)
    assert whole == pytest.approx(np.linalg.eigvalsh(hessians.mean(axis=0))[-1], rel=1e-4)
    # A quadratic's Hessian is the same everywhere.
    assert smoothness(problem, 7 * torch.ones(3, dtype=torch.float64))[1] == pytest.approx(whole, rel=1e-6)


def test_of_a_network_it_is_that_of_the_model():
    """By differences of gradients along a direction no more than that is found."""
    problem = small_problem()
    each, whole = smoothness(problem)
    assert len(each) == 6
    assert float(each.max()) >= whole > 0
    x = problem.initial()
    for client in range(6):
        v = torch.sin(torch.arange(83, dtype=torch.float64))
        ends = [x + sign * 1e-5 * v / v.norm() for sign in (1, -1)]
        slopes = [torch.func.grad(lambda p, client=client: client_loss(problem, p, client))(end) for end in ends]
        assert float((slopes[0] - slopes[1]).norm()) / 2e-5 <= float(each[client]) * (1 + 1e-4)
