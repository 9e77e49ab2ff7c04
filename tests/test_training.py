"""Local optimizers, against torch.optim and hand-written rules, over many steps on one client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_problems import blobs, mlp, small
from torch.nn import functional

import fedsim
from fedsim.errors import InputError
from fedsim.exchange import Orders
from fedsim.runner import build_executor
from fedsim.training import LocalTraining

STEPS, LR = 7, 0.05
DATA = blobs(sizes=(11,))


def ours(**client: Any) -> torch.Tensor:
    """Parameters after seven full-batch steps of our client."""
    problem = fedsim.supervised(**DATA, model=mlp(), dtype=torch.float64, device="cpu")
    training = {"kind": "sgd", "steps": STEPS, "batch_size": "full", "lr": LR} | client
    executor = build_executor(small(1, client=training, selection={"kind": "uniform", "count": 1}), problem)
    work = executor.execute(executor.assign(Orders("train", torch.arange(1), {"params": problem.initial()})))
    return problem.initial() + work.payload["delta"][0]


def gradient_at(model: torch.nn.Module) -> torch.Tensor:
    loss = functional.cross_entropy(model(torch.tensor(DATA["x"])), torch.tensor(DATA["y"]))
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])


def theirs(make: Any) -> torch.Tensor:
    model = mlp().double()
    optimizer = make(model.parameters())
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.tensor(DATA["x"])), torch.tensor(DATA["y"])).backward()
        optimizer.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("client", "make"),
    [
        ({}, lambda own: torch.optim.SGD(own, lr=LR)),
        ({"weight_decay": 0.1}, lambda own: torch.optim.SGD(own, lr=LR, weight_decay=0.1)),
        ({"momentum": 0.9}, lambda own: torch.optim.SGD(own, lr=LR, momentum=0.9)),
        (
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            lambda own: torch.optim.SGD(own, lr=LR, momentum=0.9, nesterov=True, weight_decay=0.1),
        ),
        (
            {"optimizer": "adam", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.1},
            lambda own: torch.optim.Adam(own, lr=LR, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        ),
    ],
)
def test_sgd_and_adam_are_those_of_torch(client, make):
    assert torch.allclose(ours(**client), theirs(make), rtol=0, atol=1e-12)


def test_lion_is_its_rule():
    """u = sign(b1 m + (1 - b1) g); y <- y - lr (u + wd y); m <- b2 m + (1 - b2) g. Chen et al. 2023, program 1."""
    model = mlp().double()
    y = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    mean = torch.zeros_like(y)
    for _ in range(STEPS):
        torch.nn.utils.vector_to_parameters(y, model.parameters())
        gradient = gradient_at(model)
        y = y - LR * (torch.sign(0.9 * mean + 0.1 * gradient) + 0.2 * y)
        mean = 0.99 * mean + 0.01 * gradient
    assert torch.allclose(ours(optimizer="lion", weight_decay=0.2), y, rtol=0, atol=1e-12)


def test_clipping_bounds_the_gradient_before_decay():
    model = mlp().double()
    y = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    for _ in range(STEPS):
        torch.nn.utils.vector_to_parameters(y, model.parameters())
        gradient = gradient_at(model)
        assert float(gradient.norm()) > 0.05
        y = y - LR * (gradient * 0.05 / gradient.norm() + 0.1 * y)
    assert torch.allclose(ours(clip_norm=0.05, weight_decay=0.1), y, rtol=0, atol=1e-10)


def test_a_schedule_scales_the_rate_of_its_round():
    training = LocalTraining(epochs=1, lr=0.4, schedule={"kind": "exponential", "gamma": 0.5})
    assert [training.rate(SimpleNamespace(round=number)) for number in range(3)] == pytest.approx([0.4, 0.2, 0.1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "epochs"),
        ({"epochs": 1, "steps": 1}, "epochs"),
        ({"epochs": 1, "nesterov": True}, "nesterov"),
        ({"epochs": 1, "optimizer": "adam", "momentum": 0.5}, "momentum"),
        ({"epochs": 1, "beta1": 0.5}, "beta1"),
        ({"epochs": 1, "schedule": "exponential"}, "schedule.gamma"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options, named):
    with pytest.raises(InputError, match=f"^{named} = "):
        LocalTraining(**options)
