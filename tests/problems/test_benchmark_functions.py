"""Benchmark functions: closed forms, known minima, gradients, and rows that do not depend on each other."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems import benchmark_functions
from fedsim.problems.benchmark_functions import SHAPES, BenchmarkFunctions, Family
from fedsim.running.build import setting_of
from fedsim.testing.problems import small_experiment


def built(seed=3, precision="float64", **options):
    """The problem of these options, on the CPU."""
    engine = {"device": "cpu", "precision": precision}
    return BenchmarkFunctions(**options).build(setting_of(small_experiment(seed=seed, engine=engine)))


def ask(problem, clients, x):
    return problem.query(torch.tensor(clients), x, Streams(0), 1, 1)


def mean(problem, point):
    return problem.evaluate(torch.as_tensor(point, dtype=problem.dtype), clients=False)["value"]


def family(problem) -> Family:
    return problem.functions.function


# The quadratic


@pytest.mark.parametrize(("clients", "heterogeneity"), [(1, 5.0), (5, 0.0), (5, 0.5), (5, 50.0), (12, 5.0)])
def test_quadratic_mean_is_the_same_whatever_clients_and_heterogeneity(clients, heterogeneity):
    problem = built(dimension=7, clients=clients, heterogeneity=heterogeneity)
    point = np.linspace(0.1, 0.9, 7)
    u = -10 + 20 * point
    assert mean(problem, point) == pytest.approx((0.1 / 7) * ((u**2).sum() + u.sum() + 1), abs=1e-12)
    # u = -0.5: (0.1/d)(d/4 - d/2 + 1) = 0.1/d - 0.025.
    lowest = problem.evaluate(torch.full((7,), 0.475, dtype=torch.float64), clients=False)
    assert lowest["value"] == pytest.approx(0.1 / 7 - 0.025, abs=1e-12)
    assert lowest["gap"] == pytest.approx(0.0, abs=1e-12)
    everywhere = problem.gradients(torch.arange(clients), torch.full((clients, 1, 7), 0.475, dtype=torch.float64)).mean(
        0
    )
    # Of the order of the coefficients, 50, times 20 * 0.1/7, times the rounding 1e-16.
    assert everywhere.abs().max() < 1e-13


@pytest.mark.parametrize("heterogeneity", [0.5, 5.0, 50.0])
def test_coefficients_are_bounded_below_and_average_to_one(heterogeneity):
    clients = 5
    found = family(built(dimension=300, clients=clients, heterogeneity=heterogeneity))
    for coefficients in (found.scale, found.shift):
        assert torch.allclose(coefficients.mean(0), torch.ones(300, dtype=torch.float64), atol=1e-13)
        least = 1 - heterogeneity / clients
        assert coefficients.min() >= least - 1e-13
        # With 1/5 as concentration most shares are near 0, so the bound is nearly met: 1500 draws.
        assert coefficients.min() < least + 1e-3 * heterogeneity
    assert not torch.equal(found.scale, found.shift)
    # Var a_ij = (1/N)(1 - 1/N) / 2 = 0.08; its estimate from 1500 shares, spread over [0, 1], is good to 10 %.
    assert found.scale.var().item() == pytest.approx(0.08 * heterogeneity**2, rel=0.15)


def test_a_client_has_its_own_quadratic():
    problem = built(dimension=4, clients=3)
    found, x = family(problem), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    u = -10 + 20 * x
    for client in range(3):
        by_hand = 0.1 / 4 * ((found.scale[client] * u**2).sum() + (found.shift[client] * u).sum() + 1)
        assert ask(problem, [client], x.view(1, 1, 4)).item() == pytest.approx(by_hand.item(), rel=1e-13)


# The others


def plain(name, v):
    """The functions by loops over coordinates, as they are written in books."""
    d = len(v)
    if name == "ackley":
        radius, waves = math.sqrt(sum(e * e for e in v) / d), sum(math.cos(math.pi * e) for e in v) / d
        return 20 - 20 * math.exp(-0.2 * radius) + math.e - math.exp(waves)
    if name == "levy":
        w = [1 + (e - 1) / 4 for e in v]
        inner = sum((w[j] - 1) ** 2 * (1 + 10 * math.sin(math.pi * w[j] + 1) ** 2) for j in range(d - 1))
        last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
        return math.sin(math.pi * w[0]) ** 2 + inner + last
    if name == "rosenbrock":
        terms = (100 * (v[j + 1] - v[j] ** 2) ** 2 + (1 - v[j]) ** 2 for j in range(d - 1))
        return sum(terms) / (100 * (d - 1))
    return 0.05 / d * sum(e * e + 10 - 10 * math.cos(2 * math.pi * e) for e in v)


OTHERS = [name for name in SHAPES if name != "quadratic"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("heterogeneity", [0.0, 2.0])
def test_others_are_the_books_after_scale_and_shift(name, heterogeneity):
    problem = built(function=name, dimension=6, clients=4, heterogeneity=heterogeneity)
    found, x = family(problem), torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    values = ask(problem, [0, 1, 2, 3], x.expand(4, 1, 6))[:, 0]
    for client in range(4):
        v = (found.scale[client] * (-10 + 20 * x - found.shift[client])).tolist()
        assert values[client].item() == pytest.approx(plain(name, v), rel=1e-12)
    assert (values == values[0]).all().item() == (heterogeneity == 0)
    assert found.scale.mean().item() == pytest.approx(0.1)
    assert found.shift.mean().item() == pytest.approx(0.0, abs=1e-13)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("equal", [{"heterogeneity": 0.0}, {"clients": 1}])
def test_minimum_is_known_where_clients_are_equal(name, equal):
    problem = built(function=name, dimension=5, **equal)
    # v = 0.1 u is 0 at x = 0.5, and 1 at x = 1.
    lowest = 0.5 if name in ("ackley", "rastrigin") else 1.0
    point = torch.full((5,), lowest, dtype=torch.float64)
    assert problem.evaluate(point, clients=False)["gap"] == pytest.approx(0.0, abs=1e-13)
    step = torch.full((5,), 0.01 if lowest < 1 else -0.01, dtype=torch.float64)
    assert problem.evaluate(point + step, clients=False)["gap"] > 1e-6
    assert built(function=name, dimension=5).optimum is None


@pytest.mark.parametrize(("name", "most"), [("rosenbrock", 4.04), ("rastrigin", 1.05), ("quadratic", 11.1)])
def test_values_are_of_order_one_where_clients_are_equal(name, most):
    # |v| <= 1: rosenbrock (400 + 4)/100, rastrigin 0.05 (1 + 20); quadratic |u| <= 10: 0.1 (100 + 10 + 1).
    problem = built(function=name, dimension=50, heterogeneity=0.0, clients=2)
    x = Streams(1).uniform("points", torch.arange(2), (500, 50), dtype=torch.float64)
    values = ask(problem, [0, 1], x.round())
    assert values.abs().max() <= most
    assert 0.1 < ask(problem, [0, 1], x).mean() < most


# All of them


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_central_differences(name):
    problem = built(function=name, dimension=6, clients=3, heterogeneity=1.0)
    clients = torch.arange(3)
    x = Streams(2).uniform("points", clients, (2, 6), dtype=torch.float64) * 0.8 + 0.1
    slopes, step = problem.gradients(clients, x), 1e-6
    for coordinate in range(6):
        along = torch.zeros(6, dtype=torch.float64)
        along[coordinate] = step
        difference = (ask(problem, [0, 1, 2], x + along) - ask(problem, [0, 1, 2], x - along)) / (2 * step)
        # Errors: step^2 times a third derivative of up to 1e5, and 1e-16 times values of up to 1e2 over the step.
        assert torch.allclose(slopes[..., coordinate], difference, rtol=1e-5, atol=1e-6)
    assert not slopes.requires_grad


@pytest.mark.parametrize("name", SHAPES)
def test_outside_the_box_is_as_at_its_edge(name):
    problem = built(function=name, dimension=3, clients=2)
    outside = torch.tensor([[[-0.5, 0.3, 7.0]]], dtype=torch.float64).expand(2, 1, 3)
    edge = torch.tensor([[[0.0, 0.3, 1.0]]], dtype=torch.float64).expand(2, 1, 3)
    assert torch.equal(ask(problem, [0, 1], outside), ask(problem, [0, 1], edge))
    slopes = problem.gradients(torch.arange(2), outside)
    assert (slopes[..., [0, 2]] == 0).all()
    assert (slopes[..., 1] != 0).all()


def test_ackley_has_a_finite_gradient_at_its_tip():
    problem = built(function="ackley", dimension=3, heterogeneity=0.0)
    found = problem.gradients(torch.tensor([0]), torch.full((1, 1, 3), 0.5, dtype=torch.float64))
    assert torch.equal(found, torch.zeros(1, 1, 3, dtype=torch.float64))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("dimension", [2, 7, 300, 40_001])
@pytest.mark.parametrize("name", SHAPES)
def test_a_value_does_not_depend_on_who_else_is_evaluated(name, dimension, precision, monkeypatch):
    # 40,001 is more than the 32,768 numbers from which PyTorch shares one sum among cores.
    problem = built(function=name, dimension=dimension, clients=5, precision=precision)
    clients = torch.tensor([4, 0, 3, 1, 2])
    x = Streams(4).uniform("points", clients, (3, dimension), dtype=problem.dtype)
    together = ask(problem, clients.tolist(), x)
    assert torch.isfinite(together).all()
    for row, client in enumerate(clients.tolist()):
        assert torch.equal(ask(problem, [client], x[row : row + 1]), together[row : row + 1])
        for query in range(3):
            alone = x[row : row + 1, query : query + 1]
            assert torch.equal(ask(problem, [client], alone), together[row : row + 1, query : query + 1])
    monkeypatch.setattr(benchmark_functions, "AT_ONCE", 10 * dimension)  # two points of five clients at a time
    assert torch.equal(ask(problem, clients.tolist(), x), together)


def test_memory_is_bounded_by_points_at_a_time(monkeypatch):
    seen = []

    def watched(u, s, o):
        seen.append(tuple(u.shape))
        return SHAPES["quadratic"](u, s, o)

    found = dataclasses.replace(family(built(dimension=4, clients=5)), shape=watched)
    monkeypatch.setattr(benchmark_functions, "AT_ONCE", 45)
    # 5 clients of 4 coordinates: 20 numbers a point, so 2 points at a time; never less than one.
    assert found(torch.arange(5), torch.zeros(5, 5, 4, dtype=torch.float64)).shape == (5, 5)
    assert seen == [(5, 2, 4), (5, 2, 4), (5, 1, 4)]
    monkeypatch.setattr(benchmark_functions, "AT_ONCE", 1)
    assert found(torch.arange(5), torch.zeros(5, 2, 4, dtype=torch.float64)).shape == (5, 2)


def test_the_seed_decides_coefficients_and_start():
    first, again, other = built(seed=1), built(seed=1), built(seed=2)
    assert torch.equal(family(first).scale, family(again).scale)
    assert torch.equal(first.initial(), again.initial())
    assert not torch.equal(family(first).scale, family(other).scale)
    assert not torch.equal(family(first).shift, family(other).shift)
    start = first.initial()
    assert not torch.equal(start, other.initial())
    assert start.shape == (300,)
    # U[0, 1]: mean 1/2 within 4 standard deviations of 1/sqrt(12 * 300) = 0.017.
    assert start.mean().item() == pytest.approx(0.5, abs=0.07)
    assert start.min() >= 0
    assert start.max() <= 1
    assert first.bounds == (0.0, 1.0)


def test_options_reach_the_problem():
    problem = built(start=0.25, dimension=3, clients=2, noise=0.5, precision="float32")
    assert torch.equal(problem.initial(), torch.full((3,), 0.25))
    assert (problem.num_clients, problem.dimension, problem.noise, problem.dtype) == (2, 3, 0.5, torch.float32)
    assert problem.differentiable
    assert built(start=0, dimension=1, clients=1).initial().tolist() == [0.0]


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "rosenbrock"])
def test_one_coordinate_is_enough(name):
    problem = built(function=name, dimension=1, clients=2)
    assert torch.isfinite(ask(problem, [0, 1], torch.full((2, 3, 1), 0.3, dtype=torch.float64))).all()


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        ({"function": "sphere"}, "function"),
        ({"dimension": 0}, "dimension"),
        ({"function": "rosenbrock", "dimension": 1}, "dimension"),
        ({"clients": 0}, "clients"),
        ({"heterogeneity": -1.0}, "heterogeneity"),
        ({"heterogeneity": math.nan}, "heterogeneity"),
        ({"noise": -0.1}, "noise"),
        ({"start": 1.5}, "start"),
        ({"start": "middle"}, "start"),
        ({"portion": 1}, "portion"),
    ],
)
def test_bad_options_are_refused_by_name(options, blamed):
    with pytest.raises(InputError) as caught:
        BenchmarkFunctions(**options)
    assert str(caught.value).startswith(blamed)
    assert "\n" not in str(caught.value)
