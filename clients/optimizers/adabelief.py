"""AdaBelief: long steps where gradients are as they were expected.

m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) (g - m)^2 + epsilon, with the new m
y <- y - lr (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + epsilon),  t = 1, 2, ... within the round
Memory: m and s, in which epsilon stays. Zhuang et al. 2020; the authors' package without its rectification.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsim.client import Beginning, CompiledRule, Fraction, Optimizer, PositiveFloat, Remembered, Stack, Step, options


@options
class AdaBelief(Optimizer):
    """The first step of a round has the size lr / beta1 in each number.

    Where gradients do not change, the belief and the steps grow: with beta1 = 0.9 to about lr sqrt(t / 4.26), 1.6 lr at
    t = 10 and 5 lr at t = 100. Clients of many steps on `batch_size = "full"` see that; take a lower lr there, or a
    larger epsilon.
    """

    usual: ClassVar[float] = 0.01

    beta1: Fraction = 0.9
    """How slowly m moves; above 0, for otherwise nothing is ever unexpected, and only epsilon is left."""
    beta2: Fraction = 0.999
    """How slowly s moves."""
    epsilon: PositiveFloat = 1e-16
    """Added to s in every step, and to its root; a larger one bounds the steps where gradients hardly change."""

    @property
    def vectors(self) -> float:
        """M and s."""
        return 2.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("adabelief", (self.beta1, self.beta2, self.epsilon))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Moments of zeros."""
        return {"m": y.zeros(), "s": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the mean over the root of how far gradients are from it."""
        mean, spread, gradient = memory["m"].leaves, memory["s"].leaves, step.gradient.leaves
        torch._foreach_lerp_(mean, gradient, 1.0 - self.beta1)
        away = torch._foreach_sub(gradient, mean)
        torch._foreach_mul_(spread, self.beta2)
        torch._foreach_addcmul_(spread, away, away, 1.0 - self.beta2)
        torch._foreach_add_(spread, self.epsilon)
        scale = torch._foreach_div(spread, 1.0 - self.beta2 ** (step.number + 1))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.epsilon)
        step.move(rows, memory["m"], over=scale, per=1.0 - self.beta1 ** (step.number + 1))
