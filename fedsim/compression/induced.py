"""Induced compression: what a first compressor leaves out crosses by a second, unbiased one, which makes the two so.

C(v) = C_1(v) + C_2(v - C_1(v));  omega = omega_2 times what C_1 loses
Both messages cross. Horvath and Richtarik 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fedsim.core.errors import InputError, naming
from fedsim.core.options import options
from fedsim.core.plugins import HasPlugins
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform, Vector


@options
class Induced(HasPlugins, Transform):
    """Neither of the two may remember anything."""

    parts: ClassVar[Mapping[str, str]] = {"first": "transforms", "second": "transforms"}
    keeps_statistics: ClassVar[bool] = False

    first: Any = "sign"
    """A compressor, a name or a table: biased, as top_k."""
    second: Any = "natural"
    """An unbiased one, as qsgd, of which the result is as unbiased."""

    def bound(self, shapes: Sequence[tuple[int, ...]]) -> Self:
        """See `Transform`."""
        other = super().bound(shapes)
        other.__dict__["made"] = {name: one.bound(shapes) for name, one in self.made.items()}
        return other

    def check(self, before: Size) -> None:
        """See `Transform`."""
        for option, transform in self.made.items():
            with naming(option):
                transform.check(before)
            if transform.feeds_back or transform.state(before.numbers):
                raise InputError(option, getattr(self, option), "it remembers something; take one that does not")

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return self._both(before, [transform.size(before) for transform in self.made.values()])

    def error(self, before: Size) -> float | None:
        """See `Transform`."""
        one, two = (transform.error(before) for transform in self.made.values())
        return None if one is None or two is None else one * two

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        first, second = self.made.values()
        one = first.encode(Vector(vector.rows, vector.size, vector.sender, vector.place))
        rest = vector.rows - one.received()[0]
        two = second.encode(Vector(rest, vector.size, vector.sender, vector.place))
        width = one.rows.shape[1]

        def decode(sent: Tensor) -> Tensor:
            return taken(one, sent[:, :width]) + taken(two, sent[:, width:])

        return vector.coded(
            torch.cat((one.rows, two.rows), dim=1), self._both(vector.size, [one.size, two.size]), decode=decode
        )

    def _both(self, before: Size, sizes: Sequence[Size]) -> Size:
        """What two messages take of a vector beside which something crosses already, once."""
        bits = sum(size.numbers * size.bits + size.beside - before.beside for size in sizes)
        return Size(sum(size.numbers for size in sizes), 0, before.beside + bits)


def taken(vector: Vector, rows: Tensor) -> Tensor:
    """What the receiver makes of rows that have come in place of a vector's own."""
    for decode, _, _ in reversed(vector.steps):
        rows = decode(rows)
    return rows
