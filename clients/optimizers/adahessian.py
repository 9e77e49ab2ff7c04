"""AdaHessian: moments of the gradient, measured by the curvature along each number.

h <- |z * H z| for signs z, each as likely; of convolutions the mean over a kernel's places
m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) h^2
y <- y - lr (m / (1 - beta1^t)) / ((v / (1 - beta2^t))^(power / 2) + epsilon),  t = 1, 2, ... within the round
Memory: m and v. Yao et al. 2021, with their code's constants; the weight decay is decoupled, as there: all is of y
before it shrinks.
A step takes a gradient and a product H v on the same mini-batch, which takes about two.
"""

from __future__ import annotations

import torch

from fedsim.client import (
    Beginning,
    Fraction,
    Need,
    NonNegativeFloat,
    Optimizer,
    PositiveFloat,
    Remembered,
    Stack,
    Step,
    options,
)


@options
class AdaHessian(Optimizer):
    """Where the curvature is diagonal, h is it, and a first step of lr = 1 is Newton's but for epsilon."""

    usual = 0.15
    needs = frozenset[Need]({"product", "noise"})
    decoupled = True
    shrinks = True
    vectors = 4.0  # with z and H z
    effort = 3.0

    beta1: Fraction = 0.9
    """How slowly m moves."""
    beta2: Fraction = 0.999
    """How slowly v moves."""
    power: NonNegativeFloat = 1.0
    """Of the curvature that steps are divided by; the package torch-optimizer has 0.5."""
    epsilon: PositiveFloat = 1e-4
    """Added to what steps are divided by."""

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Moments of zeros."""
        return {"m": y.zeros(), "v": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Measure the curvature, and move by the corrected moments."""
        assert step.objective is not None
        assert step.noise is not None
        curved = step.objective.product(rows, step.noise.signs("curvature", rows)).leaves
        if step.decay:
            step.shrink(rows, step.decay)
        torch._foreach_abs_(curved)
        curved = [part.mean((-2, -1), keepdim=True).expand_as(part) if part.dim() == 5 else part for part in curved]
        mean, square = memory["m"].leaves, memory["v"].leaves
        torch._foreach_lerp_(mean, step.gradient.leaves, 1.0 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, curved, curved, 1.0 - self.beta2)
        scale = torch._foreach_div(square, 1.0 - self.beta2 ** (step.number + 1))
        torch._foreach_pow_(scale, self.power / 2.0)
        torch._foreach_add_(scale, self.epsilon)
        step.move(rows, memory["m"], over=scale, per=1.0 - self.beta1 ** (step.number + 1))
