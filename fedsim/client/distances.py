"""What DoG's rules share: steps as long as a client has come, over the root of the sum of its squared gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, PositiveFloat, options
from fedsim.nets.optimizers import Beginning, Need, Optimizer, Remembered, Step
from fedsim.nets.rows import scale, squares, squares_by_leaf
from fedsim.nets.stack import Stack


@options
class Distances(Optimizer):
    """Rules that need no rate: lr = 1 leaves them the one that they find."""

    usual: ClassVar[float] = 1.0
    rate_free: ClassVar[bool] = True
    by_leaf: ClassVar[bool] = False
    """Whether distances and sums are those of each leaf by itself."""

    reps_rel: PositiveFloat = 1e-2
    """The distance to begin with, in units of 1 + |y_0|. The authors' 1e-6 is for thousands of steps in a row; a round
    begins anew and has few: of two quadratic functions a hundredth is left after 24 and 31 steps from 1e-2, after 105
    and 134 from 1e-6.
    """
    epsilon: NonNegativeFloat = 1e-8
    """What keeps the first step finite where the gradient is next to none; with 0 the loss's scale does not matter."""

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Where it begins, the distance it begins with, and a sum of epsilon; numbers are [C], or [C] a leaf."""
        lengths = [square.sqrt() for square in self.squares(y)]
        return {
            "start": y.copy(),
            "distance": Stack([self.reps_rel * (1.0 + length) for length in lengths]),
            "total": Stack([torch.full_like(length, self.epsilon) for length in lengths]),
        }

    def squares(self, stack: Stack) -> list[Tensor]:
        """Squared norms of rows, [k], or [k] a leaf."""
        return squares_by_leaf(stack) if self.by_leaf else [squares(stack)]

    def rate(self, distance: Tensor, total: Tensor) -> Tensor:
        """Distance / sqrt(total), all [k]; finite where there was no gradient yet."""
        return distance / total.clamp(min=torch.finfo(total.dtype).tiny).sqrt_()


@options
class Travelled(Distances):
    """DoG, by clients or by leaves."""

    init_eta: PositiveFloat | None = None
    """The step size of each round's first step. Not given: it follows from reps_rel."""
    average: bool = False
    """Send an average of where the client was after its steps, the later the more, instead of where it ends."""
    gamma: NonNegativeFloat = 8.0
    """How much more the later ones count in that average; 0: all count alike."""

    def __post_init__(self) -> None:
        if self.gamma != 8.0 and not self.average:
            raise InputError("gamma", self.gamma, "is about the average; give average = true")

    @property
    def needs(self) -> frozenset[Need]:
        """An end of its own for the average."""
        return frozenset({"end"} if self.average else ())

    @property
    def vectors(self) -> float:
        """y_0 and the average."""
        return 1.0 + self.average

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """An average, too, where there is one."""
        memory = super().begin(y, beginning)
        return memory | {"average": y.copy()} if self.average else memory

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the distance over the root of the sum."""
        away, new = self.squares(rows.minus(memory["start"])), self.squares(step.gradient)
        rates = []
        for distance, total, far, square in zip(
            memory["distance"].leaves, memory["total"].leaves, away, new, strict=True
        ):
            torch.maximum(distance, far.sqrt(), out=distance)
            rates.append(self.rate(distance, total.add_(square)))
        if self.init_eta is not None and not step.number:
            rates = [torch.full_like(rate, self.init_eta) for rate in rates]
        step.move(rows, scale(step.gradient, rates if self.by_leaf else rates[0]))
        if self.average:
            share = (1.0 + self.gamma) / (step.number + 1.0 + self.gamma)
            torch._foreach_lerp_(memory["average"].leaves, rows.leaves, share)

    def end(self, memory: Remembered, rows: Stack) -> Stack:
        """The average, where there is one."""
        return memory["average"] if self.average else rows
