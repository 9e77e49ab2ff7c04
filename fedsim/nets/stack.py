"""Stacks: the parameters of a cohort, one contiguous block per parameter.

A vector of all parameters, [d], is what strategies see; a matrix [C, d] is what clients compute with. While a
cohort takes its local steps the same numbers lie as a `Stack`: for each parameter one contiguous tensor
[C, *shape], because batched matrix products write in place only into contiguous results (a strided result
costs one product per client). Rows are clients; `stack[:k]` are views of the first k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector: names and shapes, in the model's own order.

    trained: how many of them, from the first, are trained. What follows are running statistics of normalisation, which
    no gradient moves.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    trained: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None) -> Layout:
        """The layout of named tensors that are trained, in their order, and then of statistics."""
        every = {**tensors, **(statistics or {})}
        return cls(tuple(every), tuple(tuple(tensor.shape) for tensor in every.values()), len(tensors))

    @classmethod
    def flat(cls, dimension: int) -> Layout:
        """The layout of a vector that is no model's: one leaf."""
        return cls(("x",), ((dimension,),), 1)

    @property
    def normalises(self) -> bool:
        """Whether there are statistics."""
        return self.trained < len(self.names)

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each parameter has."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def dimension(self) -> int:
        """d, the length of the flat vector."""
        return sum(self.sizes)

    @property
    def trained_numbers(self) -> int:
        """How many numbers of the flat vector, from the first, are trained."""
        return sum(self.sizes[: self.trained])

    def moved(self, stack: Stack) -> Stack:
        """What a gradient moves of a stack, in its own memory."""
        return Stack(stack.leaves[: self.trained]) if self.normalises else stack

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors to one vector [d]."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a vector [d], by name."""
        parts = torch.split(flat, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def stack(self, rows: Tensor, count: int | None = None) -> Stack:
        """A matrix [C, d] to a stack of copies; a vector or one row may be repeated `count` times."""
        rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
        repeated = rows.expand(len(rows) if count is None else count, -1)
        return Stack(
            [leaf.clone(memory_format=torch.contiguous_format) for leaf in shaped(repeated, self.shapes).leaves]
        )


def shaped(rows: Tensor, shapes: Iterable[Sequence[int]]) -> Stack:
    """Rows [k, n] as a stack that is views of them, leaves of these shapes one after the other, n numbers in all."""
    shapes = list(shapes)
    parts = torch.split(rows, [math.prod(shape) for shape in shapes], dim=1)
    return Stack([part.view(len(rows), *shape) for part, shape in zip(parts, shapes, strict=True)])


class Stack:
    """Parameters of C clients: `leaves[j]` is [C, *shape of parameter j]. See the module's text."""

    __slots__ = ("_transposed", "leaves")

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        self.leaves = list(leaves)
        self._transposed: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.leaves[0])

    def __getitem__(self, rows: slice) -> Stack:
        return Stack([leaf[rows] for leaf in self.leaves])

    @property
    def transposed(self) -> list[Tensor]:
        """Views for products from the right: [C, in, out] of weights [C, out, in], and [C, 1, out] of biases."""
        if self._transposed is None:
            self._transposed = [leaf.unsqueeze(1) if leaf.dim() == 2 else leaf.mT for leaf in self.leaves]
        return self._transposed

    def zeros(self) -> Stack:
        """Zeros of the same shapes."""
        return Stack([torch.zeros_like(leaf) for leaf in self.leaves])

    def copy(self) -> Stack:
        """The same numbers in new memory."""
        return Stack([leaf.clone() for leaf in self.leaves])

    def minus(self, other: Stack) -> Stack:
        """The difference from another, in new memory."""
        return Stack(torch._foreach_sub(self.leaves, other.leaves))

    def flat(self) -> Tensor:
        """The rows as one matrix [C, d]."""
        return torch.cat([flat(leaf) for leaf in self.leaves], dim=1)

    def add_(self, other: Stack, alpha: float = 1.0) -> Stack:
        """Add alpha * other in place; `other` may have one row for all."""
        torch._foreach_add_(self.leaves, other.leaves, alpha=alpha)
        return self

    def mul_(self, factor: float) -> Stack:
        """Multiply by a number in place."""
        torch._foreach_mul_(self.leaves, factor)
        return self


def flat(leaf: Tensor) -> Tensor:
    """A leaf [C, ...] as a matrix."""
    return leaf.flatten(1) if leaf.dim() > 1 else leaf.unsqueeze(1)


def take(rows: Stack, numbers: Sequence[int]) -> Stack:
    """Some leaves, in their own memory."""
    return Stack([rows.leaves[number] for number in numbers])


def put(rows: Stack, numbers: Sequence[int], part: Stack) -> Stack:
    """All leaves, some of them others."""
    leaves = list(rows.leaves)
    for number, leaf in zip(numbers, part.leaves, strict=True):
        leaves[number] = leaf
    return Stack(leaves)


def extended(part: Stack, numbers: Sequence[int], like: Stack) -> Stack:
    """Some leaves among zeros in place of the others, in the shapes of a stack."""
    own = dict(zip(numbers, part.leaves, strict=True))
    return Stack([own[place] if place in own else torch.zeros_like(leaf) for place, leaf in enumerate(like.leaves)])
