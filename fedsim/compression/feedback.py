"""What feedback has in common: it stands before compressors in a list, and remembers what they have left out.

Memory is a transaction: it moves on with a message that the server has taken, and stays with one that was lost.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.core.options import options
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Shapes, Transform, Vector


@options
class Feedback(Transform):
    """The compressors after it must lose less than they are sent, or what is remembered grows without end."""

    keeps_statistics: ClassVar[bool] = False
    feeds_back: ClassVar[bool] = True


@options
class Tracking(Feedback):
    """Feedback of differences: both ends remember an estimate, and what crosses is how it is to change."""

    init: Literal["zero", "dense"] = "zero"
    """The estimate before a sender's first message: zero, or the vector itself (dense), which then crosses as it is,
    once; the clock goes by that in all rounds.
    """
    arrives: Literal["estimate", "increment"] = "estimate"
    """What the receiver goes on with: the estimate, as every strategy can, for which the server remembers that of each
    client; or how it changes (increment), for a strategy that remembers their mean alone, as ef21 does.
    """

    @property
    def increments(self) -> bool:
        """See `Transform`."""
        return self.arrives == "increment"

    def state(self, length: int) -> Shapes:
        """See `Transform`."""
        return {"estimate": (length,), **({"begun": (1,)} if self.init == "dense" else {})}

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        first = before.numbers * before.bits if self.init == "dense" else 0
        return Size(before.numbers, before.bits, before.beside + first)

    def first(self, vector: Vector) -> tuple[Tensor, Size]:
        """Whose message crosses as it is, bool [C, 1], and what all of them take by then."""
        if self.init == "zero":
            return torch.zeros_like(vector.rows[:, :1], dtype=torch.bool), vector.size
        new, size = vector.sender.state["begun"] == 0, vector.size
        return new, Size(size.numbers, size.bits, size.beside + size.numbers * size.bits * new[:, 0].long())

    def remembered(self, vector: Vector, **state: Tensor) -> dict[str, Tensor]:
        """What is remembered, with who has begun."""
        return {**state, **({"begun": torch.ones_like(vector.rows[:, :1])} if "begun" in vector.sender.state else {})}
