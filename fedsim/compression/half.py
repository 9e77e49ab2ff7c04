"""Half precision: each number in 16 bits, rounded to the nearest.

|C(v)_j - v_j| <= 2^-11 |v_j| in fp16, 2^-8 |v_j| in bf16
fp16 has no numbers above 65,504 and few below 6e-5: a message is multiplied by a power of two, whose exponent crosses.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedsim.compression.groups import hold_numbers, largest
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform, Vector

TOP = 15
"""The largest number of a message lies in [2^14, 2^15) as it crosses in fp16."""


@options
class Half(Transform):
    """Biased by so little that it wants no feedback."""

    keeps_statistics: ClassVar[bool] = False

    format: Literal["fp16", "bf16"] = "fp16"
    """fp16: 11 bits of precision, and the exponent of a power of two beside: a byte, of numbers of 64 bits two. bf16: 8
    bits, the range of single precision, at whose ends larger numbers arrive.
    """

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return Size(before.numbers, 16, before.beside + (before.bits // 4 if self.format == "fp16" else 0))

    def error(self, before: Size) -> float:  # noqa: ARG002
        """See `Transform`."""
        return 2.0 ** (-22 if self.format == "fp16" else -16)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows = vector.rows
        if self.format == "bf16":
            most = torch.finfo(torch.bfloat16).max
            sent = torch.where(torch.isfinite(rows), rows.clamp(-most, most), rows).to(torch.bfloat16).to(rows.dtype)
        else:
            byte = 2 ** (vector.size.bits // 4 - 1)
            exponent = (TOP - torch.frexp(largest(rows)).exponent).clamp_(-byte, byte - 1).unsqueeze(1)
            sent = torch.ldexp(torch.ldexp(rows, exponent).to(torch.float16).to(rows.dtype), -exponent)
        return vector.coded(sent, self.size(vector.size))
