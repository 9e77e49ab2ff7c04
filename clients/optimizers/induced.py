"""The induced metric: steps that a client's own gradients shorten, a smooth form of clipping.

q = xi |g|^2;  e <- beta e + (1 - beta) q, qh = e / (1 - beta^t);  m <- momentum m + (1 - momentum) g
y <- y - lr s m / (1 - momentum^t), after y <- (1 - lr decay) y,  t = 1, 2, ... within the round
plain: s = 1 / (1 + qh).  log: s = l / (l^2 + qh), the metric of the logarithm of the loss l
rms: r <- beta_rms r + (1 - beta_rms) g^2, rh = r / (1 - beta_rms^t); g / (sqrt(rh) + epsilon) has the place of one g in
|g|^2, and m is divided by the same; s as in plain
Memory: m, a number a client, and of rms r. Thomas et al. 2025; the weight decay is decoupled, as there.
"""

from __future__ import annotations

from typing import Literal

import torch

from fedsim.client import (
    Beginning,
    CompiledRule,
    Fraction,
    InputError,
    Need,
    Optimizer,
    PositiveFloat,
    Remembered,
    Stack,
    Step,
    inner,
    options,
    scaled,
    squares,
)


@options
class Induced(Optimizer):
    """Without beta and momentum, no step of plain is longer than lr / (2 sqrt xi), which is where |g| = 1 / sqrt xi."""

    metric: Literal["plain", "log", "rms"] = "plain"
    """What shortens steps: see above. log is for losses that are never below 0."""
    xi: PositiveFloat = 0.1
    """By how much."""
    momentum: Fraction = 0.9
    """How slowly m moves."""
    beta: Fraction = 0.8
    """How slowly e moves."""
    beta_rms: Fraction = 0.99
    """Of rms, how slowly r moves."""
    epsilon: PositiveFloat = 1e-8
    """Of rms, added to the root."""

    def __post_init__(self) -> None:
        for option in ("beta_rms", "epsilon"):
            value = getattr(self, option)
            if self.metric != "rms" and value != getattr(type(self), option):
                raise InputError(option, value, "is of metric = rms only; leave it out")

    @property
    def needs(self) -> frozenset[Need]:
        """The loss, for its logarithm."""
        return frozenset({"loss"}) if self.metric == "log" else frozenset()

    @property
    def decoupled(self) -> bool:
        """As in the paper."""
        return True

    @property
    def vectors(self) -> float:
        """M, and r of rms."""
        return 2.0 if self.metric == "rms" else 1.0

    @property
    def compiled(self) -> CompiledRule | None:
        """Plain."""
        return CompiledRule("induced", (self.xi, self.momentum, self.beta), more=1) if self.metric == "plain" else None

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Means of zeros."""
        memory = {"m": y.zeros(), "e": Stack([y.leaves[0].new_zeros(len(y))])}
        return {**memory, "r": y.zeros()} if self.metric == "rms" else memory

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move along the mean, the shorter the larger the gradients are."""
        mean, (energy,), turns = memory["m"], memory["e"].leaves, step.number + 1
        torch._foreach_lerp_(mean.leaves, step.gradient.leaves, 1.0 - self.momentum)
        along = mean
        if self.metric == "rms":
            square, gradient = memory["r"].leaves, step.gradient.leaves
            torch._foreach_mul_(square, self.beta_rms)
            torch._foreach_addcmul_(square, gradient, gradient, 1.0 - self.beta_rms)
            scale = torch._foreach_div(square, 1.0 - self.beta_rms**turns)
            torch._foreach_sqrt_(scale)
            torch._foreach_add_(scale, self.epsilon)
            along = Stack(torch._foreach_div(mean.leaves, scale))
            size = inner(step.gradient, Stack(torch._foreach_div(gradient, scale)))
        else:
            size = squares(step.gradient)
        energy.lerp_(self.xi * size, 1.0 - self.beta)
        corrected = energy / (1.0 - self.beta**turns)
        step.move(rows, scaled(along, self._shares(corrected, step)), per=1.0 - self.momentum**turns)

    def _shares(self, energy: torch.Tensor, step: Step) -> torch.Tensor:
        """How long steps are, of those without the metric, [k]."""
        if self.metric != "log":
            return 1.0 / (1.0 + energy)
        if bool((step.loss < 0.0).any()):
            least = float(step.loss.min())
            raise InputError(
                "optimizer.metric", "log", f"a client's loss, with its corrections, is {least:.3g}, below 0; take plain"
            )
        return torch.where(step.loss > 0.0, 1.0 / (step.loss + energy / step.loss), 0.0)
