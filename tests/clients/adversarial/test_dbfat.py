"""DBFAT, against its formula and autograd through the plain module."""

from __future__ import annotations

import math

import pytest
import torch
from arming import Armed, armed, gradient_of
from torch import Tensor
from torch.nn import functional

FGSM = {"kind": "fgsm", "epsilon": 0.5, "domain": "none"}


def weights(found: Armed, row: int, count: int) -> Tensor:
    """Of the two points of an attack of one step, x and x', which is the first to be misclassified.

    kappa = 0, 1 or 2 (none is), n = 2: 1 + tanh(5 (1 - kappa)), that is 1 + tanh(5), 1 and 1 - tanh(5); then their mean
    is made 1.
    """
    module, y = found.local(row), found.before.y[row, :count]
    clean = module(found.before.x[row, :count]).argmax(dim=1) != y
    attacked = module(found.after.x[row, :count]).argmax(dim=1) != y
    near = [
        1 + math.tanh(5) if wrong else 1.0 if flipped else 1 - math.tanh(5)
        for wrong, flipped in zip(clean.tolist(), attacked.tolist(), strict=True)
    ]
    return torch.tensor(near, dtype=torch.float64, device=y.device) / (sum(near) / count)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize("beta", [0.0, 1.5])
@pytest.mark.parametrize("kind", ["boundary", "equal"])
def test_gradients_are_those_of_the_formula(kind, beta, executor):
    """(1/n) sum w CE(f(x'), y) + beta KL(f(x') || g(x')), g the model that was sent, which is not the local one."""
    adversarial = {"kind": "dbfat", "attack": FGSM, "beta": beta, "weights": kind}
    found = armed(adversarial, 6 if executor == "stacked" else 1, executor)
    losses, gradients = found.gradients()
    sent, seen = found.problem.module(found.problem.initial()), set()
    for row, count in enumerate(found.counts()):
        module, x, y = found.local(row), found.after.x[row, :count], found.before.y[row, :count]
        own = weights(found, row, count) if kind == "boundary" else torch.ones_like(found.before.weight[row, :count])
        seen |= {round(float(weight), 6) for weight in own}
        q, log_g = torch.softmax(module(x), dim=1), torch.log_softmax(sent(x), dim=1).detach()
        away = (q * (q.log() - log_g)).sum(dim=1)
        loss = (own * functional.cross_entropy(module(x), y, reduction="none") + beta * away).mean()
        assert float(losses[row]) == pytest.approx(float(loss.detach()), rel=1e-10)
        assert torch.allclose(gradients[row], gradient_of(loss, module), rtol=0, atol=1e-10)
    assert (len(seen) > 2) == (kind == "boundary" and executor == "stacked")


@pytest.mark.parametrize("step", [0.2, 3.0])
def test_fewer_steps_to_a_mistake_weigh_more(step):
    """Ten steps, short, or so long that some mistakes are corrected again, which does not count.

    1 + tanh(5 (1 - 2 kappa / 11)) for kappa = 0 .. 11, over their mean.
    """
    attack = {"kind": "pgd", "epsilon": 2.0, "steps": 10, "step_size": step, "random_start": False, "domain": "none"}
    found = armed({"kind": "dbfat", "attack": attack, "beta": 0.0}, batch_size=12)
    kappa, corrected = steps_before_a_mistake(found, step)
    assert corrected == (step == 3.0)
    assert len(kappa.unique()) > 2
    for row, count in enumerate(found.counts()):
        near = 1.0 + torch.tanh(5.0 - 10.0 * kappa[row, :count] / 11.0)
        assert torch.allclose(found.after.loss.weights[row, :count], near / near.mean(), rtol=1e-9)
        assert bool((near[kappa[row, :count].argsort()].diff() <= 0).all())


def steps_before_a_mistake(found: Armed, step: float) -> tuple[Tensor, bool]:
    """By hand: how many of 11 points come before the first misclassified one, [C, B]; whether any is right after it."""
    kappa, corrected = torch.zeros_like(found.before.weight), False
    for row in range(len(kappa)):
        module, at, right = found.local(row), found.before.x[row], torch.ones_like(kappa[row], dtype=torch.bool)
        x, y = found.before.x[row], found.before.y[row]
        for _ in range(11):
            leaf = at.clone().requires_grad_()
            outputs = module(leaf)
            now = outputs.argmax(dim=1) == y
            corrected |= bool((now & ~right)[: found.counts()[row]].any())
            right &= now
            kappa[row] += right
            (gradient,) = torch.autograd.grad(functional.cross_entropy(outputs, y, reduction="sum"), leaf)
            at = torch.clamp(at + step * gradient.sign(), x - 2.0, x + 2.0)
    return kappa, corrected
