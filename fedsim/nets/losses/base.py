"""What losses of examples have in common, and what is counted of predictions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError
from fedsim.nets import products

Targets = Literal["classes", "numbers", "tags"]
"""What targets are: one class of several, real numbers, or tags, each of which holds or does not."""
IGNORED = -100
"""The class of a place that does not count, PyTorch's `ignore_index`."""


class Loss(ABC):
    """A loss by example.

    Outputs are [..., *places, K] and targets [..., *places]: one class for each place of an example, at which one class
    has K outputs; or one number or tag for each place, at which there is one output: then there is at most one axis of
    places, and outputs are [..., k] of targets [..., k], or [..., 1] of targets [...].
    tasks: what targets it is for. curves: whether it is a function of the outputs that curves upwards, or not at all,
    wherever these are, and may be differentiated twice. places: how many axes the targets of an example have.
    Where examples of a batch are seen in V views, as clean and as attacked, outputs are [..., V B, K], view after view,
    and so are the losses: the loss of an example is the sum over its views.
    of_features: whether it sees features, too, [..., h] of each example, and is no function of outputs alone.
    """

    tasks: ClassVar[tuple[Targets, ...]] = ("classes", "numbers", "tags")
    curves: ClassVar[bool] = False
    of_features: ClassVar[bool] = False
    places: int = 0
    _task: Targets | None = None

    @property
    def task(self) -> Targets:
        """What the targets are that it has been fitted to, or else the first that it is for."""
        return self._task or self.tasks[0]

    def fitted(self, targets: Tensor, task: Targets, outputs: int) -> Self:  # noqa: ARG002
        """The same for a problem: what it needs to know of the training targets [n, *places], and of K outputs.

        InputError: it does not go with them.
        """
        made = copy.copy(self)
        object.__setattr__(made, "places", targets.dim() - 1)
        object.__setattr__(made, "_task", task)
        return made

    @abstractmethod
    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of examples, in terms that can be differentiated; see the class for the shapes."""

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [...] of examples and the gradient of their sum with respect to the outputs, in their shape."""
        return by_autograd(self.examples, outputs, targets)

    def examples_with(self, features: Tensor | None, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """The losses of `examples`, or of features [..., h], too, where it is `of_features`; others get none."""
        return self.examples(outputs, targets)

    def gradients_with(
        self,
        features: Tensor | None,  # noqa: ARG002
        outputs: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The losses of `examples_with`, and gradients of their sum by the features, if it sees any, and outputs."""
        losses, gradient = self.with_gradient(outputs, targets)
        return losses, None, gradient

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The share of an example's classes, at places that count, or of its tags that are right, [...].

        None where targets are numbers, of which none is right or wrong.
        """
        if self.task == "numbers":
            return None
        if self.task == "tags":
            return ((outputs > 0) == (targets > 0)).to(outputs.dtype).mean(dim=-1)
        right = outputs.argmax(dim=-1) == targets
        return self.mean(right.to(outputs.dtype), targets) if self.places else right.to(outputs.dtype)

    def mean(self, values: Tensor, targets: Tensor) -> Tensor:
        """Means [...] over an example's places that count of values [..., *places] of classes, 0 elsewhere."""
        return (values * self.shares(targets).to(values.dtype)).flatten(-self.places).sum(dim=-1)

    def shares(self, targets: Tensor) -> Tensor:
        """What each place is of those of its example that count, [..., *places]; 0 where it does not."""
        counts = targets != IGNORED
        number = counts.flatten(-self.places).sum(dim=-1).clamp(min=1)
        return counts / number.to(torch.float64).view(*number.shape, *[1] * self.places)


class FeatureLoss(Loss):
    """Another loss, and beside it one of features, what the model's head reads of an example. loss: the other."""

    of_features: ClassVar[bool] = True
    loss: Loss

    @abstractmethod
    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        """What is added to the losses [...] of examples of features [..., h]."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """None without features."""
        raise BrokenPromiseError(f"{type(self).__name__}: a loss of features was asked without them")

    def examples_with(self, features: Tensor | None, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum [...] of both."""
        assert features is not None
        return self.loss.examples(outputs, targets) + self.of(features, targets)

    def gradients_with(
        self, features: Tensor | None, outputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Losses [...], and gradients of their sum by features and outputs, in their shapes."""
        assert features is not None
        losses, gradient = self.loss.with_gradient(outputs, targets)
        beside, pull = by_autograd(self.of, features, targets)
        return losses + beside, pull, gradient


class ModelLoss(Loss):
    """A loss of models around inputs, which is no function of their outputs for these."""

    @abstractmethod
    def of(self, leaves: Sequence[Tensor], x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Losses [k] of a stack's leaves [k, ...] on inputs x [k, B, ...], in terms that can be differentiated.

        weight: of the examples, [k, B], 0 where there is none.
        """

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """None without the models."""
        raise BrokenPromiseError(f"{type(self).__name__}: a loss of models was asked without them")


class Pointwise(Loss):
    """A loss of single targets: an example's is the mean over its places that count, its numbers or its tags."""

    @abstractmethod
    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of targets [...], of which classes have outputs [..., K], numbers and tags outputs [...]."""

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and gradients of their sum in the shape of the outputs, in memory of their own."""
        return by_autograd(self.each, outputs, targets)

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of examples; see `Loss`."""
        if self.task != "classes":
            return self.each(outputs, targets).mean(dim=-1) if self.places else self.each(outputs.squeeze(-1), targets)
        if not self.places:
            return self.each(outputs, targets)
        return self.mean(self.each(*_counting(outputs, targets)), targets)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [...] of examples and the gradient of their sum with respect to the outputs, in their shape."""
        if self.task == "classes" and not self.places:
            return self.each_with_gradient(outputs, targets)
        if self.task == "classes":
            losses, gradient = self.each_with_gradient(*_counting(outputs, targets))
            share = self.shares(targets).to(losses.dtype)
            return (losses * share).flatten(-self.places).sum(dim=-1), gradient * share.unsqueeze(-1)
        if not self.places:
            losses, gradient = self.each_with_gradient(outputs.squeeze(-1), targets)
            return losses, gradient.unsqueeze(-1)
        losses, gradient = self.each_with_gradient(outputs, targets)
        return losses.mean(dim=-1), gradient / outputs.shape[-1]


def _counting(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [..., K] and targets [...] with zeros where no target counts: whatever is there has no part."""
    counts = targets != IGNORED
    return outputs.where(counts.unsqueeze(-1), 0.0), targets.where(counts, 0)


def by_autograd(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of outputs and targets and the gradient of their sum with respect to the outputs."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss(leaf, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    """Row sums of weight * losses, [k], as a batched product: a row's result never depends on other rows."""
    return products.bmm(weight.unsqueeze(1), losses.unsqueeze(2)).view(-1)


def weighted_gradient(losses: Tensor, weight: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradient of the sum of weight * losses, both of one shape; that of a parameter they do not know is zero."""
    return each_its_own(torch.autograd.grad(losses, parameters, weight, allow_unused=True, materialize_grads=True))


def each_its_own(gradient: Sequence[Tensor]) -> Sequence[Tensor]:
    """Parts of a gradient, each in memory of its own.

    Of leaves that are only ever added up, as a recurrent layer's two biases, autograd gives one tensor for both, and
    whoever scaled each in place would scale it twice.
    """
    seen, found = set[int](), list[Tensor]()
    for part in gradient:
        place = part.data_ptr()
        found.append(part.clone() if place in seen else part)
        seen.add(place)
    return found
