"""Top-k: the largest numbers of a vector cross, with their places; the others arrive as 0.

C(v)_j = v_j for the k largest |v_j|, of equal ones the first, else 0;  |C(v) - v|^2 <= (1 - k/d) |v|^2
k numbers and min(k ceil(log2 d), d) bits of places. Stich et al. 2018.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedsim.compression.lengths import plain_places, rice, rice_at_most
from fedsim.compression.selecting import Selecting
from fedsim.core.options import options
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector


@options
class TopK(Selecting):
    """The numbers cross in the order of their places."""

    index: Literal["plain", "rice"] = "plain"
    """How places cross: as they are or as a bit for each number, whichever is shorter; or as gaps in Rice's code, of
    which each client's own length is counted. For 1 % of the numbers that is about half as long.
    """

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        kept, count = self.kept(before.numbers), self.total(before.numbers)
        places = sum(plain_places(size, own) for size, own in kept)
        if self.index == "rice":
            places = rice_at_most(before.numbers, count)
        return Size(count, before.bits, before.beside + places)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, size = vector.rows, self.size(vector.size)
        kept = self.kept(rows.shape[1])
        parts = torch.split(rows, [size for size, _ in kept], dim=1)
        chosen = torch.cat([select(part, count) for part, (_, count) in zip(parts, kept, strict=True)], dim=1)
        places = chosen.nonzero()[:, 1].view(len(rows), size.numbers)
        if self.index == "rice":
            size = Size(size.numbers, size.bits, vector.size.beside + rice(places, rows.shape[1]))
        return vector.coded(
            rows.gather(1, places), size, decode=lambda sent: torch.zeros_like(rows).scatter(1, places, sent)
        )


def select(rows: Tensor, count: int) -> Tensor:
    """Which numbers of each row are its `count` largest in absolute value, bool [C, n]; of equal ones the first."""
    if count == rows.shape[1]:
        return torch.ones_like(rows, dtype=torch.bool)
    sizes = rows.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)  # what is not a number is not hidden
    least = sizes.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    chosen, tied = sizes > least, sizes == least
    left = count - chosen.sum(dim=1, keepdim=True)
    if not torch.equal(tied.sum(dim=1, keepdim=True), left):
        tied &= tied.cumsum(dim=1) <= left
    return chosen | tied
