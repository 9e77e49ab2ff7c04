"""Losses of single examples, and what is counted of their predictions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.nets import products
from fedsim.nets.elementwise import in_whole_registers


class Loss(ABC):
    """A loss by example.

    Where examples of a batch are seen in V views, as clean and as attacked, outputs are [..., V B, K], view after view,
    and so are the losses: the loss of an example is the sum over its views.
    """

    @abstractmethod
    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...], in terms that can be differentiated."""

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [...] and the gradients [..., K] of their sum with respect to the outputs."""
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.examples(leaf, targets)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:  # noqa: ARG002
        """1 where a prediction is right and 0 elsewhere, [...]; None where accuracy has no meaning."""
        return None


class CrossEntropy(Loss):
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


@dataclass(frozen=True)
class LabelSmoothing(CrossEntropy):
    """(1 - share) * cross-entropy of the target + share * the mean of the cross-entropies of all classes."""

    share: float

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...]."""
        everything = -torch.log_softmax(outputs, dim=-1).mean(dim=-1)
        return (1.0 - self.share) * super().examples(outputs, targets) + self.share * everything

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and softmax(outputs) - (1 - share) onehot(targets) - share / K."""
        _, gradient = super().with_gradient(outputs, targets)
        at = targets.unsqueeze(-1)
        gradient.sub_(self.share / outputs.shape[-1])
        gradient.scatter_add_(-1, at, gradient.new_full((1,), self.share).expand(at.shape))
        return self.examples(outputs, targets), gradient


class SquaredError(Loss):
    """(output - target)^2, for regression; outputs are [..., 1]."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., 1] and targets [...]."""
        return (outputs.squeeze(-1) - targets) ** 2

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and 2 (output - target)."""
        difference = outputs - targets.unsqueeze(-1)
        return difference.squeeze(-1) ** 2, 2.0 * difference


class LogCosh(Loss):
    """log cosh(output - target), for regression: convex, 1-Lipschitz, 0 at the target; outputs are [..., 1]."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., 1] and targets [...]."""
        away = (outputs.squeeze(-1) - targets).abs()
        # log cosh a = a + log(1 + e^(-2 a)) - log 2, which does not overflow.
        return away + in_whole_registers(functional.softplus, -2.0 * away) - math.log(2.0)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and tanh(output - target)."""
        return self.examples(outputs, targets), torch.tanh(outputs - targets.unsqueeze(-1))


LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "squared_error": SquaredError(),
    "log_cosh": LogCosh(),
}


def loss_named(name: str) -> Loss:
    """The loss of that name, or an `InputError`."""
    if not isinstance(name, str) or name not in LOSSES:
        raise InputError("problem.loss", name, name_one(name, LOSSES))
    return LOSSES[name]


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    """Row sums of weight * losses, [k], as a batched product: a row's result never depends on other rows."""
    return products.bmm(weight.unsqueeze(1), losses.unsqueeze(2)).view(-1)
