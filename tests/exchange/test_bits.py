"""Eight truths a byte."""

from __future__ import annotations

import pytest
import torch

from fedsim.exchange.bits import from_bits, to_bits


def test_the_first_of_eight_is_the_lowest_bit():
    truths = torch.tensor([[True, False, False, True], [False, True, False, False]]).repeat_interleave(3, dim=1)
    assert to_bits(truths).tolist() == [[0b00000111, 0b1110], [0b00111000, 0]]


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 62])
def test_what_is_unpacked_is_what_was_packed(rows, count):
    truths = (torch.arange(rows * 2 * count) * 7 % 5 < 2).view(rows, 2, count)
    codes = to_bits(truths)
    assert codes.dtype == torch.uint8
    assert codes.shape == (rows, 2, -(-count // 8))
    assert torch.equal(from_bits(codes, count), truths)
