"""What the attack and the metric share: examples dealt by class, and classifiers that are trained once and kept.

The classifiers are clients like any other: one executor trains all of them, at the same time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.client import training as local_training
from fedsim.client.training import LocalTraining
from fedsim.core import schedules, streams
from fedsim.core.cache import digest, kept
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.engine import batches
from fedsim.engine import cohort as cohorts
from fedsim.engine.cohort import Cohort
from fedsim.engine.executor import Executor
from fedsim.exchange.messages import Cost, Order, Size, Update
from fedsim.nets import (
    attention,
    convolution,
    dropout,
    functional,
    layers,
    losses,
    lowering,
    network,
    normalisation,
    prepared,
    recurrence,
    sequences,
    stack,
    together,
)
from fedsim.problems.datasets.base import Dataset
from fedsim.problems.models import layers as model_layers
from fedsim.problems.modules import build_model
from fedsim.problems.partitions.base import Partition
from fedsim.problems.supervised import Supervised

START, TRAINED = "start", "params"
TRAINED_BY = (
    *(local_training, cohorts, batches, schedules, streams),
    *(attention, convolution, dropout, functional, layers, losses, lowering, network),
    *(normalisation, prepared, recurrence, sequences, stack, together),
)
"""Modules whose source decides what training comes to: what is drawn, and what is computed."""
ROUNDING = 1e-9
"""So that 100 classes times a portion of 0.29 are 29, whatever the last bit of the product."""


@options
class Fit(LocalTraining):
    """Training of a classifier from a start of its own, row c of `start`, [N, d], for client c."""

    requires: ClassVar[frozenset[str]] = frozenset({START})
    up: ClassVar[frozenset[str]] = frozenset({TRAINED})

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, and one row sent back."""
        row = order.payload[START][0]
        return Cost(self.local_steps(examples), {TRAINED: Size.of(row)})

    def fit(self, cohort: Cohort) -> Update:
        """Train, and send what came of it."""
        trained = self.descend(cohort, cohort.received(START)[cohort.clients])
        return Update({TRAINED: trained.params}, {"loss": trained.loss})


def by_class(
    labels: NDArray[np.int64], classes: int, clients: int, portion: float, generator: np.random.Generator
) -> Partition:
    """Deal examples so that each client has a portion of the classes.

    Of K classes client c of N has int(K portion), at least one: those from c K // N on, modulo K. A class's examples,
    in random order, are dealt in turn to the clients that have it; with fewer clients than classes there may be classes
    that nobody has. labels: [n], 0 .. K-1. InputError: a client gets nothing.
    """
    held = max(1, int(classes * portion + ROUNDING))
    first = np.arange(clients) * classes // clients
    lists: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in range(classes):
        owners = np.flatnonzero((label - first) % classes < held)
        examples = generator.permutation(np.flatnonzero(labels == label))
        for turn, owner in enumerate(owners):
            lists[owner].append(examples[turn :: len(owners)])
    rows = [np.sort(np.concatenate(parts)) for parts in lists]
    empty = next((client for client, row in enumerate(rows) if not len(row)), None)
    if empty is not None:
        raise InputError(
            "problem.clients", clients, f"client {empty} gets no example of its classes; take fewer clients"
        )
    return Partition.from_lists(rows)


def classifiers(
    dataset: Dataset,
    partition: Partition,
    model: Any,
    training: Fit,
    seed: int,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> tuple[nn.Module, Tensor]:
    """Train a classifier for each client of `partition` on its own examples, or read those trained before.

    model: a plug-in of the group `models`. seed: of their starts, which differ, and of their batches. folder: where
    trained ones are kept, a file for each set: `classifiers` in the cache folder when not given. A file is named
    by a hash of all that they come from, so none is ever stale; a damaged one is made again, and a folder that cannot
    be written is done without. Returns the module and the parameters float32 [N, d], in the order of its parameters.
    """
    device = torch.device(device)
    module = build_model(model, dataset, Streams(seed))
    kind = type(model)
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        remedy = "these classifiers have no running statistics, as batch normalisation does; take another norm"
        raise InputError("problem.model", kind_of("models", model), remedy)
    described = [kind.__module__, kind.__qualname__, repr(model), repr(training), seed]
    arrays = (dataset.x, dataset.y, partition.order, partition.offset)
    key = digest(described, device, (*TRAINED_BY, model_layers, sys.modules[__name__]), (kind,), arrays)

    def made() -> Tensor:
        starts = _starts(dataset, model, seed, partition.clients)
        return train(Supervised(dataset, partition, module, device=device), training, seed, starts, "problem.lr")

    return module, kept("classifiers", key, (partition.clients, len(_flat(module))), made, folder).to(device)


def train(problem: Supervised, training: Fit, seed: int, starts: Tensor, option: str) -> Tensor:
    """Train all clients of the problem, each from its row of `starts`: [N, d].

    InputError on `option`, which is the rate: the training diverges.
    """
    executor = Executor(problem, training, Streams(seed))
    clients = torch.arange(problem.num_clients, device=problem.device)
    work = executor.execute(executor.assign(Order("fit", clients, {START: starts.to(problem.device)})))
    if not work.sound:
        raise InputError(option, training.lr, "the training of a classifier diverges; lower it")
    return work.payload[TRAINED]


def _starts(dataset: Dataset, model: Any, seed: int, clients: int) -> Tensor:
    """Where the classifiers start, [N, d]: each from draws of its own."""
    seeds = [Streams(seed).derive("classifier", step=client) for client in range(clients)]
    return torch.stack([_flat(build_model(model, dataset, Streams(own))) for own in seeds])


def _flat(module: nn.Module) -> Tensor:
    """The trainable parameters of a module as one vector, in their own order."""
    return torch.cat([own.detach().reshape(-1) for own in module.parameters() if own.requires_grad])
