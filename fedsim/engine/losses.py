"""Losses of single examples, and what is counted of their predictions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.errors import InputError


class Loss(Protocol):
    """A loss by example, with the closed-form gradient that hand-written kernels use."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...]."""
        ...

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [...] and their gradients [..., K] with respect to the outputs, without autograd."""
        ...

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """1 where a prediction is right and 0 elsewhere, [...]; None where accuracy has no meaning."""
        ...


class CrossEntropy:
    """-log softmax(outputs)[target], for classification; targets are int64."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...]."""
        flat = functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), reduction="none")
        return flat.view(targets.shape)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and softmax(outputs) - onehot(targets)."""
        log_probability = torch.log_softmax(outputs, dim=-1)
        at = targets.unsqueeze(-1)
        losses = -log_probability.gather(-1, at).squeeze(-1)
        gradient = log_probability.exp_()
        return losses, gradient.scatter_add_(-1, at, gradient.new_full((1,), -1.0).expand(at.shape))

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest output is the target's."""
        return (outputs.argmax(dim=-1) == targets).to(outputs.dtype)


class SquaredError:
    """(output - target)^2, for regression; outputs are [..., 1]."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., 1] and targets [...]."""
        return (outputs.squeeze(-1) - targets) ** 2

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and 2 (output - target)."""
        difference = outputs - targets.unsqueeze(-1)
        return difference.squeeze(-1) ** 2, 2.0 * difference

    def correct(self, outputs: Tensor, targets: Tensor) -> None:
        """Accuracy has no meaning for a regression."""


LOSSES: dict[str, Loss] = {"cross_entropy": CrossEntropy(), "squared_error": SquaredError()}


def loss_named(name: str) -> Loss:
    """The loss of that name, or an `InputError`."""
    if name not in LOSSES:
        raise InputError("problem.loss", name, f"name one of: {', '.join(LOSSES)}")
    return LOSSES[name]
