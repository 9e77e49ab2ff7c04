"""Metric optimisation: improve what has no gradient, a macro average over classes, by changing a trained network.

f_i(x) = 1 - macro metric of the network theta + reach (2 x - 1) on client i's test examples, where x moves the last d
parameters only. All K classes count, so a client with examples of k of them has f_i >= 1 - k/K. The protocol is that
of Shu et al. 2023 (FZooS), who take Covertype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.options import (
    Counts,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Share,
    options,
)
from fedsim.core.plugins import HasPlugins
from fedsim.core.streams import Streams
from fedsim.nets import products
from fedsim.parallel.cores import spread
from fedsim.pretrained.classifiers import Fit, by_class, classifiers
from fedsim.problems.base import EVALUATED_AT_ONCE, Setting
from fedsim.problems.black_box import BlackBox
from fedsim.problems.datasets.base import Dataset, split_dataset, standardise
from fedsim.problems.evaluators import Stacked
from fedsim.problems.measures import Measure
from fedsim.problems.models.dense import MLP
from fedsim.problems.partitions.base import Partition

Average = Literal["precision", "recall", "f1", "jaccard"]


def macro(confusion: Tensor, measure: Average) -> Tensor:
    """Macro averages, float64 [...], of confusion counts [..., K, K], rows true and columns predicted.

    With t true, p predicted and h both of a class: precision h/p, recall h/t, F1 2h/(t + p), Jaccard h/(t + p - h), 0
    where the denominator is 0; then the mean over all K classes, whether they occur or not.
    """
    counts = confusion.double()
    both, true, predicted = counts.diagonal(dim1=-2, dim2=-1), counts.sum(dim=-1), counts.sum(dim=-2)
    above, below = {
        "precision": (both, predicted),
        "recall": (both, true),
        "f1": (2.0 * both, true + predicted),
        "jaccard": (both, true + predicted - both),
    }[measure]
    return (above / below.clamp(min=1.0)).mean(dim=-1)


class Scorer:
    """Networks that differ in the last d parameters, judged by their confusion on parts of a test set.

    sizes: inputs, hidden units and outputs of an MLP with ReLU; params: [m] flat, weight before bias, layer after
    layer. x, y: the test set, [n, inputs] and int64 [n]. What the first changed layer reads is computed once.
    """

    def __init__(self, sizes: Sequence[int], params: Tensor, x: Tensor, y: Tensor, dimension: int) -> None:
        shapes = list(pairwise(sizes))
        lengths = [inputs * outputs + outputs for inputs, outputs in shapes]
        changed = next(layer for layer in range(len(shapes)) if sum(lengths[layer + 1 :]) < dimension)
        self.classes, self.y, self.dimension = sizes[-1], y, dimension
        self._shapes, self._lengths = shapes[changed:], lengths[changed:]
        fixed = sum(lengths[:changed])
        self._base = params[fixed:]
        self.read = _forward(x.unsqueeze(0), params[:fixed].unsqueeze(0), shapes[:changed], last=False)[0]

    def confusion(self, change: Tensor, rows: Tensor) -> Tensor:
        """PositiveInt true and predicted classes of the examples `rows`, int64 [n]: int64 [Q, K, K].

        change: [Q, d], what is added to the last d parameters.
        """
        read, y, k = self.read[rows], self.y[rows], self.classes
        width = max(max(shape) for shape in self._shapes)
        at_once = max(1, EVALUATED_AT_ONCE // (len(rows) * width))
        return torch.cat([self._confusion(part, read, y, k) for part in torch.split(change, at_once)])

    def _confusion(self, change: Tensor, read: Tensor, y: Tensor, k: int) -> Tensor:
        params = self._base + functional.pad(change, (len(self._base) - self.dimension, 0))
        outputs = _forward(read.expand(len(change), *read.shape), params, self._shapes, last=True)
        query = torch.arange(len(change), device=y.device).unsqueeze(1)
        cell = (query * k + y) * k + outputs.argmax(dim=-1)
        return torch.bincount(cell.flatten(), minlength=len(change) * k * k).view(-1, k, k)


def _forward(hidden: Tensor, params: Tensor, shapes: Sequence[tuple[int, int]], *, last: bool) -> Tensor:
    """Apply linear layers with a ReLU after each, but for the last one's if `last`: [Q, n, out] of [Q, n, in].

    params: [Q, sum of the layers' parameters].
    """
    lengths = [length for inputs, outputs in shapes for length in (inputs * outputs, outputs)]
    parts = torch.split(params, lengths, dim=1)
    for layer, (inputs, outputs) in enumerate(shapes):
        weight, bias = parts[2 * layer].reshape(-1, outputs, inputs), parts[2 * layer + 1].unsqueeze(1)
        hidden = products.baddbmm(bias, hidden, weight.mT)
        if not last or layer < len(shapes) - 1:
            hidden = hidden.relu_()
    return hidden


@options
class Metric(HasPlugins):
    """The metric of a network that was trained centrally, to be improved for the test examples of all clients.

    The network does not depend on the run's seed, so that runs of several seeds improve the same one.
    """

    dataset: Any = "digits"
    """A table of classes; its training and test examples together are split anew, half and half, and standardized by
    the first half.
    """
    hidden: Counts = (30, 14)
    """Units of the MLP, by layer."""
    epochs: PositiveInt = 3
    """Passes over the first half while the MLP is trained, by Adam; few leave room for improvement."""
    batch_size: PositiveInt = 32
    """Examples of a step of that training."""
    lr: Rate = 0.001
    """Learning rate of that training."""
    split_seed: NonNegativeInt = 0
    """Which examples are the first half; it does not follow the run's seed."""
    training_seed: NonNegativeInt = 0
    """Seed of the MLP's start and batches; it does not follow the run's seed."""
    measure: Average = "f1"
    """Of which score the macro average is taken."""
    dimension: PositiveInt | None = None
    """How many of the last parameters are changed. Not given: those of the last layer."""
    reach: PositiveFloat = 0.2
    """The largest change of one of them; x = 0.5, the start, changes nothing."""
    clients: PositiveInt = 7
    """N, how many clients there are."""
    portion: Share = 0.3
    """Portion of the classes that each client has in its examples, its part of the second half (`by_class`)."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise that is added to every answer."""

    values_only: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, str]] = {"dataset": "datasets"}

    def build(self, setting: Setting) -> BlackBox:
        """Train the network, or read the one trained before, and deal the test half."""
        data, device, dtype = self._halves(self.made["dataset"].load(setting.folder)), setting.device, setting.dtype
        adam = {"kind": "adam", "beta2": 0.999}
        training = Fit(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, optimizer=adam)
        everything = Partition.from_lists([np.arange(len(data.x))])
        _, params = classifiers(data, everything, MLP(hidden=self.hidden), training, self.training_seed, device)
        generator = Streams(self.split_seed).generator("metric/deal")
        shards = by_class(data.y_test, data.num_classes, self.clients, self.portion, generator)
        x, y = torch.from_numpy(data.x_test).to(device, dtype), torch.from_numpy(data.y_test).to(device)
        sizes = (data.x.shape[1], *self.hidden, data.num_classes)
        dimension = (sizes[-2] + 1) * sizes[-1] if self.dimension is None else self.dimension
        if dimension > params.shape[1]:
            raise InputError(
                "problem.dimension", dimension, f"the network has {params.shape[1]} parameters; take fewer"
            )
        scorer = Scorer(sizes, params[0].to(dtype), x, y, dimension)
        return MetricProblem(scorer, shards, self.measure, self.reach, noise=self.noise)

    def _halves(self, data: Dataset) -> Dataset:
        """Join the parts of a data set of classes, and split it into two standardized halves of rows [n, features]."""
        if data.vocabulary or not data.labelled or data.num_classes < 2:
            raise InputError("problem.dataset", data.name, "is not of numbers in classes; a metric needs both")
        x, y = np.concatenate((data.x, data.x_test)), np.concatenate((data.y, data.y_test))
        halves = split_dataset(data.name, x.reshape(len(x), -1), y, data.num_classes, 0.5, self.split_seed)
        standardise(halves.x, halves.x_test)
        return halves


class MetricProblem(BlackBox):
    """The N functions of a metric.

    shards: which test examples the clients have. reach: the largest change of a parameter. noise: standard deviation
    of an answer's.
    """

    def __init__(
        self, scorer: Scorer, shards: Partition, measure: Average, reach: float, *, noise: float = 0.0
    ) -> None:
        self.scorer, self.measure, self.reach = scorer, measure, reach
        self._rows = [torch.from_numpy(shards.indices(client)).to(scorer.y.device) for client in range(shards.clients)]
        super().__init__(
            Stacked(self.complements, shards.clients, False),
            dimension=scorer.dimension,
            noise=noise,
            device=scorer.read.device,
            dtype=scorer.read.dtype,
        )

    def complements(self, clients: Tensor, x: Tensor) -> Tensor:
        """f_c = 1 - metric at x [C, Q, d]: [C, Q]. Each client by itself, so that none depends on another."""

        def one(row: int) -> Tensor:
            confusion = self.scorer.confusion(self._change(x[row]), self._rows[chosen[row]])
            return 1.0 - macro(confusion, self.measure)

        chosen = clients.tolist()
        return torch.stack(spread(one, range(len(chosen)))).to(x.dtype)

    def evaluate(
        self, params: Tensor, *, clients: bool, on: Collection[str] = ("test",), metrics: Sequence[Measure] = ()
    ) -> dict[str, float]:
        """Measure F, and the metric itself on the whole test half, under its own name."""
        whole = torch.arange(len(self.scorer.y), device=self.device)
        central = macro(self.scorer.confusion(self._change(params.unsqueeze(0)), whole), self.measure)
        return super().evaluate(params, clients=clients, on=on, metrics=metrics) | {self.measure: float(central)}

    def measures(
        self, clients: bool | str, on: Collection[str] = ("test",), metrics: Sequence[Measure] = ()
    ) -> list[str]:
        """The names that `evaluate` gives."""
        return [*super().measures(clients, on, metrics), self.measure]

    def _change(self, x: Tensor) -> Tensor:
        """What x [Q, d] adds to the last parameters."""
        return self.reach * (2.0 * x.clamp(0.0, 1.0) - 1.0)
