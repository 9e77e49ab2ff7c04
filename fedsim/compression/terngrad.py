"""TernGrad: each number becomes 0 or the largest, with its sign, at random.

C(v)_j = m sign(v_j) b_j,  m = max |v|,  b_j = 1 with probability |v_j| / m, else 0;  omega = (sqrt(d) - 1) / 2
The maximum, and five digits of three values a byte. Wen et al. 2017.
"""

from __future__ import annotations

import math

import torch

from fedsim.compression.groups import Grouped, hold_numbers, largest, of_groups, safe, spread
from fedsim.compression.unbiased import Unbiased
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector


@options
class TernGrad(Grouped, Unbiased):
    """Without the clipping of large numbers that the paper adds; a `clip` before it does that."""

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)
        super().check(before)

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        scales = before.bits * len(self.groups(before.numbers))
        return Size(before.numbers, 0, before.beside + scales + 8 * -(-before.numbers // 5))

    def omega(self, before: Size) -> float:
        """See `Unbiased`."""
        return (math.sqrt(max(1, *self.groups(before.numbers))) - 1.0) / 2.0

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, groups = vector.rows, self.groups(vector.rows.shape[1])
        scales = spread(of_groups(rows, groups, largest), groups)
        digits = (vector.draw("uniform", "terngrad") < rows.abs() / safe(scales)).to(rows.dtype)
        sent = (scales * self.factor(vector.size)) * digits.copysign(rows)
        # What is not finite is to arrive so: then no digit would say it.
        return vector.coded(torch.where(torch.isfinite(scales), sent, torch.nan), self.size(vector.size))
