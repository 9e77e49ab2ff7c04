"""Losses of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeFloat, options
from fedsim.nets.losses.base import IGNORED, Pointwise, Targets

Weights = Annotated[tuple[NonNegativeFloat, ...], Field(strict=False, min_length=1)]
"""A factor for each; a TOML array, in Python a list or a tuple."""
Balanced = Literal["balanced"]


@options
class Weighing(Pointwise):
    """What losses share that count some classes more than others."""

    weights: Weights | Balanced | None = None
    """A factor w for each class, by which the losses of its examples count; balanced: n / (K n_c), of the n training
    labels n_c of class c, of the K classes that there are among them; 1 for the others. Not given: 1.
    """

    _weights: ClassVar[Tensor | None] = None

    def fitted(self, targets: Tensor, task: Targets, outputs: int) -> Self:
        """See `Loss.fitted`; weights are float64 [K]."""
        made = super().fitted(targets, task, outputs)
        object.__setattr__(made, "_weights", fitted_factors("weights", self.weights, _balanced, targets, outputs))
        return made

    def factors(self, outputs: Tensor) -> Tensor | None:
        """The weights [K], as numbers like the outputs; None: there are none."""
        return None if self._weights is None else self._weights.to(outputs)


def fitted_factors(
    option: str,
    given: Weights | Balanced | None,
    balanced: Callable[[Tensor, int], Tensor],
    targets: Tensor,
    outputs: int,
) -> Tensor | None:
    """Factors that are given for each of K outputs, or those that `balanced` reckons of training targets: float64 [K].

    None: none are given. InputError on `option`: they are not one for each.
    """
    if given is None:
        return None
    if given == "balanced":
        return balanced(targets, outputs)
    if len(given) != outputs:
        raise InputError(f"problem.loss.{option}", list(given), f"give one for each of the {outputs} outputs")
    return torch.tensor(given, dtype=torch.float64, device=targets.device)


def _balanced(targets: Tensor, outputs: int) -> Tensor:
    count = torch.bincount(targets[targets != IGNORED].flatten(), minlength=outputs).double()
    return torch.where(count > 0, count.sum() / ((count > 0).sum() * count), 1.0)


@options
class CrossEntropy(Weighing):
    """The cross-entropy -w_t log p_t of the target t, p = softmax(outputs).

    With label smoothing s it is (1 - s) of that and s of the mean of -w_c log p_c over all classes c. That of PyTorch,
    but for the mean, which is over examples, whatever their weights.
    """

    tasks = ("classes",)
    curves = True

    label_smoothing: Fraction = 0.0
    """s, the share of a label that is spread evenly over all classes."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...]."""
        weights, share = self.factors(outputs), self.label_smoothing
        if targets.dim() == 1:  # as PyTorch has it: views, which would be differentiated, too, take 8 microseconds
            found = functional.cross_entropy(outputs, targets, weight=weights, reduction="none")
        else:
            flat = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
            found = functional.cross_entropy(*flat, weight=weights, reduction="none").view(targets.shape)
        if not share:
            return found
        everything = -torch.log_softmax(outputs, dim=-1)
        everything = everything if weights is None else everything * weights
        return (1.0 - share) * found + share * everything.mean(dim=-1)

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and a softmax(outputs) - (1 - s) w_t onehot(t) - s w / K, a = (1 - s) w_t + s mean(w)."""
        weights, share = self.factors(outputs), self.label_smoothing
        log_probability = torch.log_softmax(outputs, dim=-1)
        at = targets.unsqueeze(-1)
        losses = self.each(outputs, targets) if share else -log_probability.gather(-1, at).squeeze(-1)
        gradient = log_probability.exp_()
        if weights is None:
            gradient.scatter_add_(-1, at, gradient.new_full((1,), share - 1.0).expand(at.shape))
            return losses, gradient.sub_(share / outputs.shape[-1]) if share else gradient
        own = weights[at]
        gradient.mul_((1.0 - share) * own + share * weights.mean())
        gradient.scatter_add_(-1, at, (share - 1.0) * own)
        if share:
            return losses, gradient.sub_(weights, alpha=share / outputs.shape[-1])
        return losses * own.squeeze(-1), gradient


@options
class Focal(Weighing):
    """The focal loss -w_t (1 - p_t)^gamma log p_t of the target t: examples that are easy count less.

    p = softmax(outputs). Lin et al. 2017, equation 5.
    """

    tasks = ("classes",)

    gamma: NonNegativeFloat = 2.0
    """How much less; 0 is the cross-entropy."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...]."""
        log_probability = torch.log_softmax(outputs, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        # (1 - p)^gamma by exp and log, which give a number the same bits wherever it stands.
        others = (1.0 - log_probability.exp()).clamp(min=torch.finfo(outputs.dtype).tiny)
        losses = -(self.gamma * others.log()).exp() * log_probability
        weights = self.factors(outputs)
        return losses if weights is None else losses * weights[targets]
