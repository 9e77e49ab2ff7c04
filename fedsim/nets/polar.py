"""The polar factors of matrices: U V' where a matrix is U S V', exactly or by steps of Newton and Schulz.

Those steps bring the singular values s / |X|_F near 1 by products alone: X <- a X + (b A + c A A) X with A = X X'. The
numbers a, b, c of Jordan et al. 2024 make small ones grow fastest, and do not converge: five steps leave those that
begin above 0.005 between 0.68 and 1.16. What is 0 stays 0 under either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.nets.products import baddbmm_, bmm
from fedsim.nets.rows import squares_by_leaf
from fedsim.nets.stack import Stack

FACTORS = (3.4445, -4.7750, 2.0315)
"""a, b and c."""
LEAST = 1e-7
"""Added to the norm by which a matrix is divided."""


def polar(leaves: Sequence[Tensor], steps: int) -> list[Tensor]:
    """The polar factor of each matrix of leaves [k, out, in, ...], which are [out, in times the rest]; as they lie.

    steps: of Newton and Schulz; 0: exactly. All leaves of one size are done in one go, lying on their longer side.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for number, leaf in enumerate(leaves):
        sides = leaf.shape[1], leaf.shape[2:].numel()
        alike.setdefault((min(sides), max(sides)), []).append(number)
    found = list(leaves)
    for (short, long), numbers in alike.items():
        lying = leaves[numbers[0]].new_empty(len(numbers), len(leaves[0]), short, long)
        for place, number in zip(lying, numbers, strict=True):
            place.copy_(_lying(leaves[number]))
        made = newton_schulz(lying.flatten(0, 1), steps) if steps else exact(lying.flatten(0, 1))
        for factor, number in zip(made.view_as(lying), numbers, strict=True):
            leaf = leaves[number]
            found[number] = (factor if _lies(leaf) else factor.mT).reshape(leaf.shape)
    return found


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """So many steps from matrices [n, short, long] divided by their norms, which are written over."""
    a, b, c = FACTORS
    count, short, _ = matrices.shape
    norms = squares_by_leaf(Stack([matrices]))[0].sqrt_().add_(LEAST)
    now, following = matrices.div_(norms.view(-1, 1, 1)), torch.empty_like(matrices)
    gram, polynomial = matrices.new_empty(2, count, short, short)
    for _ in range(steps):
        baddbmm_(gram, now, now.mT, beta=0.0)
        polynomial.copy_(gram)
        baddbmm_(polynomial, gram, gram, beta=b, alpha=c)
        following.copy_(now)
        baddbmm_(following, polynomial, now, beta=a)
        now, following = following, now
    return now


def exact(matrices: Tensor) -> Tensor:
    """The factors of matrices [n, m, l], with 0 for singular values that are 0 up to rounding; NaN where one is."""
    sound = torch.isfinite(matrices).flatten(1).all(dim=1).view(-1, 1, 1)
    left, values, right = torch.linalg.svd(torch.where(sound, matrices, 0.0), full_matrices=False)
    rounding = max(matrices.shape[1:]) * torch.finfo(matrices.dtype).eps
    there = (values > rounding * values[:, :1]).to(matrices.dtype)
    return torch.where(sound, bmm(left * there.unsqueeze(1), right), torch.nan)


def operations(shape: Sequence[int], steps: int) -> int:
    """Multiply-adds that the factor of a matrix of this shape takes, [out, in, ...]."""
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    short, long = min(rows, columns), max(rows, columns)
    if steps:
        return steps * (2 * short * short * long + short**3)
    return 4 * short * short * long + 10 * short**3  # of LAPACK's gesdd, and the product after it


def _lies(leaf: Tensor) -> bool:
    return leaf.shape[1] <= leaf.shape[2:].numel()


def _lying(leaf: Tensor) -> Tensor:
    """Matrices on their longer side: [k, short, long]."""
    matrices = leaf.flatten(2)
    return matrices if _lies(leaf) else matrices.mT
