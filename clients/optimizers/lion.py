"""Lion: the sign of an interpolated momentum.

y <- y - lr sign(beta1 m + (1 - beta1) g), after y <- (1 - lr decay) y;  m <- beta2 m + (1 - beta2) g
Memory: m. Chen et al. 2023; the weight decay is decoupled, as there.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsim.client import Beginning, CompiledRule, Fraction, Optimizer, Remembered, Stack, Step, options


@options
class Lion(Optimizer):
    """Each number moves by lr in each step, or not at all.

    A weight decay is a bound: numbers come between -1 / decay and 1 / decay, and stay there, where lr decay <= 1.
    """

    usual: ClassVar[float] = 0.003

    beta1: Fraction = 0.9
    """The momentum's part of the direction."""
    beta2: Fraction = 0.99
    """How slowly the momentum moves."""

    @property
    def decoupled(self) -> bool:
        """As in the paper."""
        return True

    @property
    def vectors(self) -> float:
        """M."""
        return 1.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("lion", (self.beta1, self.beta2))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """A momentum of zeros."""
        return {"m": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the signs of the direction, then the momentum."""
        mean, gradient = memory["m"].leaves, step.gradient.leaves
        direction = torch._foreach_lerp(mean, gradient, 1.0 - self.beta1)
        step.move(rows, Stack([part.sign_() for part in direction]))
        torch._foreach_lerp_(mean, gradient, 1.0 - self.beta2)
