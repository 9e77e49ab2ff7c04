"""The expert: a model that was trained on all clients' examples at once, which says how hard each of them is.

An example's difficulty is its loss under the expert: the score s_E of Vahidian et al. 2023, "When Do Curricula Work in
Federated Learning?", who train it for 10 epochs on batches of 64 with label smoothing 0.1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from fedsim.client.curriculum import Expert
from fedsim.core.errors import InputError
from fedsim.nets.losses import LabelSmoothing
from fedsim.problems.partitions.base import Partition

if TYPE_CHECKING:
    from fedsim.problems.supervised import Supervised


def train_expert(problem: Supervised, expert: Expert, folder: Path | None = None) -> Tensor:
    """The parameters [d] of the problem's own model after the expert's training, from where the problem starts.

    In single precision, on the problem's device; labels are as they are, noise and all. folder: where experts are kept,
    a file for each: `experts` in the cache folder when not given. A file is named by a hash of all that the expert
    comes from. InputError: labels that are no classes are to be smoothed, or the training diverges.
    """
    # What clients are trained by has options that hold an `Expert`, so it cannot be imported before.
    from fedsim.core.cache import digest, kept
    from fedsim.pretrained.classifiers import TRAINED_BY, Fit, train
    from fedsim.problems.supervised import Supervised

    data = problem.dataset
    if expert.label_smoothing and not data.num_classes:
        remedy = f"the labels of {data.name} are no classes; set it to 0"
        raise InputError("label_smoothing", expert.label_smoothing, remedy)
    everything = Partition.from_lists([np.unique(problem.partition.order)])
    fit = Fit(epochs=expert.epochs, batch_size=expert.batch_size, lr=expert.lr, momentum=expert.momentum)

    def made() -> Tensor:
        central = Supervised(data, everything, problem.model, device=problem.device)
        central.loss = LabelSmoothing(expert.label_smoothing) if expert.label_smoothing else problem.loss
        return train(central, fit, expert.seed, central.initial().unsqueeze(0), "lr")

    described = [repr(expert), repr(fit), type(problem.loss).__qualname__, *_described(problem.model)]
    state = [value.cpu().numpy() for value in problem.model.state_dict().values()]
    modules = (*TRAINED_BY, sys.modules[__name__])
    classes = (type(problem.loss), *map(type, problem.model.modules()))
    key = digest(described, problem.device, modules, classes, (data.x, data.y, everything.order, *state))
    found = kept("experts", key, (1, problem.dimension), made, folder)
    return found[0].to(problem.device, problem.dtype)


def _described(model: nn.Module) -> Iterator[str]:
    """The kind of each part of a model, and its settings, of which not all are in what it prints."""
    for name, part in model.named_modules():
        yield f"{name}: {type(part).__module__}.{type(part).__qualname__}"
        for setting, value in sorted(vars(part).items()):
            if not setting.startswith("_"):
                yield f"{setting} = {getattr(value, '__qualname__', repr(value))}"
