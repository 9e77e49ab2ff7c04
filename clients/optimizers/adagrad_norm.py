"""AdaGrad-Norm: one rate a client, which falls with the squared norms of its gradients.

v <- v + |g|^2;  y <- y - lr g / (sqrt(v) + epsilon),  v = initial at the beginning of a round
Memory: a number a client. Ward, Wu and Bottou 2019; in the form of AdAdaGrad (Lau, Liu and Kolar 2024), with the norm
over all parameters.
"""

from __future__ import annotations

from typing import ClassVar

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
    scaled,
    squares,
)


@options
class AdaGradNorm(Optimizer):
    """No step is longer than lr."""

    usual: ClassVar[float] = 1.0

    initial: NonNegativeFloat = 0.01
    """Where v begins; at 0 the first step has the length lr, whatever the gradient."""
    epsilon: PositiveFloat = 1e-10
    """Added to the root."""

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("adagrad_norm", (self.initial, self.epsilon), more=1)

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """The square as it begins."""
        return {"v": Stack([y.leaves[0].new_full((len(y),), self.initial)])}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move along the gradient, over the root of its squared norms."""
        (square,) = memory["v"].leaves
        square.add_(squares(step.gradient))
        step.move(rows, scaled(step.gradient, 1.0 / (square.sqrt() + self.epsilon)))
