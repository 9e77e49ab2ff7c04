"""Gradient descent, with momentum or Nesterov's form of it.

v <- momentum v + g;  y <- y - lr v, or with nesterov y <- y - lr (g + momentum v)
Memory: v, where there is a momentum. The form of torch.optim.SGD without dampening.
"""

from __future__ import annotations

from torch import Tensor

from fedsim.client import (
    Beginning,
    CompiledRule,
    Fraction,
    InputError,
    Optimizer,
    Remembered,
    Stack,
    Step,
    normaliser,
    options,
)


@options
class Sgd(Optimizer):
    """The rule of federated averaging; without momentum a step is fused with the gradient."""

    momentum: Fraction = 0.0
    """How slowly v moves; 0: it is g."""
    nesterov: bool = False
    """Nesterov's form, which needs a momentum."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0.0:
            raise InputError("nesterov", True, "needs a momentum above 0")

    @property
    def vectors(self) -> float:
        """v, where there is a momentum."""
        return float(self.momentum > 0.0)

    @property
    def plain(self) -> bool:
        """Without momentum."""
        return self.momentum == 0.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("sgd", (self.momentum, self.nesterov))

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """A velocity of zeros."""
        return {} if self.plain else {"v": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move along the velocity."""
        along = step.gradient
        if not self.plain:
            velocity = memory["v"].mul_(self.momentum).add_(along)
            along = along.add_(velocity, self.momentum) if self.nesterov else velocity
        step.move(rows, along)

    def weights(self, steps: Tensor, shrinkage: float) -> Tensor | None:
        """See `normaliser`, which knows a momentum or a proximal term, and not Nesterov's form."""
        if self.nesterov or (self.momentum and shrinkage):
            return None
        return normaliser(steps, momentum=self.momentum, shrinkage=shrinkage)
