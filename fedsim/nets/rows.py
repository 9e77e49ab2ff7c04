"""Numbers of the rows of stacks: one a client, each of which has the bits that it has alone.

A sum is taken leaf by leaf and then over the leaves, in the order of the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedsim.nets.stack import Stack


def squares(stack: Stack) -> Tensor:
    """The squared l2 norm of each row over all leaves, [k]."""
    return _over_leaves(squares_by_leaf(stack))


def norms(stack: Stack) -> Tensor:
    """The l2 norm of each row over all leaves, [k]."""
    return squares(stack).sqrt_()


def inner(one: Stack, other: Stack) -> Tensor:
    """The inner product of each row with the same row of another stack, over all leaves, [k]."""
    return _over_leaves(_sums(part) for part in torch._foreach_mul(one.leaves, other.leaves))


def squares_by_leaf(stack: Stack) -> list[Tensor]:
    """The squared l2 norm of each leaf of each row, [k] each."""
    return [_sums(leaf.square()) for leaf in stack.leaves]


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


def _over_leaves(sums: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(sums), dim=1).sum(dim=1)


def _sums(leaf: Tensor) -> Tensor:
    """The sum of each row of a leaf [k, ...], [k].

    A row by itself is summed as one of two: PyTorch shares a sum to a single number among threads, from 32768 numbers
    on, and then adds in another order.
    """
    flat = leaf.reshape(len(leaf), leaf.shape[1:].numel())
    return flat.expand(2, -1).sum(dim=1)[:1] if len(flat) == 1 else flat.sum(dim=1)
