"""Lengths of codes of whole numbers, in bits: what has to be counted and not to be written."""

from __future__ import annotations

import torch
from torch import Tensor

PARAMETER = 5
"""Bits that say by how many bits the remainders of a Rice code are written, 0 to 31."""


def place_bits(numbers: int) -> int:
    """Bits of one place among so many, ceil(log2 n)."""
    return max(0, numbers - 1).bit_length()


def plain_places(numbers: int, count: int) -> int:
    """Bits of so many places: one after the other, or a bit for each number, whichever is shorter."""
    return min(count * place_bits(numbers), numbers)


def gamma(values: Tensor) -> Tensor:
    """Bits of Elias's gamma code of whole numbers of at least 1: 2 floor(log2 x) + 1."""
    return 2 * torch.frexp(values.double()).exponent.long() - 1


def gaps(places: Tensor) -> Tensor:
    """How many are passed over before each of ascending places [C, k]."""
    before = torch.nn.functional.pad(places[:, :-1], (1, 0), value=-1) if places.shape[1] else places
    return places - before - 1


def rice(places: Tensor, numbers: int) -> Tensor:
    """Bits of ascending places [C, k] among so many, by gaps in Rice's code with the parameter that is best: [C].

    Of a gap g the quotient g >> p stands in unary, g >> p ones and a zero, and the p low bits as they are.
    """
    passed, count = gaps(places), places.shape[1]
    each = [(passed >> p).sum(dim=1) + count * (1 + p) for p in range(place_bits(numbers) + 1)]
    return torch.stack(each).amin(dim=0) + PARAMETER


def rice_at_most(numbers: int, count: int) -> int:
    """Bits that `rice` comes to at most: all gaps together are the numbers that are passed over."""
    left = numbers - count
    return min((left >> p) + count * (1 + p) for p in range(place_bits(numbers) + 1)) + PARAMETER
