"""What compressors share that send some of a vector's numbers and leave out the others."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar

from pydantic import Field

from fedsim.compression.groups import Per, hold_numbers
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform


@options
class Selecting(Transform):
    """How many numbers cross: `k` or `ratio`, of which one is given."""

    sparse: ClassVar[bool] = True

    k: PositiveInt | None = None
    """How many numbers cross. Not given: ratio decides."""
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """The same as a share of the numbers, rounded, at least one. Not given: k decides."""
    per: Per = "vector"
    """What they are selected from: the whole vector, or each parameter of the model (layer) by itself."""

    def __post_init__(self) -> None:
        if self.k is None and self.ratio is None:
            raise InputError("k", "(nothing)", "give k or ratio")
        if self.k is not None and self.ratio is not None:
            raise InputError("ratio", self.ratio, f"give it or k ({self.k}), not both")
        if self.k is not None and self.per == "layer":
            raise InputError("k", self.k, "layers differ in size; give ratio")

    def kept(self, numbers: int) -> list[tuple[int, int]]:
        """Of each group how many numbers it has, and how many of them cross."""
        sizes = [prod(shape) for shape in self.shapes]
        if self.per == "vector" or sum(sizes) != numbers:
            sizes = [numbers]
        return [(size, self._count(size)) for size in sizes]

    def total(self, numbers: int) -> int:
        """How many numbers cross, of so many."""
        return sum(count for _, count in self.kept(numbers))

    def _count(self, size: int) -> int:
        wanted = self.k if self.k is not None else max(1, round((self.ratio or 0.0) * size))
        return min(wanted, size)

    def check(self, before: Size) -> None:
        """Refuse more numbers than there are, layers where there are none, and codes in the place of numbers."""
        hold_numbers(kind_of("transforms", self), before)
        if self.k is not None and self.k > before.numbers:
            raise InputError("k", self.k, f"only {before.numbers} numbers come to it; take that many at most")
        if self.per == "layer" and before.numbers != sum(map(prod, self.shapes)):
            raise InputError("per", self.per, "the transforms before it leave no layers; put it first, or take vector")

    def error(self, before: Size) -> float:
        """What is left out is at most its share of the squares, in expectation."""
        return max(1.0 - count / max(1, size) for size, count in self.kept(before.numbers))
