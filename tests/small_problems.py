"""A small ragged problem and an experiment for it, which many tests share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import nn

import fedsim
from fedsim.problems.supervised import Supervised

DEVICE = os.environ.get("FEDSIM_TEST_DEVICE", "cpu")
"""Where the tests compute: `FEDSIM_TEST_DEVICE=cuda pytest` runs them on a GPU."""


def blobs(
    sizes: tuple[int, ...] = (7, 3, 12, 1, 5, 9), shape: tuple[int, ...] = (6,), classes: int = 3
) -> dict[str, Any]:
    """Examples around one centre a class, dealt to clients of these sizes: arguments for `fedsim.supervised`."""
    generator = np.random.Generator(np.random.PCG64(5))
    total = sum(sizes) + 20
    y = generator.integers(0, classes, total)
    x = generator.normal(size=(classes, *shape))[y] + 0.5 * generator.normal(size=(total, *shape))
    ends = np.cumsum(sizes)
    lists = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    train = slice(0, sum(sizes))
    held = slice(sum(sizes), None)
    return {"x": x[train], "y": y[train], "clients": lists, "test": (x[held], y[held])}


def mlp(inputs: int = 6, classes: int = 3, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A small network with the same parameters at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), activation(), nn.Linear(8, classes))


def small_problem(dtype: torch.dtype = torch.float64, model: nn.Module | None = None, **settings: Any) -> Supervised:
    return fedsim.supervised(**blobs(**settings), model=mlp() if model is None else model, dtype=dtype, device=DEVICE)


def small(rounds: int = 3, **tables: Any) -> fedsim.Experiment:
    """An experiment for `small_problem`: two epochs of batches of 4, half of the clients in a round."""
    defaults: dict[str, Any] = {
        "name": "small",
        "selection": {"kind": "uniform", "count": 4},
        "client": {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1},
        "evaluation": {"every": 0},
    }
    return fedsim.experiment(rounds=rounds, **(defaults | tables))
