"""Numbers of the rows of stacks: one a client, each of which has the bits that it has alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.nets.stack import Stack, flat

SHARED = 2**15
"""Numbers from which PyTorch shares a sum to a single number among threads, and then adds in another order."""


def squares(stack: Stack) -> Tensor:
    """The squared l2 norm of each row over all leaves, [k]."""
    vectors = stack.flat()
    return _sum(vectors.mul_(vectors))


def norms(stack: Stack) -> Tensor:
    """The l2 norm of each row over all leaves, [k]."""
    return squares(stack).sqrt_()


def inner(one: Stack, other: Stack) -> Tensor:
    """The inner product of each row with the same row of another stack, over all leaves, [k]."""
    return _sum(one.flat().mul_(other.flat()))


def squares_by_leaf(stack: Stack) -> list[Tensor]:
    """The squared l2 norm of each leaf of each row, [k] each."""
    return [_sum(flat(leaf)) for leaf in torch._foreach_mul(stack.leaves, stack.leaves)]


def scaled(stack: Stack, numbers: Tensor) -> Stack:
    """Each row times its own number, numbers [k], in new memory."""
    return Stack([leaf * columns(numbers, leaf) for leaf in stack.leaves])


def scale(stack: Stack, numbers: Tensor | Sequence[Tensor]) -> Stack:
    """Multiply each row by its own number, numbers [k], in place; or each leaf by its own numbers, [k] each."""
    each = [numbers] * len(stack.leaves) if isinstance(numbers, Tensor) else numbers
    for leaf, own in zip(stack.leaves, each, strict=True):
        leaf.mul_(columns(own, leaf))
    return stack


def mix(stack: Stack, other: Stack, shares: Tensor) -> Stack:
    """Move each row by its own share of the way to the same row of another stack, shares [k], in place."""
    for leaf, there in zip(stack.leaves, other.leaves, strict=True):
        leaf.lerp_(there, columns(shares, leaf))
    return stack


def columns(numbers: Tensor, leaf: Tensor) -> Tensor:
    """Numbers [k] in a shape that goes with a leaf [k, ...]."""
    return numbers.view(-1, *(1,) * (leaf.dim() - 1))


def _sum(rows: Tensor) -> Tensor:
    """The sum of each of rows [k, n], [k]. A long one by itself is summed as one of two."""
    return rows.expand(2, -1).sum(dim=1)[:1] if len(rows) == 1 and rows.numel() >= SHARED else rows.sum(dim=1)
