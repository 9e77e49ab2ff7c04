"""Polar factors: what Newton-Schulz leaves of singular values, and whose bits they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedsim.nets.polar import operations, polar

SHAPES = ((64, 32), (32, 64), (5, 1), (1, 700), (12, 3, 5, 5))
"""Of one client's leaves, the last of a kernel."""


def leaves(clients: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(clients, *shape, generator=generator, dtype=dtype) for shape in SHAPES]


def test_five_steps_leave_singular_values_around_1():
    """What the polynomial makes of 0.005 to 1, five times, is within 0.6818 and 1.1544."""
    for factor in polar(leaves(8), 5):
        values = torch.linalg.svdvals(factor.flatten(2))
        assert values.min() >= 0.6818
        assert values.max() <= 1.1544


def test_the_exact_factor_is_orthogonal_and_steps_go_towards_its_spaces():
    """U V' = (X X')^(-1/2) X, for X on its longer side."""
    given = leaves(3, torch.float64)
    for leaf, factor in zip(given, polar(given, 0), strict=True):
        matrix, found = leaf.flatten(2), factor.flatten(2)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(found, left @ right, rtol=0, atol=1e-12)
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        power = torch.where(values > 1e-9, values.clamp(min=1e-9) ** -0.5, 0.0)
        torch.testing.assert_close(found, matrix @ (vectors * power.unsqueeze(1)) @ vectors.mT, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_client_has_the_bits_that_it_has_alone_whoever_else_and_whatever_other_leaves_there_are(steps):
    given = leaves(8)
    together = polar(given, steps)
    for client in (0, 5):
        alone = polar([leaf[client : client + 1] for leaf in given], steps)
        assert all(torch.equal(own[0], every[client]) for own, every in zip(alone, together, strict=True))
    for leaf, factor in zip(given, together, strict=True):
        assert torch.equal(polar([leaf], steps)[0], factor)


@pytest.mark.parametrize("steps", [0, 5])
def test_what_is_0_stays_0_and_who_has_no_numbers_is_alone_with_that(steps):
    """A matrix of rank 1 has a factor of rank 1: nothing is made of directions in which there is nothing."""
    given = leaves(4, torch.float64)
    for leaf in given:
        leaf[0] = 0.0
        leaf[1].view(-1)[0] = torch.nan
        leaf[2] = leaf[2, :, :1] if leaf.dim() == 3 else leaf[2, :, :1, :1, :1]
    sound = polar(leaves(4, torch.float64), steps)
    for factor, other in zip(polar(given, steps), sound, strict=True):
        assert torch.equal(factor[0], torch.zeros_like(factor[0]))
        assert factor[1].isnan().all()
        assert torch.linalg.matrix_rank(factor[2].flatten(1), atol=1e-9) == 1
        assert torch.equal(factor[3], other[3])


def test_products_are_counted():
    """Of [8, 6] five steps take two products of 6 x 6 x 8 and one of 6 x 6 x 6 each; kernels lie as matrices."""
    assert operations((8, 6), 5) == operations((6, 2, 4), 5) == 5 * (2 * 6 * 6 * 8 + 6**3)
    assert operations((8, 6), 0) == 4 * 6 * 6 * 8 + 10 * 6**3
