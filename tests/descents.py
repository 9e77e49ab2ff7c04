"""Local training that is described in full, as a compiled loop takes it, and the same by autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from clients.optimizers.sgd import Sgd
from fedsim.core.streams import Streams
from fedsim.nets.descent import Descended, Descent, Rule
from fedsim.nets.dropout import Draw
from fedsim.nets.fused import Fused, fused
from fedsim.nets.losses import CrossEntropy, Loss
from fedsim.nets.stack import Layout

C, N = 5, 9
"""Clients, and examples of each; the third client takes two of three steps."""
PLAIN = {"optimizer": Sgd(), "clip_norm": None, "decay": 0.0, "decoupled": 0.0}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).normal(size=shape))


def described(
    model: nn.Module, loss: Loss, width: int = 4, shape: tuple[int, ...] = (), **options: Any
) -> tuple[Fused, Descent]:
    """The loop of a model, and what it is to do; every second batch is short of its last example.

    shape: of an example; not given, as many numbers as the first layer takes.
    """
    layout = Layout.of(dict(model.named_parameters()))
    outputs = model[-1].out_features
    x = normal(C * N, *(shape or (model[0].in_features,)), seed=5)
    y = torch.arange(C * N) % outputs if isinstance(loss, CrossEntropy) else 2.0 * normal(C * N, seed=6)
    steps = torch.tensor([3, 3, 2, 3, 3])
    first = steps.cumsum(0) - steps
    owner = torch.repeat_interleave(steps)
    rows = len(owner)
    index = torch.stack([own * N + torch.arange(row, row + width) % N for row, own in enumerate(owner)])
    count = torch.full((rows,), width)
    count[::2] -= int(width > 1)
    descent = Descent(
        start=layout.flatten(dict(model.named_parameters())),
        shift=None,
        x=x,
        y=y,
        index=index,
        count=count,
        first=first,
        steps=steps,
        examples=torch.full((C,), N),
        draw=Draw(Streams(0), torch.arange(C), 0, 0),
        rates=[0.3, 0.2, 0.1],
        rule=Rule(**PLAIN | options),
    )
    return fused(model, layout, loss, x, y), descent


def by_autograd(model: nn.Module, loss: Loss, descent: Descent) -> Descended:
    """The same with the module itself, for plain steps."""
    ends, losses = [], torch.empty(len(descent.index), dtype=torch.float64)
    for client, steps in enumerate(descent.steps.tolist()):
        y = descent.start.clone()
        for step in range(steps):
            row = int(descent.first[client]) + step
            own = descent.index[row, : descent.count[row]]
            torch.nn.utils.vector_to_parameters(y, model.parameters())
            value = loss.examples(model(descent.x[own]), descent.y[own]).mean()
            gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, list(model.parameters()))])
            losses[row] = value.detach()
            y = y - descent.rates[step] * (gradient + descent.rule.decay * y)
        ends.append(y)
    return Descended(torch.stack(ends), losses, torch.zeros(C), torch.ones(C, dtype=torch.bool))


def assert_close(found: Descended, wanted: Descended) -> None:
    assert torch.allclose(found.params, wanted.params, rtol=0, atol=1e-13)
    assert torch.allclose(found.losses, wanted.losses, rtol=0, atol=1e-13)


def changed(descent: Descent, **parts: Any) -> Descent:
    return Descent(**vars(descent) | parts)
