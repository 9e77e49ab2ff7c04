"""QSGD: each number becomes one of a few levels of the vector's norm, rounded up or down at random.

C(v)_j = |v| sign(v_j) l_j / s,  l_j = s |v_j| / |v| rounded;  omega = min(d / (4 s^2), sqrt(d) / s)
A norm and d ceil(log2(2 s + 1)) bits; or in Elias's code as many as it takes. Alistarh et al. 2017.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fedsim.compression.groups import Grouped, hold_numbers, norm, of_groups, rounded, safe, spread
from fedsim.compression.lengths import gamma
from fedsim.compression.unbiased import Unbiased
from fedsim.core.options import PositiveInt, options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector


@options
class QSGD(Grouped, Unbiased):
    """A vector of zeros arrives as one."""

    levels: PositiveInt = 16
    """s, levels above 0; there are as many below."""
    code: Literal["fixed", "elias"] = "fixed"
    """How levels cross: in the same number of bits each, or how many are not 0, and of each of these the distance from
    the one before, the sign and the level in Elias's gamma code, of which each client's own length is counted. Where
    that is longer the others are taken, which the sign bit of the norm says.
    """

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)
        super().check(before)

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        norms = before.bits * len(self.groups(before.numbers))
        bits = (2 * self.levels).bit_length()
        if self.code == "fixed":
            return Size(before.numbers, bits, before.beside + norms)
        return Size(before.numbers, 0, before.beside + norms + before.numbers * bits)

    def omega(self, before: Size) -> float:
        """See `Unbiased`."""
        length = max(self.groups(before.numbers))
        return min(length / (4.0 * self.levels**2), math.sqrt(length) / self.levels)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, groups = vector.rows, self.groups(vector.rows.shape[1])
        norms = spread(of_groups(rows, groups, norm).to(rows.dtype), groups)
        levels = rounded(self.levels * (rows.abs() / safe(norms)), vector.draw("uniform", "qsgd"))
        levels = levels.clamp_(max=self.levels)
        sent = (norms / self.levels * self.factor(vector.size)) * levels.copysign(rows)
        size = self.size(vector.size)
        if self.code == "elias":
            fixed = size.beside - vector.size.beside
            norm_bits = vector.size.bits * len(groups)
            size = Size(size.numbers, 0, vector.size.beside + (norm_bits + elias(levels)).clamp(max=fixed))
        return vector.coded(sent, size)


def elias(levels: Tensor) -> Tensor:
    """Bits of whole levels >= 0, [C, n], and of their signs, int64 [C]: see the option `code`."""
    row, place = (levels > 0).nonzero(as_tuple=True)
    before = torch.nn.functional.pad(place[:-1], (1, 0), value=-1)[: len(place)]
    begins = row != torch.nn.functional.pad(row[:-1], (1, 0), value=-1)[: len(row)]
    gap = place - torch.where(begins, -1, before)
    each = gamma(gap) + 1 + gamma(levels[row, place])
    count = torch.bincount(row, minlength=len(levels))
    return gamma(count + 1).index_add(0, row, each)
