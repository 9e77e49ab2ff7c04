"""Numbers of rows of stacks: what they are, and that a row has those that it has alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedsim.nets.rows import inner, norms, scale, scaled, squares, squares_by_leaf
from fedsim.nets.stack import Stack


def stack(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Stack:
    """Five clients' leaves of normal numbers."""
    generator = torch.Generator().manual_seed(0)
    return Stack([torch.randn(5, *shape, dtype=dtype, generator=generator) for shape in shapes])


def test_sums_are_over_all_numbers_of_a_row():
    one, other = stack((3, 2), (), (4,), dtype=torch.float64), stack((3, 2), (), (4,), dtype=torch.float64).mul_(2.0)
    other.leaves[0][3] = 0.0
    flat, along = one.flat(), other.flat()
    assert torch.allclose(squares(one), (flat**2).sum(dim=1), rtol=1e-14)
    assert torch.allclose(norms(one), torch.linalg.vector_norm(flat, dim=1), rtol=1e-14)
    assert torch.allclose(inner(one, other), (flat * along).sum(dim=1), rtol=1e-14)
    first, single, last = squares_by_leaf(one)
    assert torch.allclose(first, (one.leaves[0] ** 2).sum(dim=(1, 2)), rtol=1e-14)
    assert torch.equal(single, one.leaves[1] ** 2)
    assert torch.allclose(last, (one.leaves[2] ** 2).sum(dim=1), rtol=1e-14)


def test_rows_are_multiplied_each_by_its_own_number_anew_or_in_place():
    rows, numbers = stack((3, 2), (4,)), torch.arange(5.0)
    before = rows.flat()
    expected = before * numbers.view(-1, 1)
    assert torch.equal(scaled(rows, numbers).flat(), expected)
    assert torch.equal(rows.flat(), before)
    assert torch.equal(scale(rows, numbers).flat(), expected)
    assert torch.equal(rows.flat(), expected)
    scale(rows, [torch.ones(5), numbers])
    assert torch.equal(rows.leaves[0].flatten(1), expected[:, :6])
    assert torch.equal(rows.leaves[1], expected[:, 6:] * numbers.view(-1, 1))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# PyTorch shares the sum of one row of 33000 numbers among threads, and those of five by rows.
@pytest.mark.parametrize("numbers", [1, 5, 9, 640, 33000])
def test_a_row_has_the_bits_that_it_has_alone(numbers, two_threads):
    rows = stack((numbers,), (3, 3))
    other = Stack([leaf.flip(1) for leaf in rows.leaves])
    for of in (squares, norms, lambda own: inner(own, other[: len(own)])):
        for count in range(1, 5):
            assert torch.equal(of(rows)[:count], of(rows[:count]))
    for row in range(5):
        alone = slice(row, row + 1)
        assert torch.equal(squares(rows)[alone], squares(rows[alone]))
        assert torch.equal(inner(rows, other)[alone], inner(rows[alone], other[alone]))
