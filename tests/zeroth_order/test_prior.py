"""Prior-guided RGF: the best weight of the guess, and what the guess is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from probing import GRADIENT, ORIGIN, D, cohort_of, estimated, linear, opaque
from torch import Tensor

from clients.zeroth_order.prior import Prior, optimal_weight
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.zeroth_order.directions import draw

UNIT = GRADIENT / GRADIENT.norm()


def leaning(cosine: float) -> Tensor:
    """A unit vector at this cosine from the gradient."""
    across = torch.zeros_like(UNIT)
    across[0] = 1.0
    across -= (across @ UNIT) * UNIT
    return cosine * UNIT + math.sqrt(1.0 - cosine**2) * across / across.norm()


def quality(weight: float, square: float, count: int, dimension: int) -> float:
    """(E ghat.g)^2 / (|g|^2 E|ghat|^2) for |g| = 1, with a^2 = `square` and n = d - 1 dimensions across v.

    g = a v + sqrt(1 - a^2) w, and p = g.u = sqrt(lambda) a + sqrt((1 - lambda) (1 - a^2)) e.w with E (e.w)^2 = 1/n:
    E ghat.g = E p^2 = M = lambda a^2 + (1 - lambda) (1 - a^2) / n
    E p u = lambda a v + ((1 - lambda) / n) sqrt(1 - a^2) w
    E|ghat|^2 = M / q + (1 - 1/q) |E p u|^2
    """
    n = dimension - 1
    mean = weight * square + (1 - weight) * (1 - square) / n
    along = weight**2 * square + ((1 - weight) / n) ** 2 * (1 - square)
    return mean**2 / (mean / count + (1 - 1 / count) * along) if mean else 0.0


@pytest.mark.parametrize("dimension", [5, 83, 1000])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_weight_is_the_best_of_a_grid(dimension: int, count: int) -> None:
    """Below 1 / (d + 2q - 2) it is 0 and above (2q - 1) / (d + 2q - 2) 1; between it beats every other of 2,001."""
    reach = dimension + 2 * count - 2
    low, high = 1 / reach, (2 * count - 1) / reach
    inside = [low + share * (high - low) for share in (0.05, 0.3, 0.7, 0.95)]
    grid = [step / 2000 for step in range(2001)]
    squares = [0.0, 0.9 * low, *inside, min(1.1 * high, 1.0), 1.0]
    found = optimal_weight(torch.tensor(squares, dtype=torch.float64), dimension, count).tolist()
    for square, weight in zip(squares, found, strict=True):
        best = max(quality(other, square, count, dimension) for other in grid)
        assert 0.0 <= weight <= 1.0
        assert quality(weight, square, count, dimension) >= best * (1 - 1e-12)
    assert found[:2] == [0.0, 0.0]
    assert found[-2:] == [1.0, 1.0]
    if count > 1:
        assert all(0 < weight < 1 for weight in found[2:-2])


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.8])
def test_the_quality_is_that_of_estimates(weight: float) -> None:
    """The closed form above, by 20,000 clients' estimates with a guess of cosine 0.6; five standard errors."""
    many, count = 20_000, 3
    estimator = Prior(weight=weight, count=count)
    memory = {"previous": 7.0 * leaning(0.6).expand(many, D)}
    found = estimated(estimator, cohort_of(opaque(linear, many)), ORIGIN, memory).gradient / GRADIENT.norm()
    along, squares = found @ UNIT, found.square().sum(dim=1)
    mean = weight * 0.36 + (1 - weight) * 0.64 / (D - 1)
    assert abs(float(along.mean()) - mean) < 5 * float(along.std()) / math.sqrt(many)
    second = mean**2 / quality(weight, 0.36, count, D)
    assert abs(float(squares.mean()) - second) < 5 * float(squares.std()) / math.sqrt(many)


def test_the_chosen_weight_is_the_best_for_the_estimated_cosine() -> None:
    """On a linear function and with S = 500 slopes a^2 = 0.09 is known to some 6 %; ghat.v then tells lambda.

    ghat.v = sqrt(lambda) (1/q) sum_j s_j, where s_j = sqrt(lambda) a + sqrt(1 - lambda) e_j.g, and g = 1 long.
    """
    clients, v = 200, leaning(0.3)
    memory = {"previous": v.expand(clients, D)}
    estimator = Prior(count=4, samples=500)
    found = estimated(estimator, cohort_of(opaque(linear, clients)), ORIGIN, memory).gradient / GRADIENT.norm()
    weight = float(optimal_weight(torch.tensor(0.09, dtype=torch.float64), D, 4))
    # (1 - 0.09) (0.09 * 16 - 1) / (2 * 0.09 * 40 - 0.0081 * 160 - 1) = 0.4004 / 4.904
    assert math.isclose(weight, 0.4004 / 4.904, rel_tol=1e-12)
    along = found @ v
    assert abs(float(along.mean()) - weight * 0.3) < 5 * float(along.std()) / math.sqrt(clients) + 0.1 * weight * 0.3


@pytest.mark.parametrize("options", [{"weight": 0.5}, {"weight": "optimal", "samples": 5}])
def test_without_a_previous_estimate_directions_are_uniform(options: dict[str, Any]) -> None:
    """The first estimate is the one that plain unit vectors make."""
    cohort = cohort_of(opaque(linear, 6))
    found = estimated(Prior(count=3, **options), cohort, ORIGIN)
    u = draw("sphere", Streams(0), "directions/estimate", cohort.clients, 3, D, dtype=torch.float64)
    wanted = ((u @ GRADIENT).unsqueeze(2) * u).mean(dim=1)
    assert torch.allclose(found.gradient, wanted, rtol=0, atol=1e-12)
    assert torch.equal(found.memory["previous"], found.gradient)


def test_directions_are_unit_vectors_at_the_angle_of_the_weight() -> None:
    """f = |x|^2 / 2 with mu = 1 at 0 is 1/2 at every u; f = x.v is sqrt(lambda)."""
    v = leaning(0.5)
    memory = {"previous": v.expand(4, D)}
    for function, slope in ((lambda _, x: x.square().sum(dim=-1) / 2, 0.5), (lambda _, x: x @ v, 0.6)):
        asked = []

        def spied(clients: Tensor, x: Tensor, inner=function, asked=asked) -> Tensor:
            asked.append(inner(clients, x))
            return asked[-1]

        estimated(Prior(weight=0.36, count=3, mu=1.0), cohort_of(opaque(spied, 4)), ORIGIN, memory)
        assert torch.allclose(asked[-1], torch.full((4, 3), slope, dtype=torch.float64, device=v.device), rtol=1e-12)


def test_a_good_guess_helps_and_a_bad_one_does_no_harm() -> None:
    """The mean cosine of 2,000 estimates with q = 4 directions of d = 10."""
    clients, cosines = 2000, {}
    for name, cosine in (("none", None), ("good", 0.9), ("bad", 0.05)):
        guess = torch.zeros_like(UNIT) if cosine is None else leaning(cosine)
        memory = {"previous": guess.expand(clients, D)}
        found = estimated(Prior(count=4, samples=10), cohort_of(opaque(linear, clients)), ORIGIN, memory).gradient
        cosines[name] = float((found @ UNIT / found.norm(dim=1)).mean())
    assert cosines["good"] > 0.88
    assert 0.45 < cosines["none"] < 0.65
    assert cosines["bad"] > cosines["none"] - 0.05


def test_flat_functions_and_one_dimension_give_finite_numbers() -> None:
    flat = cohort_of(opaque(lambda _, x: x[..., 0] * 0.0, 2))
    memory = {"previous": leaning(0.5).expand(2, D)}
    assert not estimated(Prior(count=3), flat, ORIGIN, memory).gradient.any()
    line = cohort_of(opaque(lambda _, x: 2.0 * x[..., 0], 2, 1))
    previous = {"previous": torch.ones(2, 1, dtype=torch.float64, device=ORIGIN.device)}
    found = estimated(Prior(count=3), line, ORIGIN[:1], previous).gradient
    assert torch.allclose(found, torch.full_like(found, 2.0), rtol=1e-12)


def test_samples_without_their_use_are_refused() -> None:
    with pytest.raises(InputError, match=r"samples = 5: is an option of weight = 'optimal' only"):
        Prior(weight=0.5, samples=5)
    with pytest.raises(InputError, match=r"weight"):
        Prior(weight=1.0)
    with pytest.raises(InputError, match=r"client.estimator.count"):
        Prior(count=2**16).check(D)
