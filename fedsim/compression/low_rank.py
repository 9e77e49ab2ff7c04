"""Low rank: of each layer's matrix M two narrow factors cross, by a step of the power iteration.

P = orthonormal(M Q);  Q <- M^T P;  C(M) = P Q^T, where Q is the client's own from its message before
r (n + m) numbers of a layer of n m. Vogels et al. 2019, in the form in which each client has factors of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.compression.groups import hold_numbers
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Shapes, Transform, Vector
from fedsim.nets.products import bmm


@options
class LowRank(Transform):
    """A parameter of shape (n, ...) is a matrix of n rows.

    Vectors, and matrices that would not be at most half as long, cross as they are, as all numbers do of what is no
    model. It is biased, and wants feedback.
    """

    rank: PositiveInt = 2
    """r, the rank of what arrives of a layer."""
    warm_start: bool = True
    """Begin from the Q of the client's message before, which tracks the best factors; else from a random one."""

    keeps_statistics: ClassVar[bool] = True

    def check(self, before: Size) -> None:
        """Refuse a rank that shortens no layer."""
        hold_numbers(kind_of("transforms", self), before)
        if not any(narrow for _, _, narrow in self._layers(before.numbers)):
            remedy = "it shortens no layer of the model to half; lower it, or take another compressor"
            raise InputError("rank", self.rank, remedy)

    def state(self, length: int) -> Shapes:
        """See `Transform`."""
        return {"right": (self._right(length),)} if self.warm_start else {}

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        numbers = sum(self.rank * (n + m) if narrow else n * m for n, m, narrow in self._layers(before.numbers))
        return Size(numbers, before.bits, before.beside)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, layers, rank = vector.rows, self._layers(vector.rows.shape[1]), self.rank
        start = vector.draw("normal", "low-rank", self._right(rows.shape[1]))
        if self.warm_start:
            start = torch.where(vector.sender.state["right"] == 0, start, vector.sender.state["right"])
        begins = iter(torch.split(start, [rank * m for _, m, narrow in layers if narrow], dim=1))
        parts = torch.split(rows, [n * m for n, m, _ in layers], dim=1)
        sent, right = list[Tensor](), list[Tensor]()
        for part, (n, m, narrow) in zip(parts, layers, strict=True):
            if not narrow:
                sent.append(part)
                continue
            matrix = part.reshape(len(rows), n, m)
            left = torch.linalg.qr(bmm(matrix, next(begins).reshape(len(rows), m, rank))).Q
            right.append(bmm(matrix.mT, left).flatten(1))
            sent += [left.flatten(1), right[-1]]
        crossing, size, decode = torch.cat(sent, dim=1), self.size(vector.size), self._decoder(layers)
        if not self.warm_start:
            return vector.coded(crossing, size, decode=decode)
        return vector.coded(crossing, size, decode=decode, right=torch.cat(right, dim=1) if right else start)

    def _decoder(self, layers: list[tuple[int, int, bool]]) -> Callable[[Tensor], Tensor]:
        def decode(sent: Tensor) -> Tensor:
            found, first = list[Tensor](), 0
            for n, m, narrow in layers:
                if not narrow:
                    found.append(sent[:, first : first + n * m])
                    first += n * m
                    continue
                middle, last = first + self.rank * n, first + self.rank * (n + m)
                left = sent[:, first:middle].reshape(-1, n, self.rank)
                right = sent[:, middle:last].reshape(-1, m, self.rank)
                found.append(bmm(left, right.mT).flatten(1))
                first = last
            return torch.cat(found, dim=1)

        return decode

    def _layers(self, numbers: int) -> list[tuple[int, int, bool]]:
        """Of each layer its rows and columns, and whether it crosses as factors."""
        sides = [(shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape)) for shape in self.shapes]
        if sum(n * m for n, m in sides) != numbers:
            sides = [(1, numbers)]
        return [(n, m, 2 * self.rank * (n + m) <= n * m) for n, m in sides]

    def _right(self, numbers: int) -> int:
        """How many numbers all Q have."""
        return sum(self.rank * m for _, m, narrow in self._layers(numbers) if narrow)
