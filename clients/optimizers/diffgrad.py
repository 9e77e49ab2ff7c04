"""diffGrad: Adam that steps less where the gradient has changed little.

m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  xi = sigmoid(|g - g'|), g' the gradient before, first 0
y <- y - lr sqrt(1 - beta2^t) / (1 - beta1^t) xi m / (sqrt(v) + epsilon),  t = 1, 2, ... within the round
Memory: m, v and g'. Dubey et al. 2019.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from fedsim.client import (
    Beginning,
    CompiledRule,
    Fraction,
    Optimizer,
    PositiveFloat,
    Remembered,
    Stack,
    Step,
    in_whole_registers,
    options,
)


@options
class DiffGrad(Optimizer):
    """A step has half to all of the length of Adam's.

    The gradient before is of another mini-batch, so that xi measures noise as much as curvature; of a constant gradient
    it is a half.
    """

    usual: ClassVar[float] = 0.01

    beta1: Fraction = 0.9
    """How slowly m moves."""
    beta2: Fraction = 0.999
    """How slowly v moves."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of v before that is corrected, unlike adam's."""

    @property
    def vectors(self) -> float:
        """M, v and the gradient before."""
        return 3.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("diffgrad", (self.beta1, self.beta2, self.epsilon))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Zeros."""
        return {name: y.zeros() for name in ("m", "v", "before")}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the mean, as far as the gradient has changed."""
        mean, square, before = (memory[name].leaves for name in ("m", "v", "before"))
        gradient, turns = step.gradient.leaves, step.number + 1
        torch._foreach_lerp_(mean, gradient, 1.0 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, gradient, gradient, 1.0 - self.beta2)
        change = torch._foreach_sub(gradient, before)
        torch._foreach_abs_(change)
        share = [in_whole_registers(torch.sigmoid, part) for part in change]
        torch._foreach_copy_(before, gradient)
        scale = torch._foreach_sqrt(square)
        torch._foreach_add_(scale, self.epsilon)
        along = Stack(torch._foreach_mul(share, mean))
        step.move(rows, along, over=scale, per=(1.0 - self.beta1**turns) / math.sqrt(1.0 - self.beta2**turns))
