"""Gradients of single examples, as far as clipping asks: how long each is, and their sum with factors. None is made.

Of an example's own loss a layer's weight has the gradient sum_t delta_t a_t', with a_t what the layer reads at position
t and delta_t what comes back to its output there. So

    |dW|^2 = sum_{t, u} (a_t . a_u) (delta_t . delta_u),   |db|^2 = |sum_t delta_t|^2

and the sum of such gradients, each with a factor, is the gradient of deltas with these factors: the layers are passed
forward and back once. Goodfellow 2015; positions by Li et al. 2022; the cheaper of both forms by Bu et al. 2022.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.nets import products
from fedsim.nets.convolution import Geometry, weight_gradient

TINY = 1e-12
"""The least norm that a bound is divided by."""
TOGETHER = 2**22
"""Numbers of single examples' gradients or patches that are there at once."""


class Part(ABC):
    """A leaf as one layer uses it."""

    @abstractmethod
    def squares(self, delta: Tensor) -> Tensor:
        """The squared norms [C, B] of the examples' gradients, of what comes back to the layer's output, [C, B, ...].

        No example's depends on others.
        """

    @abstractmethod
    def gradient(self, delta: Tensor) -> Tensor:
        """The sum of the examples' gradients, [C, *shape]."""


@dataclass(frozen=True)
class Use:
    """That a layer has used a leaf, of this name, for its output [C, B, ...]."""

    name: str
    part: Part
    output: Tensor


_uses: ContextVar[list[Use] | None] = ContextVar("fedsim_uses", default=None)


@contextmanager
def watching() -> Iterator[list[Use]]:
    """Within this block layers note which leaves they use, and outputs can be differentiated by those of layers."""
    found = list[Use]()
    token = _uses.set(found)
    try:
        yield found
    finally:
        _uses.reset(token)


def noted(output: Tensor, parts: Callable[[], Mapping[str, Part]]) -> Tensor:
    """A layer's output, which is noted with its leaves where somebody watches."""
    uses = _uses.get()
    if uses is None:
        return output
    if not output.requires_grad:
        output.requires_grad_()
    uses += [Use(name, part, output) for name, part in parts().items()]
    return output.clone()  # what follows may write to its input


def factors(squares: Sequence[Tensor], bounds: Sequence[float], weight: Tensor) -> list[Tensor]:
    """What each leaf's gradients are multiplied by to be no longer than a bound, [k, B] each.

    squares: of each leaf the squared norms [k, B] of weight times the examples' gradients. bounds: one of all leaves
    together, or one of each; of gradients without the weight.
    """
    if len(bounds) == 1:
        own = _factor(sum(squares[1:], start=squares[0]), bounds[0] * weight)
        return [own] * len(squares)
    return [_factor(own, bound * weight) for own, bound in zip(squares, bounds, strict=True)]


def _factor(squares: Tensor, bound: Tensor) -> Tensor:
    return (bound / squares.sqrt().clamp(min=TINY)).clamp(max=1.0)


@dataclass(frozen=True)
class Small(Part):
    """A leaf of so few numbers that its gradients are made. each: of deltas [C, B, ...] to them, [C, B, *shape]."""

    each: Callable[[Tensor], Tensor]

    def squares(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        return lengths(self.each(delta).flatten(2))

    def gradient(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        return self.each(delta).sum(dim=1)


SHIFT = Small(lambda delta: delta.flatten(2, -2).sum(dim=2) if delta.dim() > 3 else delta)
"""The bias of a layer with outputs [C, B, ..., out]."""
CHANNELS = Small(lambda delta: delta.flatten(3).sum(dim=3))
"""The bias of a layer with outputs [C, B, out, ...]."""


def summed(shape: Sequence[int], by: Tensor | None = None) -> Small:
    """A leaf that is added to outputs [C, B, ...], or times which `by` of the same shape is; shape: [1, 1, ...] then.

    The leaf's shape has 1 on axes along which all numbers share one of the leaf's.
    """

    def each(delta: Tensor) -> Tensor:
        own = delta if by is None else delta * by
        return own.sum_to_size(*own.shape[:2], *shape)

    return Small(each)


@dataclass(frozen=True)
class Products(Part):
    """The weight [C, out, in] of products with rows x [C, B, ..., in]."""

    x: Tensor

    def squares(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        return _squares(*(_positions(rows).flatten(0, 1) for rows in (self.x, delta))).view(delta.shape[:2])

    def gradient(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        return products.bmm(delta.flatten(1, -2).mT, self.x.flatten(1, -2))


@dataclass(frozen=True)
class Patches(Part):
    """The weight [C, out, in, *kernel] of a convolution of x [C, B, in, H, W]."""

    x: Tensor
    geometry: Geometry

    def squares(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        kernel, stride, padding, dilation = self.geometry
        images, deltas = self.x.flatten(0, 1), delta.flatten(0, 1).flatten(2)
        one = images.shape[1] * kernel[0] * kernel[1] * deltas.shape[2]
        found = []
        for part in _blocks(len(images), one):
            columns = functional.unfold(images[part], kernel, dilation, padding, stride)
            found.append(_squares(columns.mT, deltas[part].mT))
        return torch.cat(found).view(delta.shape[:2])

    def gradient(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        return weight_gradient(self.x, delta, self.geometry)


@dataclass(frozen=True)
class Rows(Part):
    """The table [C, V, width] of which tokens x [C, B, ...] are rows, V of each client."""

    x: Tensor
    vocabulary: int

    def squares(self, delta: Tensor) -> Tensor:
        """Sum_{t, u} [x_t = x_u] delta_t . delta_u."""
        own, tokens = _positions(delta).flatten(0, 1), self.x.flatten(0, 1).flatten(1)
        same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
        found = (products.bmm(own, own.mT) * same).flatten(1).sum(dim=1)
        return found.clamp(min=0.0).view(delta.shape[:2])

    def gradient(self, delta: Tensor) -> Tensor:
        """See `Part`."""
        clients, width = len(delta), delta.shape[-1]
        base = torch.arange(clients, device=delta.device).view(-1, *(1,) * (self.x.dim() - 1)) * self.vocabulary
        found = delta.new_zeros(clients * self.vocabulary, width)
        found.index_add_(0, (self.x + base).flatten(), delta.reshape(-1, width))
        return found.view(clients, self.vocabulary, width)


def _positions(rows: Tensor) -> Tensor:
    """Rows [C, B, ..., n] as [C, B, T, n]."""
    return rows.reshape(*rows.shape[:2], -1, rows.shape[-1])


def _squares(a: Tensor, delta: Tensor) -> Tensor:
    """The squared norms [N] of sum_t delta_t a_t', a [N, T, in], delta [N, T, out], in the form of fewer products."""
    places, many, out = a.shape[1], a.shape[2], delta.shape[2]
    if places == 1:
        return (lengths(a) * lengths(delta)).squeeze(1)
    if 2 * places * places <= many * out:
        found = products.bmm(a, a.mT) * products.bmm(delta, delta.mT)
        return found.flatten(1).sum(dim=1).clamp(min=0.0)  # by rounding it may be below
    parts = [products.bmm(delta[part].mT, a[part]).square() for part in _blocks(len(a), many * out)]
    return torch.cat([part.flatten(1).sum(dim=1) for part in parts])


def lengths(rows: Tensor) -> Tensor:
    """The squared norms [C, B] of rows [C, B, n], added up along memory, where no row's bits depend on others."""
    return rows.contiguous().square().sum(dim=2)


def _blocks(count: int, numbers: int) -> Iterator[slice]:
    """Which of so many examples are taken together, each of so many numbers."""
    step = max(1, TOGETHER // max(1, numbers))
    return (slice(first, first + step) for first in range(0, count, step))
