"""Natural compression: each number becomes a power of two next to it, up or down at random.

C(v)_j = sign(v_j) 2^floor(a) or sign(v_j) 2^ceil(a), a = log2 |v_j|, unbiased;  omega = 1/8
Sign and exponent: 9 bits of numbers of 32, 12 of 64. Horvath et al. 2022.
"""

from __future__ import annotations

import torch

from fedsim.compression.groups import hold_numbers
from fedsim.compression.unbiased import Unbiased
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector

FORMS = {torch.float32: (torch.int32, 23, 254), torch.float64: (torch.int64, 52, 2046)}
"""Of a type the whole numbers of as many bits, the bits of the mantissa, and the largest exponent of a finite one."""


@options
class Natural(Unbiased):
    """In the numbers' own bits: a random whole number is added to the mantissa, which is then cleared.

    Below the normal numbers it is unbiased, too, and scatters more.
    """

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return Size(before.numbers, 12 if before.bits == 64 else 9, before.beside)

    def omega(self, before: Size) -> float:  # noqa: ARG002
        """See `Unbiased`."""
        return 0.125

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows = vector.rows.contiguous()
        whole, mantissa, most = FORMS[rows.dtype]
        added = (vector.draw("uniform", "natural") * 2.0**mantissa).to(whole)  # cuts, which is to round down
        bits = rows.abs().view(whole) + added >> mantissa << mantissa
        sent = bits.clamp_(max=most << mantissa).view(rows.dtype).copysign(rows)
        sent = torch.where(torch.isfinite(rows), sent, rows)
        return vector.coded(self.factor(vector.size) * sent, self.size(vector.size))
