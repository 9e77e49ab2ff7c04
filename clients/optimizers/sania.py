"""SANIA: Polyak's step, as long as the loss says, in a metric of the gradients' squares.

adagrad_sqr: v <- v + g^2, w = v;  adam_sqr: v <- beta2 v + (1 - beta2) g^2, w = v / (1 - beta2^t),  t = 1, 2, ...
B = max(w, epsilon);  s = g / B;  n = <g, s>;  y <- y - lr (1 - sqrt(max(1 - 2 l / n, 0))) s
l is the loss of the mini-batch, with what decay and proximal terms add to it. Memory: v. Abdukhakimov et al. 2023.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedsim.client import (
    Beginning,
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
)


@options
class Sania(Optimizer):
    """The least loss is taken to be 0: with label smoothing or decay, steps are too long; below 0 there is none.

    Without a floor it is the same in whatever units the parameters are, but it is not the same for a multiple of the
    loss.
    """

    usual: ClassVar[float] = 1.0
    rate_free: ClassVar[bool] = True

    metric: Literal["adam_sqr", "adagrad_sqr"] = "adam_sqr"
    """adam_sqr: a corrected mean of squares. adagrad_sqr: their sum, with which steps grow shorter."""
    beta2: Fraction = 0.999
    """Of adam_sqr, how slowly v moves."""
    epsilon: PositiveFloat = 0.1
    """The least of B: numbers with smaller squares move by at most 1 / epsilon times their gradient."""
    root: bool = False
    """Whether B is the root of w, as in AdaGrad and Adam, which has no longer the property that units do not matter."""

    def __post_init__(self) -> None:
        if self.metric != "adam_sqr" and self.beta2 != type(self).beta2:
            raise InputError("beta2", self.beta2, "is of metric = adam_sqr only; leave it out")

    @property
    def needs(self) -> frozenset[Need]:
        """The loss, by which a step is as long as it is."""
        return frozenset({"loss"})

    @property
    def vectors(self) -> float:
        """V."""
        return 1.0

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Squares of zeros."""
        return {"v": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move to where the loss would be 0, if it were what is known of it."""
        square, gradient = memory["v"].leaves, step.gradient.leaves
        weight, whole = 1.0, 1.0
        if self.metric == "adam_sqr":
            torch._foreach_mul_(square, self.beta2)
            weight, whole = 1.0 - self.beta2, 1.0 - self.beta2 ** (step.number + 1)
        torch._foreach_addcmul_(square, gradient, gradient, weight)
        metric = torch._foreach_div(square, whole)
        if self.root:
            torch._foreach_sqrt_(metric)
        torch._foreach_clamp_min_(metric, self.epsilon)
        along = Stack(torch._foreach_div(gradient, metric))
        share = 2.0 * step.loss.clamp(min=0.0) / inner(step.gradient, along)
        # Of 1 - sqrt(1 - share) nothing would be left where the share is small. Without a gradient it is no number.
        length = torch.where(share < 1.0, share / (1.0 + (1.0 - share).sqrt()), 1.0)
        step.move(rows, scaled(along, length))
