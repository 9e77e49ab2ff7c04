"""Products of a stack of clients, of which each client has the bits that it has in any company.

`bmm`, `baddbmm` and `baddbmm_` are torch's, batched over C clients, and `affine` is a linear layer's. `mm` is the
product of rows with one matrix that all rows share.

A library may take another kernel for a batch of one matrix than for a batch of several, with other last bits. With
MKL 2024.2 on an AMD EPYC, under each of eight settings of MKL_CBWR, in float32 and float64:

- Products of 2, 3, 5 and 8 clients of 16 had the bits that they have among all 16. Those of a single client had others
  where a dimension was 1 and m k n at least 400, up to 185 of 2,734 shapes in a layout of the factors (a matrix times a
  vector has a kernel of its own), and nowhere else. As the first of a batch of two, both the same client, none had. So
  a single client is given this companion in such products, at twice their arithmetic, which is little. Larger batches
  are left as they are.
- Rows of one product are made in blocks of 4, and those left over by other kernels: 1, 2, 3, 5, 6 and 7 rows had other
  bits than among 40. Multiples of 8 had those of any other multiple, so rows are filled up to one, which takes less
  time than 5 or 10 rows.

On an Intel Xeon under AVX2,STRICT a single row of a single client alone had other bits than in company.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FEW = 400
"""Below so many products of numbers PyTorch multiplies by itself, each client in the same way."""
BLOCK = 8
"""Rows of a product with a shared matrix are made in multiples of so many."""


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """Left right: [C, m, k] times [C, k, n] to [C, m, n]."""
    if left.size(0) == 1 and _differs_alone(left, right):
        return torch.bmm(pair(left), pair(right))[:1]
    return torch.bmm(left, right)


def baddbmm(start: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Start + left right: start [C, m or 1, n], left [C, m, k], right [C, k, n] to [C, m, n]."""
    if left.size(0) == 1 and _differs_alone(left, right):
        return torch.baddbmm(pair(start), pair(left), pair(right))[:1]
    return torch.baddbmm(start, left, right)


def affine(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows [C, n, in] times weights [C, out, in], plus a bias [C, out] where there is one, to [C, n, out]."""
    if bias is None:
        return bmm(rows, weight.mT)
    return baddbmm(bias.unsqueeze(1), rows, weight.mT)


def baddbmm_(out: Tensor, left: Tensor, right: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> None:
    """Out <- beta out + alpha left right, in place: [C, m, n], [C, m, k], [C, k, n]."""
    if left.size(0) == 1 and _differs_alone(left, right):
        out.copy_(torch.baddbmm(pair(out), pair(left), pair(right), beta=beta, alpha=alpha)[:1])
    else:
        out.baddbmm_(left, right, beta=beta, alpha=alpha)


def mm(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows times a matrix that they share: [C, k] times [k, n] to [C, n]."""
    count = len(rows)
    return functional.pad(rows, (0, 0, 0, -count % BLOCK)).mm(matrix)[:count]


def pair(one: Tensor) -> Tensor:
    """A single client's tensor [1, ...] with itself as its companion, [2, ...]; nothing is copied."""
    return one.expand(2, *one.shape[1:])


def _differs_alone(left: Tensor, right: Tensor) -> bool:
    rows, inner, columns = left.size(1), left.size(2), right.size(2)
    return (rows == 1 or inner == 1 or columns == 1) and rows * inner * columns >= FEW
