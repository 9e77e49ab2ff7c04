"""The expert: a model that was trained on all clients' examples at once, which says how hard each of them is.

An example's difficulty is its loss under the expert: the score s_E of Vahidian et al. 2023, "When Do Curricula Work in
Federated Learning?", who train it for 10 epochs on batches of 64 with label smoothing 0.1.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fedsim.client.curriculum import Expert
from fedsim.core.cache import digest, kept
from fedsim.core.errors import InputError
from fedsim.nets.losses import CrossEntropy, Given
from fedsim.pretrained.classifiers import TRAINED_BY, Fit, train
from fedsim.problems.partitions.base import Partition
from fedsim.problems.supervised import Supervised


def expert_losses(problem: Supervised, expert: Expert) -> Tensor:
    """The loss of each training example under the expert that `train_expert` trains, [n]: without label smoothing."""
    return problem.example_losses(train_expert(problem, expert))


def train_expert(problem: Supervised, expert: Expert, folder: Path | None = None) -> Tensor:
    """The parameters [d] of the problem's own model after the expert's training, from where the problem starts.

    In single precision, on the problem's device; labels are as they are, noise and all. folder: where experts are kept,
    a file for each: `experts` in the cache folder when not given. A file is named by a hash of all that the expert
    comes from. InputError: labels that are no classes are to be smoothed, or the training diverges.
    """
    data, model = problem.dataset, problem.model
    if expert.label_smoothing and not data.num_classes:
        remedy = f"the labels of {data.name} are no classes; set it to 0"
        raise InputError("label_smoothing", expert.label_smoothing, remedy)
    everything = Partition.from_lists([np.unique(problem.partition.order)])
    descent = {"kind": "sgd", "momentum": expert.momentum}
    fit = Fit(epochs=expert.epochs, batch_size=expert.batch_size, lr=expert.lr, optimizer=descent)

    def made() -> Tensor:
        smooth = expert.label_smoothing
        loss = CrossEntropy(label_smoothing=smooth) if smooth else model.loss
        central = Supervised(data, everything, model.module, loss=loss, device=problem.device)
        return train(central, fit, expert.seed, central.initial().unsqueeze(0), "lr")

    described = [repr(expert), repr(fit), repr(model.loss), *_described(model.module)]
    state = [value.cpu().numpy() for value in model.module.state_dict().values()]
    modules = (*TRAINED_BY, sys.modules[__name__])
    classes = (type(model.loss), *map(type, model.module.modules()))
    key = digest(described, problem.device, modules, classes, (data.x, data.y, everything.order, *state))
    # Of a function that somebody has handed over nothing says whether it is the same another time.
    key = key if dataclasses.is_dataclass(model.loss) and not isinstance(model.loss, Given) else None
    found = kept("experts", key, (1, model.layout.dimension), made, folder)
    return found[0].to(problem.device, problem.dtype)


def _described(model: nn.Module) -> Iterator[str]:
    """The kind of each part of a model, and its settings, of which not all are in what it prints."""
    for name, part in model.named_modules():
        yield f"{name}: {type(part).__module__}.{type(part).__qualname__}"
        for setting, value in sorted(vars(part).items()):
            if not setting.startswith("_"):
                yield f"{setting} = {getattr(value, '__qualname__', repr(value))}"
