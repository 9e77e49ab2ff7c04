"""AMSGrad: Adam whose second moment never falls, so that rates do not grow again.

m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  u <- max(u, v)
y <- y - lr (m / (1 - beta1^t)) / (sqrt(u / (1 - beta2^t)) + epsilon),  t = 1, 2, ... within the round
Memory: m, v and u. Reddi, Kale and Kumar 2018; with both corrections, as torch.optim.Adam with amsgrad has it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedsim.client import Beginning, CompiledRule, Fraction, Optimizer, PositiveFloat, Remembered, Stack, Step, options


@options
class AmsGrad(Optimizer):
    """In the few steps of a round v hardly falls, so that it differs from adam where there are many."""

    usual: ClassVar[float] = 0.01

    beta1: Fraction = 0.9
    """How slowly m moves."""
    beta2: Fraction = 0.99
    """How slowly v moves."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root."""
    variant: Literal["corrected", "paper"] = "corrected"
    """corrected: as above. paper: neither moment is corrected, and v and u begin at epsilon^2, as the adaptive rules of
    servers do.
    """

    @property
    def vectors(self) -> float:
        """M, v and u."""
        return 3.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("amsgrad", (self.beta1, self.beta2, self.epsilon, self.variant == "corrected"))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Moments of zeros, or in the paper's variant of almost that."""
        memory = {name: y.zeros() for name in ("m", "v", "u")}
        if self.variant == "paper":
            torch._foreach_add_([*memory["v"].leaves, *memory["u"].leaves], self.epsilon**2)
        return memory

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the mean over the root of the largest."""
        mean, square, largest = (memory[name].leaves for name in ("m", "v", "u"))
        gradient, corrected = step.gradient.leaves, self.variant == "corrected"
        torch._foreach_lerp_(mean, gradient, 1.0 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, gradient, gradient, 1.0 - self.beta2)
        torch._foreach_maximum_(largest, square)
        scale = torch._foreach_div(largest, 1.0 - self.beta2 ** (step.number + 1) if corrected else 1.0)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.epsilon)
        step.move(rows, memory["m"], over=scale, per=1.0 - self.beta1 ** (step.number + 1) if corrected else 1.0)
