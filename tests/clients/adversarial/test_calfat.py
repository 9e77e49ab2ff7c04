"""CalFAT, against its formula and autograd through the plain module."""

from __future__ import annotations

import pytest
import torch
from arming import CLIMB, Armed, armed, assert_climbs, gradient_of
from torch import Tensor
from torch.nn import functional

from clients.adversarial.calfat import Calibrated
from fedsim.nets.losses import CrossEntropy


def prior(found: Armed, row: int, weight: float = 0.1) -> Tensor:
    """Weight * log of the client's own class counts, a missing class counted as 1; from the partition."""
    problem, client = found.problem, int(found.cohort.clients[row])
    begin, size = int(problem.data.begin[client]), int(problem.sizes_on_device[client])
    labels = problem.data.y[problem.data.order[begin : begin + size]].tolist()
    counts = [max(labels.count(label), 1) for label in range(3)]
    return weight * torch.tensor(counts, dtype=torch.float64, device=problem.device).log()


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize(("scale", "weight"), [(10.0, 0.1), (2.0, 0.0), (1.0, 1.0)])
def test_gradients_are_those_of_the_formula(scale, weight, executor):
    """CE(scale (z(x') + weight log n), y), averaged over the client's examples."""
    adversarial = {"kind": "calfat", "attack": CLIMB, "scale": scale, "prior_weight": weight}
    found = armed(adversarial, 6 if executor == "stacked" else 1, executor)
    losses, gradients = found.gradients()
    for row, count in enumerate(found.counts()):
        module = found.local(row)
        z = module(found.after.x[row, :count]) + prior(found, row, weight)
        loss = functional.cross_entropy(scale * z, found.before.y[row, :count])
        assert float(losses[row]) == pytest.approx(float(loss.detach()), rel=1e-10)
        assert torch.allclose(gradients[row], gradient_of(loss, module), rtol=0, atol=1e-10)


def test_the_attack_climbs_the_calibrated_divergence():
    found = armed({"kind": "calfat", "attack": CLIMB, "prior_weight": 1.0})

    def value(module, row, inputs, x, y):
        own = prior(found, row, 1.0)
        p, log_q = torch.softmax(module(x) + own, dim=1).detach(), torch.log_softmax(module(inputs) + own, dim=1)
        return (p * (p.log() - log_q)).sum()

    assert_climbs(found, found.after.x, found.start(), value)


def test_the_attack_climbs_the_loss_itself_where_that_is_asked_for():
    found = armed({"kind": "calfat", "attack": CLIMB, "attack_loss": "own", "scale": 2.0, "prior_weight": 1.0})

    def value(module, row, inputs, x, y):
        return functional.cross_entropy(2.0 * (module(inputs) + prior(found, row, 1.0)), y, reduction="sum")

    assert_climbs(found, found.after.x, found.start(), value)


def test_uniform_counts_calibrate_nothing():
    """A shift that is the same for all classes cancels in the softmax: what is left is the scale."""
    outputs = torch.tensor([[[0.3, -1.2, 2.0], [1.0, 0.0, -0.5]]], dtype=torch.float64)
    targets = torch.tensor([[0, 2]])
    shift = torch.full((1, 1, 3), 0.1 * torch.tensor(7.0).log())
    found = Calibrated(CrossEntropy(), shift.double(), 10.0).examples(outputs, targets)
    assert torch.allclose(found, CrossEntropy().examples(10.0 * outputs, targets), rtol=0, atol=1e-12)
