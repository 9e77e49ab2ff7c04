"""FAL, against adversarial gradient descent on all data and the mean of local models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsim
from fedsim.exchange.messages import Order
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor, build_simulation
from fedsim.testing.problems import DEVICE, blobs, mlp
from fedsim.testing.problems import small_experiment as small

ATTACK = {"kind": "pgd", "epsilon": 0.3, "steps": 3, "step_size": 0.15, "random_start": False, "domain": "none"}
EVERYBODY = {"kind": "uniform", "fraction": 1.0}


def problem_of(sizes: tuple[int, ...]) -> Supervised:
    return fedsim.supervised(**blobs(sizes=sizes), model=mlp(activation=nn.Tanh), dtype=torch.float64, device=DEVICE)


def client(**options: Any) -> dict[str, Any]:
    training = {"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 0.2}
    return training | {"adversarial": {"kind": "standard", "attack": ATTACK}} | options


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def attacked(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Three steps of 0.15 along the sign of the gradient, within 0.3 of x."""
    at = x
    for _ in range(3):
        leaf = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(module(leaf), y), leaf)
        at = torch.minimum(torch.maximum(at + 0.15 * gradient.sign(), x - 0.3), x + 0.3)
    return at


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_one_local_step_of_equal_clients_is_central_adversarial_gradient_descent(server_lr, executor):
    """K = 1, full batches, 6 examples each: theta - eta_global eta_local grad of the mean loss of all 24 attacked."""
    problem = problem_of((6, 6, 6, 6))
    strategy = {"kind": "fal", "server_lr": server_lr}
    experiment = small(3, strategy=strategy, client=client(), selection=EVERYBODY, engine={"executor": executor})
    simulated, theta = build_simulation(experiment, problem), problem.initial()
    for _ in range(3):
        simulated.step()
        module = problem.module(theta)
        moved = attacked(module, problem.data.x[problem.data.order], problem.data.y[problem.data.order])
        loss = functional.cross_entropy(module(moved), problem.data.y[problem.data.order])
        theta = theta - server_lr * 0.2 * flat(torch.autograd.grad(loss, list(module.parameters())))
        assert torch.allclose(simulated.state.params, theta, rtol=0, atol=1e-12)
    assert float((theta - problem.initial()).abs().max()) > 0.01


def test_the_model_becomes_the_plain_mean_of_the_local_models_whatever_their_sizes():
    problem, sizes = problem_of((7, 3, 12, 1)), torch.tensor([7.0, 3.0, 12.0, 1.0], dtype=torch.float64, device=DEVICE)
    experiment = small(1, strategy={"kind": "fal"}, client=client(epochs=2, steps=None), selection=EVERYBODY)
    executor = build_executor(experiment, problem)
    orders = Order("train", torch.arange(4), {"params": problem.initial()})
    local = problem.initial() + executor.execute(executor.assign(orders)).payload["delta"]
    simulated = build_simulation(experiment, problem)
    simulated.step()
    assert torch.allclose(simulated.state.params, local.mean(dim=0), rtol=0, atol=1e-14)
    assert not torch.allclose(simulated.state.params, sizes @ local / sizes.sum(), rtol=0, atol=1e-4)
