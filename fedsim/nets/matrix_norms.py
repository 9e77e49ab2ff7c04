"""Norms of matrices: along which matrix of norm 1 a loss falls the most, which is where steepest descent goes.

Of a gradient g that is the T with the largest <g, T>, and <g, T> is g's dual norm. max: the largest entry, T = sign g,
dual: the sum of entries. frobenius: T = g / |g|, dual: itself. spectral: the largest singular value, T = U V' of g =
U S V', dual: the sum of singular values. columns: the largest l2 norm of a column, T: each column by its norm, dual:
their sum. rows: the same of rows. Where a norm is 0, T is 0. A leaf [out, in, ...] is a matrix [out, in ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedsim.nets.polar import operations as factoring
from fedsim.nets.polar import polar
from fedsim.nets.products import pair
from fedsim.nets.rows import columns, squares_by_leaf
from fedsim.nets.stack import Stack

VectorNorm = Literal["max", "frobenius"]
"""A norm of a vector [k, n], or of any leaf as a vector."""
MatrixNorm = Literal["max", "frobenius", "spectral", "columns", "rows"]
"""A norm of a matrix."""


def named(shapes: Sequence[tuple[int, ...]], matrices: MatrixNorm, vectors: VectorNorm) -> list[MatrixNorm]:
    """The norm of each leaf of a client: that of matrices where it has two axes or more."""
    return [matrices if len(shape) > 1 else vectors for shape in shapes]


def steepest(leaves: Sequence[Tensor], norms: Sequence[MatrixNorm], newton_schulz: int) -> list[Tensor]:
    """T of each leaf [k, ...] of gradients, by its norm. newton_schulz: see `fedsim.nets.polar`."""
    spectral = [number for number, norm in enumerate(norms) if norm == "spectral"]
    factors = iter(polar([leaves[number] for number in spectral], newton_schulz))
    return [
        next(factors) if norm == "spectral" else _direction(leaf, norm)
        for leaf, norm in zip(leaves, norms, strict=True)
    ]


def operations(shapes: Sequence[tuple[int, ...]], norms: Sequence[MatrixNorm], newton_schulz: int) -> int:
    """Multiply-adds of the products that `steepest` takes for a client's leaves."""
    pairs = zip(shapes, norms, strict=True)
    return sum(factoring(shape, newton_schulz) for shape, norm in pairs if norm == "spectral")


def _direction(leaf: Tensor, norm: MatrixNorm) -> Tensor:
    if norm == "max":
        return leaf.sign()
    if norm == "frobenius":
        (squares,) = squares_by_leaf(Stack([leaf]))
        return _over(leaf, columns(squares.sqrt_(), leaf))
    matrix = leaf.flatten(2)
    axis = 1 if norm == "columns" else 2
    squares = pair(matrix).square().sum(axis)[:1] if len(matrix) == 1 else matrix.square().sum(axis)  # as of `rows`
    return _over(matrix, squares.sqrt_().unsqueeze(axis)).view(leaf.shape)


def _over(numbers: Tensor, norms: Tensor) -> Tensor:
    return torch.where(norms == 0.0, 0.0, numbers / norms)
