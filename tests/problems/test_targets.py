"""Targets of every kind: one class an example, a token or a pixel; numbers; tags; on every executor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsim
from fedsim.nets.losses import IGNORED
from fedsim.testing.problems import DEVICE

ROWS, FEATURES = 11, 4
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(ROWS, 5, FEATURES))
CLIENTS = [range(3), range(3, 4), range(4, ROWS)]
CLASSES = DRAW.integers(0, 3, size=(ROWS, 5))
CLASSES[:, 3:][DRAW.random((ROWS, 2)) < 0.7] = IGNORED
TAGS = DRAW.integers(0, 2, size=(ROWS, 2))


class Tokens(nn.Module):
    """Of each of five tokens the logits of three classes, [B, 5, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(torch.tanh(self.inner(x)))
        return found


class Pixels(nn.Module):
    """Images [B, 1, 5, 4] to logits of three classes at each pixel, [B, 5, 4, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x).permute(0, 2, 3, 1)
        return found


def flat(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5 * FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs))


CASES: dict[str, dict[str, Any]] = {
    "a class a token": {"y": CLASSES, "model": Tokens},
    "a class a token, in a chain": {
        "y": CLASSES,
        "model": lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 3)),
    },
    "a class a pixel": {"x": X[:, None], "y": DRAW.integers(0, 3, size=(ROWS, 5, FEATURES)), "model": Pixels},
    "several numbers": {"y": DRAW.normal(size=(ROWS, 2)), "model": lambda: flat(2)},
    "one number of a row": {"y": DRAW.normal(size=(ROWS, 1)), "model": lambda: flat(1), "loss": "log_cosh"},
    "tags": {"y": TAGS, "task": "tags", "model": lambda: flat(2)},
}


def problem(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    given = {"x": X, "clients": CLIENTS, "dtype": torch.float64, "device": DEVICE, **CASES[name], **changes}
    return fedsim.supervised(**{**given, "model": given["model"]()})


def by_hand(name: str) -> Tensor:
    """The mean loss of the problem's first outputs, by PyTorch's own functions: of each example, then of all."""
    given = problem(name)
    with torch.no_grad():
        outputs, y = given.model.module(given.data.x), given.data.y
    if name.startswith("a class"):
        each = functional.cross_entropy(outputs.movedim(-1, 1), y, reduction="none").flatten(1)
        return (each.sum(dim=1) / (y != IGNORED).flatten(1).sum(dim=1)).mean()
    if name == "tags":
        return functional.binary_cross_entropy_with_logits(outputs, y)
    away = outputs - y
    return (away.cosh().log() if "row" in name else away.square()).mean()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_pytorchs_of_what_counts(name):
    given = problem(name)
    found = given.evaluate(given.initial(), clients=False)
    assert found["test_loss"] == pytest.approx(float(by_hand(name)), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_autograds_and_executors_agree(name):
    """All clients in one cohort, whose batches of the small ones are padded; a client of all examples by autograd."""
    ends = {}
    for executor in ("loop", "stacked"):
        client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, "momentum": 0.5}
        made = fedsim.run(
            rounds=2, problem=problem(name), client=client, engine={"executor": executor, "device": "cpu"}, save=False
        )
        ends[executor] = made.params
    assert torch.allclose(ends["loop"], ends["stacked"], rtol=0, atol=1e-12)
    given = problem(name, clients=[range(ROWS)])
    one = fedsim.run(
        rounds=1, problem=given, client={"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 1.0}, save=False
    )
    module = given.module(given.initial())
    outputs = module(given.data.x)
    given.model.loss.examples(outputs, given.data.y).mean().backward()
    expected = given.initial() - torch.cat([own.grad.flatten() for own in module.parameters()])
    assert torch.allclose(one.params, expected, rtol=0, atol=1e-12)
