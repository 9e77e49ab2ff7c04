"""Groups of a vector's numbers, one after the other, that are compressed apart from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.exchange.aggregation import halving_sum
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform

Per = Literal["vector", "layer"]


@options
class Grouped(Transform):
    """What is done to each group of a vector's numbers apart."""

    per: Per | PositiveInt = "vector"
    """What is a group: the whole vector, each parameter of the model (layer), or so many numbers in a row. What is as
    long as no model is has no layers, and is one group.
    """

    def groups(self, numbers: int) -> list[int]:
        """How many numbers are in each group, of so many."""
        if isinstance(self.per, int):
            whole, rest = divmod(numbers, self.per)
            return [self.per] * whole + [rest] * (rest > 0)
        sizes = [prod(shape) for shape in self.shapes]
        return sizes if self.per == "layer" and sum(sizes) == numbers else [numbers]

    def check(self, before: Size) -> None:
        """Refuse layers where a transform before has left none."""
        if self.per == "layer" and before.numbers != sum(map(prod, self.shapes)):
            raise InputError("per", self.per, "the transforms before it leave no layers; put it first, or take vector")


def hold_numbers(transform: str, before: Size) -> None:
    """Refuse codes in the place of floating-point numbers."""
    if before.bits not in (32, 64):
        remedy = "a transform before it leaves codes; select numbers first, then quantise them, once"
        raise InputError("kind", transform, remedy)


def of_groups(rows: Tensor, groups: Sequence[int], number: Callable[[Tensor], Tensor]) -> Tensor:
    """A number of each group of each row, [C, G], of rows [C, n].

    number: from [C, ..., k] to [C, ...], in which zeros at the end make no difference.
    """
    if len(groups) > 1 and all(one == other for one, other in pairwise(groups[:-1])) and groups[-1] <= groups[0]:
        width = groups[0]
        filled = functional.pad(rows, (0, len(groups) * width - rows.shape[1]))
        return number(filled.view(len(rows), len(groups), width))
    return torch.stack([number(part) for part in torch.split(rows, [*groups], dim=1)], dim=1)


def spread(numbers: Tensor, groups: Sequence[int]) -> Tensor:
    """A number of each group, [C, G], to each number in it: [C, n], or [C, 1] of a single group."""
    if len(groups) == 1:
        return numbers
    return numbers.repeat_interleave(torch.tensor(groups, device=numbers.device), dim=1)


def largest(part: Tensor) -> Tensor:
    """The largest absolute value, [C, ..., k] to [C, ...]; of none it is 0."""
    return part.abs().amax(dim=-1) if part.shape[-1] else part.sum(dim=-1)


def norm(part: Tensor) -> Tensor:
    """The l2 norm, [C, ..., k] to float64 [C, ...]."""
    return _sum(part.to(torch.float64).square()).sqrt()


def absolute_sum(part: Tensor) -> Tensor:
    """The l1 norm, [C, ..., k] to float64 [C, ...]."""
    return _sum(part.to(torch.float64).abs())


def _sum(values: Tensor) -> Tensor:
    """Sum over the last axis, in an order that does not depend on how many rows there are; values are overwritten."""
    return halving_sum(values, values.dim() - 1) if values.shape[-1] else values.sum(dim=-1)


def rounded(values: Tensor, draws: Tensor) -> Tensor:
    """Numbers rounded up with the probability of what is over the whole one below, else down; draws in [0, 1)."""
    below = values.floor()
    return below + (draws < values - below)


def safe(divisor: Tensor) -> Tensor:
    """A divisor of numbers that are 0 where it is."""
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
