"""Second derivatives: what networks share that differentiate gradients again, and outputs as linear functions.

A product with the Hessian is the derivative of <gradient, v>, by a second backward pass; the gradient of a stack's row
knows no other row, so its derivative does not either. What a network's outputs are near a point is a linear function of
the parameters, `Linearised`, whose matrix J [N, d] a chain of linear layers never has to have as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedsim.core.errors import InputError, one_line
from fedsim.nets import products
from fedsim.nets.losses import FeatureLoss, Loss
from fedsim.nets.modes import second_order
from fedsim.nets.stack import Stack, take

ONCE = ("is not implemented", "not differentiable", "double backward", "higher order")
"""Words by which PyTorch says that a gradient has no gradient."""
KEPT = 2**24
"""Numbers of a client's matrix J that are kept at most."""


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Within this block gradients may be differentiated. InputError: a layer has no second derivative."""
    try:
        with second_order():
            yield
    except (NotImplementedError, RuntimeError) as error:
        if not any(words in str(error) for words in ONCE):
            raise
        raise _refused(one_line(error, 160)) from error


def refuse_once(gradient: Iterable[Tensor]) -> None:
    """Refuse (InputError) a gradient of which a part was marked to be differentiated once.

    PyTorch raises where such a part is reached, and it is cut off from what it would be reached from.
    """
    seen: set[object] = set()
    left: list[Any] = [part.grad_fn for part in gradient]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise _refused("it is marked with once_differentiable")
        seen.add(node)
        left += [before for before, _ in node.next_functions]


def _refused(why: str) -> InputError:
    remedy = f"a layer of it has no second derivative; take an optimizer that asks for none ({why})"
    return InputError("problem.model", "products with the Hessian", remedy)


def derivative(gradient: Sequence[Tensor], leaves: Sequence[Tensor], along: Sequence[Tensor]) -> Sequence[Tensor]:
    """The derivative of <gradient, along> by the leaves: H along, of a gradient that was made with its graph.

    A part of the gradient without a graph is the same everywhere.
    """
    curved = [(part, own) for part, own in zip(gradient, along, strict=True) if part.requires_grad]
    if not curved:
        return [torch.zeros_like(leaf) for leaf in leaves]
    parts, own = zip(*curved, strict=True)
    return torch.autograd.grad(parts, leaves, own, allow_unused=True, materialize_grads=True)


def slope(loss: Loss, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
    """How the gradients of the examples' losses by their outputs [..., K] change along a direction of those."""
    return _slope(loss.examples, outputs, targets, along)


def slopes(
    loss: Loss, features: Tensor, outputs: Tensor, targets: Tensor, along: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, Tensor]:
    """The same of gradients by features [..., h], if the loss sees any, and by outputs, along a direction of each."""
    if not isinstance(loss, FeatureLoss):
        return None, slope(loss, outputs, targets, along[1])
    return _slope(loss.of, features, targets, along[0]), slope(loss.loss, outputs, targets, along[1])


def _slope(loss: Callable[[Tensor, Tensor], Tensor], at: Tensor, targets: Tensor, along: Tensor) -> Tensor:
    leaf = at.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf, targets).sum(), leaf, create_graph=True)
    (found,) = derivative([gradient], [leaf], [along])
    return found


class Linearised(ABC):
    """Outputs of clients as a linear function of what is trained: outputs + J (y' - y), of N = B * places * K numbers.

    outputs: [k, B, *places, K], without a graph.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs.detach()

    @abstractmethod
    def pull(self, u: Tensor) -> Stack:
        """J' u, of u in the shape of the outputs."""

    @abstractmethod
    def push(self, v: Stack) -> Tensor:
        """J v in the shape of the outputs, of directions v, one a client."""

    @abstractmethod
    def gram(self) -> Tensor:
        """J J', [k, N, N]. InputError: J has more numbers than may be kept."""

    @abstractmethod
    def among(self, numbers: Sequence[int]) -> Linearised:
        """The same as a function of some leaves alone, where the others stay as they are."""


class Traced(Linearised):
    """Outputs whose graph is kept, by its leaves; J is made of a backward pass a row, when it is asked for."""

    def __init__(self, outputs: Tensor, leaves: Sequence[Tensor], rows: Stack) -> None:
        """Rows: in whose shapes the leaves are a stack."""
        super().__init__(outputs)
        self._traced, self._leaves, self._like = outputs, leaves, rows

    def pull(self, u: Tensor) -> Stack:
        """J' u, by a backward pass from u."""
        return Stack(part.view_as(leaf) for part, leaf in zip(self._backward(u), self._like.leaves, strict=True))

    def push(self, v: Stack) -> Tensor:
        """J v, by the rows of J."""
        return products.bmm(self._rows, v.flat().unsqueeze(2)).view_as(self.outputs)

    def gram(self) -> Tensor:
        """J J', by the rows of J."""
        return products.bmm(self._rows, self._rows.mT)

    def among(self, numbers: Sequence[int]) -> Linearised:
        """By the graph's leaves of these numbers."""
        return Traced(self._traced, [self._leaves[number] for number in numbers], take(self._like, numbers))

    @cached_property
    def _rows(self) -> Tensor:
        """J, [k, N, d]."""
        clients, count = len(self.outputs), self.outputs[0].numel()
        numbers = count * sum(leaf[0].numel() for leaf in self._like.leaves)
        if numbers > KEPT:
            remedy = f"a batch has {count} of them a client, and their derivatives are {numbers:,} numbers, of at most"
            raise InputError(
                "client.batch_size", "outputs", f"{remedy} {KEPT:,}; take smaller batches or a chain of linear layers"
            )
        found = self.outputs.new_empty(clients, count, numbers // count)
        for row in range(count):
            one = torch.zeros_like(self.outputs).view(clients, -1)
            one[:, row] = 1.0
            parts = self._backward(one.view_as(self.outputs))
            torch.cat([part.reshape(clients, -1) for part in parts], dim=1, out=found[:, row])
        return found

    def _backward(self, u: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(
            self._traced, self._leaves, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
