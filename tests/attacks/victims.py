"""Models to be attacked, and what they lose: shared by the tests of attacks."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.attacks.attack import Draws, ExampleDraws, Victim
from fedsim.core.data_files import DataFolder
from fedsim.core.streams import Streams
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import Network, PlainNetwork
from fedsim.nets.prepared import prepare
from fedsim.nets.stack import Layout
from fedsim.problems.datasets.embedded import Digits


def dense(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*parts[:-1])


def fitted(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """The model after so many steps of Adam on batches of 500, one after the other."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        rows = torch.arange(500 * step, 500 * (step + 1)) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


@cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained MLP 64-64-10, and all 1,797 digits in [0, 1] with their classes."""
    data = Digits().load(DataFolder(None))
    x = torch.from_numpy(np.concatenate((data.x, data.x_test))).flatten(1)
    y = torch.from_numpy(np.concatenate((data.y, data.y_test)))
    return fitted(dense(64, 64, 10), x, y, steps=150), x, y


def victim(
    *models: nn.Module, examples: int = 1, kind: type[Network] = PlainNetwork, draws: Draws | None = None
) -> Victim:
    """Models of one kind as a stack; draws are by example unless they are given."""
    model = prepare(models[0])
    layout = Layout.of(dict(model.named_parameters()))
    rows = layout.stack(torch.stack([layout.flatten(dict(own.named_parameters())) for own in models]))
    make = getattr(kind, "of", kind)
    draws = ExampleDraws(Streams(3), torch.arange(examples)) if draws is None else draws
    return Victim(make(model, layout, CrossEntropy()), rows, CrossEntropy(), draws)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of inputs [n, ...] that the model classifies right."""
    return float((model(x).argmax(dim=1) == y).double().mean())
