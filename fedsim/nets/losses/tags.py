"""The binary cross-entropy of tags."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.options import options
from fedsim.nets.elementwise import in_whole_registers
from fedsim.nets.losses.base import Pointwise, Targets
from fedsim.nets.losses.classes import Balanced, Weights, fitted_factors


@options
class BinaryCrossEntropy(Pointwise):
    """The binary cross-entropy -w t log p - (1 - t) log(1 - p) of a tag t, 0 or 1, and an output z, p = sigmoid(z)."""

    tasks = ("tags",)
    curves = True

    pos_weight: Weights | Balanced | None = None
    """A factor w for each tag, by which examples that have it count; balanced: of the training examples how many do not
    have it for each that does, and 1 where none does. Not given: 1.
    """

    _weights: ClassVar[Tensor | None] = None

    def fitted(self, targets: Tensor, task: Targets, outputs: int) -> Self:
        """See `Loss.fitted`; weights are float64 [k]."""
        made = super().fitted(targets, task, outputs)
        object.__setattr__(made, "_weights", fitted_factors("pos_weight", self.pos_weight, _balanced, targets, outputs))
        return made

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., k] and targets [..., k]."""
        log_p = in_whole_registers(functional.logsigmoid, outputs)  # log(1 - p) = log p - z
        return (1.0 - targets) * outputs - self._factor(targets) * log_p

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and (1 - t + w t) p - w t."""
        p, factor = in_whole_registers(torch.sigmoid, outputs), self._factor(targets)
        return self.each(outputs, targets), factor * p - (factor - 1.0 + targets)

    def _factor(self, targets: Tensor) -> Tensor | float:
        """1 - t + w t."""
        return 1.0 if self._weights is None else 1.0 + (self._weights.to(targets) - 1.0) * targets


def _balanced(targets: Tensor, outputs: int) -> Tensor:  # noqa: ARG001
    held = targets.double().sum(dim=0)
    return torch.where(held > 0, (len(targets) - held) / held, 1.0)
