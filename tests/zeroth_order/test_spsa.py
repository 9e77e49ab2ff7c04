"""SPSA and its gradient correction: gains in closed form, moments, and the two forms of the momentum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from probing import GRADIENT, ORIGIN, D, cohort_of, estimated, linear, moments, opaque

from clients.zeroth_order.spsa import Spsa, SpsaGC
from fedsim.core.errors import InputError

MANY = 20_000
START = torch.linspace(1.0, -1.0, D, dtype=torch.float64, device=GRADIENT.device)
CURVATURE = torch.linspace(0.5, 3.0, D, dtype=torch.float64, device=GRADIENT.device)


def quadratic(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square() @ CURVATURE


def search(estimator: Any, steps: int, lr: float, first: int = 0) -> list[torch.Tensor]:
    """The points of x <- x - lr * estimate for two clients on the quadratic, from START on: each [2, d]."""
    cohort = cohort_of(opaque(quadratic, 2))
    points, memory = [START.expand(2, -1)], None
    for step in range(first, first + steps):
        found = estimated(estimator, cohort, points[-1], memory, step)
        points.append(points[-1] - lr * found.gradient)
        memory = found.memory
    return points


@pytest.mark.parametrize(("kind", "second"), [("segmented", 1 + 7 * (D - 1) / 6), ("rademacher", D)])
@pytest.mark.parametrize("count", [1, 4])
def test_moments(kind: str, second: float, count: int) -> None:
    """Unbiased, with 1 + (c - 1) / q and c = 1 + 7 (d - 1) / 6 of segmented directions; five standard errors."""
    found = estimated(Spsa(directions=kind, count=count), cohort_of(opaque(linear, MANY)), ORIGIN)
    mean, error, square, square_error = moments(found.gradient, GRADIENT)
    assert float((mean - GRADIENT).norm()) < 5 * error
    assert abs(square - (1 + (second - 1) / count)) < 5 * square_error
    assert square_error < 0.01 * second


def test_gains_are_the_closed_forms() -> None:
    """Where f jumps from 0 to 1 at 0 and d = 1, a central difference is 1 / (2 c_k |u|), and divided by u 1 / (2 c_k).

    So with rademacher directions the estimate is r_k / (2 c_k), c_k = c / k^gamma, r_k = ((1 + o) / (k + o))^alpha.
    """
    cohort = cohort_of(opaque(lambda _, x: (x[..., 0] > 0).double(), 1, 1))
    memory = None
    for k in range(1, 30):
        estimator = Spsa(directions="rademacher", count=1, c=0.02, gamma=0.101, offset=4.0, alpha=0.602)
        found = estimated(estimator, cohort, torch.zeros(1, dtype=torch.float64, device=GRADIENT.device), memory, k - 1)
        memory = found.memory
        wanted = (5.0 / (k + 4.0)) ** 0.602 * k**0.101 / (2 * 0.02)
        assert math.isclose(float(found.gradient[0, 0]), wanted, rel_tol=1e-13)
        assert memory["estimates"].tolist() == [k]


def test_clients_are_at_their_own_count() -> None:
    """Sixty counts of estimates in one cohort give the bits that each has alone, also in float32."""
    estimator, clients = SpsaGC(count=1), 60
    for dtype in (torch.float32, torch.float64):
        problem = opaque(lambda _, x: x.square().sum(dim=-1), clients, dtype=dtype)
        cohort, x = cohort_of(problem), START.to(dtype)
        counts = torch.arange(clients, dtype=dtype, device=x.device)
        momentum = torch.linspace(-1, 1, clients * D, dtype=dtype, device=x.device).view(-1, D)
        together = estimated(estimator, cohort, x, {"estimates": counts, "momentum": momentum})
        whole = cohort_of(problem)
        for row in range(clients):
            cohort = cohort_of(problem)
            cohort.clients = whole.clients[row : row + 1]
            cohort.queries, cohort.extra_queries = cohort.queries[:1], cohort.extra_queries[:1]
            own = {"estimates": counts[row : row + 1], "momentum": momentum[row : row + 1]}
            alone = estimated(estimator, cohort, x, own)
            assert torch.equal(alone.gradient[0], together.gradient[row])


def test_without_beta_it_is_spsa() -> None:
    for form in ("code", "lookahead"):
        plain, corrected = search(Spsa(), 5, 0.05), search(SpsaGC(beta=0.0, form=form), 5, 0.05)
        for one, other in zip(plain, corrected, strict=True):
            assert torch.equal(one, other)


def test_code_form_is_the_published_recursion() -> None:
    """m_k = beta m_{k-1} + ghat_k; phi <- phi - a_k (ghat_k + beta m_k), with SPSA's estimates at the same points."""
    lr, beta, points = 0.05, 0.8, search(SpsaGC(beta=0.8), 6, 0.05)
    cohort, momentum = cohort_of(opaque(quadratic, 2)), torch.zeros(2, D, dtype=torch.float64, device=START.device)
    for k in range(1, 7):
        memory = {"estimates": torch.full((2,), k - 1.0, dtype=torch.float64, device=START.device)}
        # r_k taken out of SPSA's estimate leaves ghat_k
        rate = (2 / (k + 1)) ** 0.4
        ghat = estimated(Spsa(), cohort, points[k - 1], memory, k - 1).gradient / rate
        momentum = beta * momentum + ghat
        assert torch.allclose(points[k], points[k - 1] - lr * rate * (ghat + beta * momentum), rtol=0, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_lookahead_form_is_the_published_recursion_at_its_look_ahead_points(alpha: float) -> None:
    """v <- beta v - a_k ghat(y + beta v), y <- y + v; the model is y + beta v."""
    lr, beta = 0.05, 0.8
    points = search(SpsaGC(beta=beta, form="lookahead", alpha=alpha), 6, lr)
    cohort, y = cohort_of(opaque(quadratic, 2)), points[0]
    v = torch.zeros_like(y)
    for k in range(1, 7):
        memory = {"estimates": torch.full((2,), k - 1.0, dtype=torch.float64, device=START.device)}
        ahead = y + beta * v
        assert torch.allclose(points[k - 1], ahead, rtol=0, atol=1e-13)
        v = beta * v - lr * estimated(Spsa(alpha=alpha), cohort, ahead, memory, k - 1).gradient
        y = y + v
    assert torch.allclose(points[6], y + beta * v, rtol=0, atol=1e-13)


def test_the_forms_are_one_with_constant_gains_and_differ_with_others() -> None:
    for alpha in (0.0, 0.4):
        code, ahead = (search(SpsaGC(alpha=alpha, form=form), 20, 0.02)[-1] for form in ("code", "lookahead"))
        difference = float((code - ahead).abs().max())
        assert difference < 1e-15 if alpha == 0.0 else difference > 1e-3


def test_reset_forgets_the_momentum_at_the_first_step_of_a_round_only() -> None:
    """Steps 0 and 1 of a second round: without momentum the first is (1 + beta) times SPSA's, the next is not."""
    cohort = cohort_of(opaque(quadratic, 2))
    memory = {
        "estimates": torch.full((2,), 4.0, dtype=torch.float64, device=START.device),
        "momentum": torch.ones(2, D, dtype=torch.float64, device=START.device),
    }
    for step in (0, 1):
        plain = estimated(Spsa(), cohort, START, memory, step).gradient
        kept, forgot = (estimated(SpsaGC(reset=reset), cohort, START, memory, step) for reset in (False, True))
        assert torch.allclose(forgot.gradient, 1.9 * plain, rtol=1e-12) == (step == 0)
        assert torch.equal(kept.gradient, forgot.gradient) == (step == 1)
        assert forgot.memory["estimates"].tolist() == [5.0, 5.0]


def test_correction_lets_a_smaller_gain_go_as_far() -> None:
    """Its effective gain is about a / (1 - beta): after many steps of 0.002 it is where SPSA is with 0.02."""
    slow, corrected, fast = (
        float(quadratic(ORIGIN, search(estimator, 300, lr)[-1]).mean())
        for estimator, lr in ((Spsa(alpha=0.0), 0.002), (SpsaGC(alpha=0.0), 0.002), (Spsa(alpha=0.0), 0.02))
    )
    assert corrected < 0.05 * slow
    assert 0.2 < math.log(corrected) / math.log(fast) < 5


def test_an_offset_without_a_decay_is_refused() -> None:
    with pytest.raises(InputError, match=r"offset = 2.0: needs an alpha above 0"):
        Spsa(alpha=0.0, offset=2.0)
    with pytest.raises(InputError, match=r"client.estimator.count"):
        Spsa(count=2**17).check(D)
