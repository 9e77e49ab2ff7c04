"""Codes of one scalar in at most a byte, for algorithms that send projected gradients and nothing else.

`OneByte` is the eight-bit code on a logarithmic grid: with t = ln(|p| / scale) / delta,

    code = sign(p) (64 + clip(round(t), -63, 63)),    value = sign(code) scale exp((|code| - 64) delta),

and 0 stands for 0, NaN and infinity. The defaults reach from 3.80e-4 to 2631 with a relative error of at most
exp(delta / 2) - 1 = 6.449 %. The code after Zelikman et al. 2023 (Just One Byte), whose 255 exponents with two signs
would take nine bits.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, options

LARGEST = 63
"""Exponents go from -63 to 63: 127 magnitudes, two signs and zero are 255 codes."""


class Codec(Protocol):
    """What a code of scalars offers; `values` have any shape, in any floating dtype, and keep it."""

    def encode(self, values: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Codes, int8 of the same shape. uniform: numbers in [0, 1), which make the rounding random."""
        ...

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values that codes int8 stand for."""
        ...

    def nbytes(self, count: int) -> int:
        """Payload of a message of `count` codes."""
        ...


@options
class OneByte:
    """The logarithmic code of the module's text; one byte a scalar."""

    delta: Annotated[float, Field(ge=1e-4, le=1.0)] = 0.125
    """The ratio of neighbouring values is exp(delta)."""
    scale: PositiveFloat = 1.0
    """The value in the middle of the grid, a power of two, which both ends know."""

    def __post_init__(self) -> None:
        if math.frexp(self.scale)[0] != 0.5:
            raise InputError("scale", self.scale, "use a power of two, with which scaling is exact")

    def encode(self, values: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Codes int8; nearest in the logarithm, or with `uniform` of the same shape unbiased.

        Unbiased between neighbours a <= |p| <= b of the grid: b is taken if uniform < (|p| - a) / (b - a). Outside
        of the range both saturate.
        """
        place = self._place(values)
        if uniform is None:
            exponent = place.round()
        else:
            below = place.floor()
            chance = torch.expm1((place - below) * self.delta) / math.expm1(self.delta)
            exponent = below + (uniform < chance)
        code = (exponent.clamp(-LARGEST, LARGEST) + (LARGEST + 1)) * values.sign()
        return torch.where(_codable(values), code, 0.0).to(torch.int8)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values that codes int8 stand for."""
        wide = codes.to(torch.float64)
        magnitude = self.scale * torch.exp((wide.abs() - (LARGEST + 1)) * self.delta)
        return (wide.sign() * magnitude).to(dtype)

    def saturated(self, values: Tensor) -> Tensor:
        """Which values lie beyond the grid by more than half a step, as bool of the same shape; to be counted."""
        return _codable(values) & (self._place(values).round().abs() > LARGEST)

    def nbytes(self, count: int) -> int:
        """One byte a code."""
        return count

    def _place(self, values: Tensor) -> Tensor:
        """Where |p| lies on the grid, in steps of delta: float64, finite where there is a code other than 0."""
        return (values.to(torch.float64).abs() / self.scale).log() / self.delta


@options
class Sign:
    """The sign alone, value = magnitude * sign(p), and 0 for 0, NaN and infinity; two bits a scalar, packed."""

    bits: ClassVar[int] = 2
    magnitude: PositiveFloat = 0.3
    """What each scalar is taken for, but for its sign."""

    def encode(self, values: Tensor, uniform: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Codes -1, 0 and 1 as int8; there is nothing to round."""
        return torch.where(_codable(values), values.sign(), 0.0).to(torch.int8)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values that codes int8 stand for."""
        return codes.to(dtype) * self.magnitude

    def nbytes(self, count: int) -> int:
        """Four codes a byte, rounded up."""
        return -(-count * self.bits // 8)


def _codable(values: Tensor) -> Tensor:
    return values.isfinite() & (values != 0)
