"""Residual feedback: one evaluation, the last value, and what that does to mean and spread."""

from __future__ import annotations

import pytest
import torch
from probing import GRADIENT, ORIGIN, D, cohort_of, estimated, linear, moments, opaque

from clients.zeroth_order.residual import Residual
from fedsim.core.streams import Streams
from fedsim.zeroth_order.directions import draw

MANY = 20_000


@pytest.mark.parametrize(("kind", "factor"), [("gaussian", 1.0), ("sphere", float(D))])
def test_it_is_the_formula(kind: str, factor: float) -> None:
    """f(x_t + mu u_t) at two points, with the directions that the draws are named by."""
    cohort, estimator = cohort_of(opaque(linear, 3)), Residual(directions=kind, mu=0.5)
    points = (ORIGIN, ORIGIN + 0.3)
    u = [
        draw(kind, Streams(0), "directions/estimate", cohort.clients, 1, D, step=step, dtype=torch.float64)[:, 0]
        for step in (0, 1)
    ]
    values = [(point + 0.5 * along) @ GRADIENT for point, along in zip(points, u, strict=True)]
    first = estimated(estimator, cohort, points[0], step=0)
    assert torch.equal(first.gradient, torch.zeros_like(first.gradient))
    assert torch.allclose(first.value, values[0], rtol=1e-13)
    second = estimated(estimator, cohort, points[1], first.memory, step=1)
    wanted = ((values[1] - values[0]) / 0.5).unsqueeze(1) * u[1] * factor
    assert torch.allclose(second.gradient, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(second.memory["last"], values[1], rtol=1e-13)


@pytest.mark.parametrize(
    ("kind", "last", "second"),
    [
        # gaussian: E (g.u)^2 |u|^2 / |g|^2 = d + 2, and a residual b = last / (mu |g|) adds b^2 E|u|^2 = b^2 d
        ("gaussian", 0.0, D + 2),
        ("gaussian", 1.0, D + 2 + D),
        # sphere: d, and d^2 b^2
        ("sphere", 0.0, D),
        ("sphere", 0.5, D + D**2 / 4),
    ],
)
def test_the_last_value_costs_variance_and_no_bias(kind: str, last: float, second: float) -> None:
    """At the origin, where f = 0, the last value is `last` mu |g| away; 20,000 clients, five standard errors."""
    cohort, mu = cohort_of(opaque(linear, MANY)), 0.1
    away = torch.full((MANY,), last * mu, dtype=torch.float64, device=ORIGIN.device) * GRADIENT.norm()
    memory = {"last": away, "known": torch.ones_like(away)}
    found = estimated(Residual(directions=kind, mu=mu), cohort, ORIGIN, memory)
    mean, error, square, square_error = moments(found.gradient, GRADIENT)
    assert float((mean - GRADIENT).norm()) < 5 * error
    assert abs(square - second) < 5 * square_error
    assert square_error < 0.02 * second


def test_what_was_before_the_first_value_has_no_part() -> None:
    """Zeros are remembered at first, and 0 is no value of f: here f = 100 + g.x."""
    cohort = cohort_of(opaque(lambda clients, x: 100.0 + linear(clients, x), 4))
    found = estimated(Residual(mu=0.1), cohort, ORIGIN)
    assert not found.gradient.any()
    after = estimated(Residual(mu=0.1), cohort, ORIGIN, found.memory, step=1)
    assert 0 < float(after.gradient.norm(dim=1).max()) < 200
