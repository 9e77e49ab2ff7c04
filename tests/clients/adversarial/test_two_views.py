"""TRADES and MART, against their formulas and autograd through the plain module."""

from __future__ import annotations

import pytest
import torch
from arming import CLIMB, armed, assert_climbs, gradient_of
from torch import Tensor, nn
from torch.nn import functional


def trades(module: nn.Module, x: Tensor, attacked: Tensor, y: Tensor, beta: float) -> Tensor:
    """(1/n) sum CE(f(x), y) + beta KL(f(x) || f(x'))."""
    p, log_q = torch.softmax(module(x), dim=1), torch.log_softmax(module(attacked), dim=1)
    return functional.cross_entropy(module(x), y) + beta * (p * (p.log() - log_q)).sum(dim=1).mean()


def mart(module: nn.Module, x: Tensor, attacked: Tensor, y: Tensor, weight: float) -> Tensor:
    """(1/n) sum BCE(f(x'), y) + lambda KL(f(x) || f(x')) (1 - p_y(x))."""
    p, q = torch.softmax(module(x), dim=1), torch.softmax(module(attacked), dim=1)
    terms = []
    for own, moved, target in zip(p, q, y.tolist(), strict=True):
        rival = max(float(value.detach()) for number, value in enumerate(moved) if number != target)
        (number,) = [number for number in range(3) if number != target and float(moved[number].detach()) == rival]
        boosted = -moved[target].log() - (1.0 - moved[number]).log()
        terms.append(boosted + weight * (own * (own / moved).log()).sum() * (1.0 - own[target]))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize(("kind", "option", "formula"), [("trades", "beta", trades), ("mart", "regularisation", mart)])
@pytest.mark.parametrize("factor", [0.0, 2.5])
def test_gradients_are_those_of_the_formula(kind, option, formula, factor, executor):
    found = armed({"kind": kind, "attack": CLIMB, option: factor}, 6 if executor == "stacked" else 1, executor)
    losses, gradients = found.gradients()
    clean, attacked = found.after.x.chunk(2, dim=1)
    assert torch.equal(clean, found.before.x)
    for row, count in enumerate(found.counts()):
        module = found.local(row)
        x, y = found.before.x[row, :count], found.before.y[row, :count]
        loss = formula(module, x, attacked[row, :count], y, factor)
        assert float(losses[row]) == pytest.approx(float(loss.detach()), rel=1e-10)
        assert torch.allclose(gradients[row], gradient_of(loss, module), rtol=0, atol=1e-10)


def test_the_attack_of_trades_climbs_the_divergence_from_the_clean_predictions():
    found = armed({"kind": "trades", "attack": CLIMB})

    def value(module, row, inputs, x, y):
        p, log_q = torch.softmax(module(x), dim=1).detach(), torch.log_softmax(module(inputs), dim=1)
        return (p * (p.log() - log_q)).sum()

    assert_climbs(found, found.after.x.chunk(2, dim=1)[1], found.start(), value)


def test_the_attack_of_mart_climbs_the_cross_entropy():
    found = armed({"kind": "mart", "attack": CLIMB})

    def value(module, row, inputs, x, y):
        return functional.cross_entropy(module(inputs), y, reduction="sum")

    assert_climbs(found, found.after.x.chunk(2, dim=1)[1], found.start(), value)


def test_certainty_stays_finite():
    """Logits 1e4 apart: BCE of a wrong certainty is 2e4 (both its logarithms are -1e4), of a right one 0."""
    found = armed({"kind": "mart", "attack": CLIMB})
    outputs = torch.tensor([[[0.0, 0.0, 0.0], [1e4, 0.0, 0.0]]], dtype=torch.float64)
    for target, expected in ((1, 2e4), (0, 0.0)):
        targets = torch.full((1, 2), target)
        losses, gradient = found.after.loss.with_gradient(outputs, targets)
        assert float(losses[0, 1]) == pytest.approx(expected, abs=1.0)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()
