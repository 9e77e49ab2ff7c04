"""Toys that encode: the largest numbers with their places, eight bits each, and a bit for each zero."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.core.options import Share, options
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Shapes, Transform, Vector


@options
class Largest(Transform):
    """The share of the n numbers that is largest, and their places of ceil(log2 n) bits; what is not sent is owed."""

    share: Share

    def state(self, length: int) -> Shapes:
        return {"owed": (length,)}

    def size(self, before: Size) -> Size:
        count = round(self.share * before.numbers)
        return Size(count, before.bits, before.beside + count * (before.numbers - 1).bit_length())

    def encode(self, vector: Vector) -> Vector:
        due = vector.rows + vector.sender.state["owed"]
        size = self.size(vector.size)
        places = due.abs().argsort(dim=1, descending=True, stable=True)[:, : size.numbers]

        def decode(rows: Tensor) -> Tensor:
            return torch.zeros_like(due).scatter(1, places, rows)

        largest = due.gather(1, places)
        return vector.coded(largest, size, decode=decode, owed=due - decode(largest))


@options
class EightBits(Transform):
    """x <- s c with s = max |x| / 127 and whole c, rounded up or down at random; 8 bits a number, and s."""

    def size(self, before: Size) -> Size:
        return Size(before.numbers, 8, before.beside + before.bits)

    def encode(self, vector: Vector) -> Vector:
        scale = vector.rows.abs().amax(dim=1, keepdim=True) / 127
        levels = vector.rows / torch.where(scale > 0, scale, 1.0) + vector.draw("uniform", "eight-bits")
        return vector.coded(scale * levels.floor().clamp(-127, 127), self.size(vector.size))


@options
class Sparse(Transform):
    """A bit says of each number whether it is zero, and only the others are sent."""

    def size(self, before: Size) -> Size:
        return Size(before.numbers, 0, before.beside + before.numbers * (1 + before.bits))

    def encode(self, vector: Vector) -> Vector:
        sent = (vector.rows != 0).sum(dim=1)
        beside = vector.size.beside + vector.size.numbers + sent * vector.size.bits
        return vector.coded(vector.rows, Size(vector.size.numbers, 0, beside))


CHAIN = [{"kind": "codes:Largest", "share": 0.75}, {"kind": "codes:EightBits"}, {"kind": "codes:Sparse"}]
"""All three; see `taken`."""


def taken(rows: Tensor, bits: int) -> Tensor:
    """Bytes that rows [C, d] took which have arrived through `CHAIN`: int64 [C]. bits: of a number before."""
    count = round(0.75 * rows.shape[1])
    places = count * (rows.shape[1] - 1).bit_length()
    return -(-(places + bits + count + 8 * (rows != 0).sum(dim=1)) // 8)


def most(d: int, bits: int) -> int:
    """Bytes that a vector of d numbers takes at most through `CHAIN`."""
    count = round(0.75 * d)
    return -(-(count * (d - 1).bit_length() + bits + count * (1 + 8)) // 8)
