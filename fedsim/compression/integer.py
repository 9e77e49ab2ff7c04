"""Whole numbers times a scale: codes of 8 bits, or another number of them.

C(v)_j = a c_j,  a = max |v| / (2^(b-1) - 1) of a block,  c_j = v_j / a rounded to a whole number
A scale a block, and b bits a number. Dettmers 2016.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from fedsim.compression.groups import Grouped, Per, hold_numbers, largest, of_groups, rounded, safe, spread
from fedsim.core.options import PositiveInt, options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector


@options
class Integer(Grouped):
    """Rounded to the nearest it is biased a little; at random it is unbiased."""

    keeps_statistics: ClassVar[bool] = False

    bits: Annotated[int, Field(ge=2, le=16)] = 8
    """b, the bits of a code."""
    per: Per | PositiveInt = 256
    """Which numbers share a scale: so many in a row, each parameter of the model (layer), or all (vector)."""
    rounding: Literal["nearest", "random"] = "nearest"
    """To the nearest whole number, or up or down at random, so that it is unbiased."""

    @property
    def most(self) -> int:
        """The largest code."""
        return (1 << self.bits - 1) - 1

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)
        super().check(before)

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return Size(before.numbers, self.bits, before.beside + before.bits * len(self.groups(before.numbers)))

    def error(self, before: Size) -> float:
        """Each number is off by half a scale at most, or by a scale's variance of a quarter of its square."""
        return max(1, *self.groups(before.numbers)) / (4 * self.most**2)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, groups = vector.rows, self.groups(vector.rows.shape[1])
        scales = spread(of_groups(rows, groups, largest) / self.most, groups)
        codes = rows / safe(scales)
        codes = codes.round_() if self.rounding == "nearest" else rounded(codes, vector.draw("uniform", "integer"))
        # What is not finite is to arrive so, and not as the largest code.
        codes = torch.where(torch.isfinite(scales), codes.clamp_(-self.most, self.most), torch.nan)
        return vector.coded(scales * codes, self.size(vector.size))
