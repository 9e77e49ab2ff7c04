"""AdaGrad: a rate of each number that falls with the squares of its gradients.

v <- v + g^2;  y <- y - lr g / (sqrt(v) + epsilon),  v = initial at the beginning of a round
Memory: v. Duchi, Hazan and Singer 2011; in the form of AdAdaGrad (Lau, Liu and Kolar 2024).
"""

from __future__ import annotations

import torch

from fedsim.client import (
    Beginning,
    CompiledRule,
    NonNegativeFloat,
    Optimizer,
    PositiveFloat,
    Remembered,
    Stack,
    Step,
    options,
)


@options
class AdaGrad(Optimizer):
    """No step moves a number by more than lr."""

    initial: NonNegativeFloat = 0.01
    """Where v begins; at 0 the first step has the size lr in each number, whatever the gradient."""
    epsilon: PositiveFloat = 1e-10
    """Added to the root."""

    @property
    def vectors(self) -> float:
        """V."""
        return 1.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("adagrad", (self.initial, self.epsilon))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Squares as they begin."""
        memory = {"v": y.zeros()}
        torch._foreach_add_(memory["v"].leaves, self.initial)
        return memory

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move along the gradient, over the root of its squares."""
        square, gradient = memory["v"].leaves, step.gradient.leaves
        torch._foreach_addcmul_(square, gradient, gradient)
        scale = torch._foreach_sqrt(square)
        torch._foreach_add_(scale, self.epsilon)
        step.move(rows, step.gradient, over=scale)
