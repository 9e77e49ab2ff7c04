"""OASIS: steps scaled by the diagonal of the curvature, as long as the gradient's changes allow.

D <- beta2 D + (1 - beta2) z * H z for signs z, each as likely;  S = max(|D|, floor)
eta_k = min(sqrt(1 + eta_{k-1} / eta_{k-2}) eta_{k-1}, |y_k - y_{k-1}|_S / (2 |g_k - g_{k-1}|_{1/S})),  eta_0 = lr
y <- y - eta_k g_k / S,  where |x|_S^2 = sum S x^2, both gradients are of step k's mini-batch, and eta is one a client
At first D is the mean of z * H z over some draws. Memory: D, the point before, eta and its last factor.
Jahani et al. 2022, as a third party's code has it. A step takes two gradients and a product H v, about four in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.client import (
    Beginning,
    Fraction,
    Need,
    Optimizer,
    PositiveFloat,
    PositiveInt,
    Remembered,
    Stack,
    Step,
    inner,
    options,
    scaled,
)


@options
class Oasis(Optimizer):
    """lr is the size of a round's first step, and the later ones follow from it and from what is seen."""

    needs = frozenset[Need]({"again", "product", "noise"})
    vectors = 5.0  # with a gradient, and what is compared of two
    effort = 4.0

    beta2: Fraction = 0.99
    """How slowly D moves."""
    floor: PositiveFloat = 1e-3
    """S is at least that."""
    draws: PositiveInt = 2
    """Of z, whose mean D begins as: the first step takes so many products."""

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Nothing is known of the curvature, nor of a step before."""
        eta, factor = (y.leaves[0].new_zeros(len(y)) for _ in range(2))
        return {"d": y.zeros(), "before": y.zeros(), "eta": Stack([eta]), "factor": Stack([factor])}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Measure the curvature, choose the size, and move."""
        (eta,), (factor,), before = memory["eta"].leaves, memory["factor"].leaves, memory["before"]
        if step.number == 0:
            memory["d"].add_(self._curvature(rows, step, 0))
            for draw in range(1, self.draws):
                memory["d"].add_(self._curvature(rows, step, draw))
            memory["d"].mul_(1.0 / self.draws)
            eta.copy_(torch.as_tensor(step.lr, dtype=eta.dtype))
            factor.fill_(torch.inf)
        else:
            memory["d"].mul_(self.beta2).add_(self._curvature(rows, step, 0), 1.0 - self.beta2)
        scale = torch._foreach_abs(memory["d"].leaves)
        torch._foreach_clamp_min_(scale, self.floor)
        if step.number > 0:
            self._choose(eta, factor, before, rows, step, Stack(scale))
        torch._foreach_copy_(before.leaves, rows.leaves)
        rows.add_(scaled(Stack(torch._foreach_div(step.gradient.leaves, scale)), eta), -1.0)

    def _choose(self, eta: Tensor, factor: Tensor, before: Stack, rows: Stack, step: Step, scale: Stack) -> None:
        """The next size, in place; where neither bound is a number above 0, as between equal points, it stays."""
        assert step.objective is not None
        _, gradient = step.objective.again(before)
        moved, turned = (
            Stack(torch._foreach_sub(one.leaves, other.leaves))
            for one, other in ((rows, before), (step.gradient, gradient))
        )
        far = inner(moved, Stack(torch._foreach_mul(moved.leaves, scale.leaves))).sqrt()
        steep = inner(turned, Stack(torch._foreach_div(turned.leaves, scale.leaves))).sqrt()
        found = torch.minimum((1.0 + factor).sqrt() * eta, torch.where(steep > 0, far / (2.0 * steep), torch.inf))
        found = torch.where(found.isfinite() & (found > 0), found, eta)
        torch.div(found, eta, out=factor)
        eta.copy_(found)

    def _curvature(self, rows: Stack, step: Step, draw: int) -> Stack:
        """Z * H z."""
        assert step.objective is not None
        assert step.noise is not None
        z = step.noise.signs(f"curvature/{draw}", rows)
        return Stack(torch._foreach_mul(step.objective.product(rows, z).leaves, z.leaves))
