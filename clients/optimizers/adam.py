"""Adam: steps of a size of their own for each number.

m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
y <- y - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon),  t = 1, 2, ... within the round
Memory: m and v. Kingma and Ba 2015; with the weight decay in g, as torch.optim.Adam has it, or decoupled: y <- (1 - lr
weight_decay) y before the step (AdamW, Loshchilov and Hutter 2019).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedsim.client import Beginning, CompiledRule, Fraction, Optimizer, PositiveFloat, Remembered, Stack, Step, options


@options
class Adam(Optimizer):
    """Moments begin anew in every round, so that its first step has the size lr in each number.

    That holds whatever the gradient: with few local steps it is descent by signs.
    """

    usual: ClassVar[float] = 0.01

    beta1: Fraction = 0.9
    """How slowly m moves."""
    beta2: Fraction = 0.99
    """How slowly v moves; PyTorch's default is 0.999, which a round of few steps does not come to."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root."""
    decay: Literal["coupled", "decoupled"] = "coupled"
    """coupled: `weight_decay` is a part of the gradient, and of its moments. decoupled: it shrinks the parameters."""

    @property
    def decoupled(self) -> bool:
        """As `decay` says."""
        return self.decay == "decoupled"

    @property
    def vectors(self) -> float:
        """M and v."""
        return 2.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("adam", (self.beta1, self.beta2, self.epsilon))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Moments of zeros."""
        return {"m": y.zeros(), "v": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the corrected moments."""
        mean, square, gradient = memory["m"].leaves, memory["v"].leaves, step.gradient.leaves
        torch._foreach_lerp_(mean, gradient, 1.0 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, gradient, gradient, 1.0 - self.beta2)
        scale = torch._foreach_div(square, 1.0 - self.beta2 ** (step.number + 1))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.epsilon)
        step.move(rows, memory["m"], over=scale, per=1.0 - self.beta1 ** (step.number + 1))
