"""Finite differences: the moments of each kind of direction, and what is exact."""

from __future__ import annotations

import math

import pytest
import torch
from probing import GRADIENT, ORIGIN, D, cohort_of, estimated, linear, moments, opaque

from clients.zeroth_order.differences import Differences
from fedsim.core.errors import InputError
from fedsim.zeroth_order.directions import KINDS

MANY = 20_000
CURVATURE = torch.linspace(0.5, 3.0, D, dtype=torch.float64, device=GRADIENT.device)


def quadratic(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """1/2 sum_j h_j x_j^2 + g.x, of every client; its gradient is h x + g."""
    return 0.5 * x.square() @ CURVATURE + linear(clients, x)


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize(
    ("kind", "second"),
    # d = 10: d + 2, d, d, 1 + 7 (d - 1) / 6 for one direction, and d / q
    [
        ("gaussian", 12),
        ("rademacher", 10),
        ("sphere", 10),
        ("segmented", 11.5),
        ("orthonormal", 10),
        ("coordinate", 10),
    ],
)
def test_one_direction_has_the_moments_of_its_kind(kind: str, second: float, difference: str) -> None:
    """On a linear function a difference is exact, so the radius has no part; 20,000 draws, five standard errors."""
    estimator = Differences(directions=kind, difference=difference, count=1, mu=0.5)
    found = estimated(estimator, cohort_of(opaque(linear, MANY)), ORIGIN)
    mean, error, square, square_error = moments(found.gradient, GRADIENT)
    assert float((mean - GRADIENT).norm()) < 5 * error
    assert abs(square - second) < 5 * square_error
    assert square_error < 0.015 * second  # five of them are less than what d and d + 2 differ by


def test_several_directions_are_averaged() -> None:
    """1 + (12 - 1) / 4 = 3.75 for four gaussian ones, and 10 / 4 for orthonormal ones."""
    for kind, second, many in (("gaussian", 3.75, MANY), ("orthonormal", 2.5, 2000)):
        found = estimated(Differences(directions=kind, count=4), cohort_of(opaque(linear, many)), ORIGIN)
        mean, error, square, square_error = moments(found.gradient, GRADIENT)
        assert float((mean - GRADIENT).norm()) < 5 * error
        assert abs(square - second) < max(5 * square_error, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_central_differences_are_exact_on_quadratics(kind: str) -> None:
    """At mu = 0.1 the estimate is the one of exact slopes: what a tiny radius gives on the tangent at x."""
    x = torch.linspace(1.0, -1.0, D, dtype=torch.float64, device=GRADIENT.device)
    gradient = CURVATURE * x + GRADIENT
    central = Differences(directions=kind, difference="central", count=3, mu=0.1)
    curved = estimated(central, cohort_of(opaque(quadratic, 5)), x)
    straight = estimated(central, cohort_of(opaque(lambda _, at: at @ gradient, 5)), x)
    assert float((curved.gradient - straight.gradient).abs().max()) < 1e-12
    assert not torch.allclose(
        estimated(Differences(directions=kind, count=3, mu=0.1), cohort_of(opaque(quadratic, 5)), x).gradient,
        straight.gradient,
        rtol=1e-3,
    )


@pytest.mark.parametrize(("difference", "tolerance"), [("central", 1e-13), ("forward", 0.5 * 3.0 * 0.01 + 1e-9)])
def test_all_coordinates_give_the_whole_gradient(difference: str, tolerance: float) -> None:
    """Forward differences are off by h_j mu / 2, h_j being at most 3."""
    x = torch.linspace(1.0, -1.0, D, dtype=torch.float64, device=GRADIENT.device)
    estimator = Differences(directions="coordinate", difference=difference, count=D, mu=0.01)
    found = estimated(estimator, cohort_of(opaque(quadratic, 3)), x).gradient
    wanted = CURVATURE * x + GRADIENT
    assert float((found - wanted).abs().max()) <= tolerance
    if difference == "forward":
        assert torch.allclose(found, wanted + CURVATURE * 0.005, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dimension", [30, 100])
def test_rgf_has_the_mean_grad_over_d(dimension: int) -> None:
    """Orthonormal directions, plainly scaled: ghat = P g / q with P a projection on q of d dimensions.

    So E ghat = g / d, and q ghat.g / |g|^2 is the squared cosine, of mean q / d; five standard errors.
    """
    count, clients = 20, 400
    gradient = torch.linspace(-1.0, 2.0, dimension, dtype=torch.float64, device=GRADIENT.device)
    problem = opaque(lambda _, x: x @ gradient, clients, dimension)
    estimator = Differences(directions="orthonormal", count=count, scaling="plain")
    found = estimated(estimator, cohort_of(problem), torch.zeros_like(gradient)).gradient
    mean, error, _, _ = moments(found, gradient)
    assert float((mean - gradient / dimension).norm()) < 5 * error
    square = found @ gradient * count / gradient.square().sum()
    error = float(square.std()) / math.sqrt(clients)
    assert abs(float(square.mean()) - count / dimension) < 5 * error < 0.1 * count / dimension
    cosine = found @ gradient / (found.norm(dim=1) * gradient.norm())
    assert torch.allclose(cosine.square(), square, rtol=1e-9)
    assert abs(float(cosine.mean()) - math.sqrt(count / dimension)) < 0.05 * math.sqrt(count / dimension)


def test_the_value_is_that_of_the_point_or_the_mean_of_both_sides() -> None:
    """Around 0 a quadratic's mean over +-mu e_j, j = 1..d, is mu^2 (sum_j h_j) / (2 d)."""
    forward = estimated(Differences(count=2), cohort_of(opaque(quadratic, 2)), ORIGIN)
    assert forward.value.tolist() == [0.0, 0.0]
    central = Differences(difference="central", directions="coordinate", count=D, mu=0.1)
    value = float(CURVATURE.sum()) * 0.01 / (2 * D)
    assert torch.allclose(estimated(central, cohort_of(opaque(quadratic, 2)), ORIGIN).value, ORIGIN[:2] + value)


def test_more_directions_than_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match=r"client.estimator.count = 11: orthonormal directions are at most"):
        Differences(directions="orthonormal", count=11).check(D)
    Differences(directions="gaussian", count=11).check(D)
