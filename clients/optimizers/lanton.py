"""LANTON: layers whose gradients are noisy take shorter steps than those of their group that are quiet.

m <- beta1 m + (1 - beta1) g;  T = argmax <m, T> over |T| <= 1, of each layer under its norm
h <- beta2 h + (1 - beta2) |g - g of the step before|*^2, the dual norm, from h = 0;  a = alpha / sqrt(alpha^2 + h)
y <- y - lr sqrt(a / max a) (T + decay y),  the largest a of the client's layers with the same norm
Memory: m and the last g. Hao et al. 2025, with the difference of successive gradients for the noise. For T and norms
see steepest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import (
    Beginning,
    Fraction,
    Layered,
    MatrixNorm,
    PositiveFloat,
    Remembered,
    Stack,
    Step,
    inner,
    options,
)


@options
class Lanton(Layered):
    """The quietest layer of a group has the rate lr, and where there is but one, it is steepest descent."""

    usual: ClassVar[float] = 0.02
    shrinks: ClassVar[bool] = True

    beta1: Fraction = 0.95
    """How slowly m moves."""
    beta2: Fraction = 0.9
    """How slowly h moves."""
    alpha: PositiveFloat = 1.0
    """How large noise has to be to matter, in the unit of the gradients' dual norms."""

    @property
    def vectors(self) -> float:
        """m, the last g, the difference, T and its like; and what steps to a factor take."""
        return 4.0 + 6.0 * (self.norm == "spectral")

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Zeros."""
        noise = [leaf.new_zeros(len(leaf)) for leaf in y.leaves]
        return {"m": y.zeros(), "last": y.zeros(), "noise": Stack(noise)}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move each layer by its rate."""
        gradient, last, noise = step.gradient.leaves, memory["last"].leaves, memory["noise"].leaves
        torch._foreach_lerp_(memory["m"].leaves, gradient, 1.0 - self.beta1)
        norms = self.norms([leaf.shape[1:] for leaf in gradient])
        change = torch._foreach_sub(gradient, last)
        both = self.directions([*memory["m"].leaves, *change], [*norms, *norms])
        directions, along = both[: len(norms)], both[len(norms) :]
        if step.number:
            duals = [inner(Stack([one]), Stack([other])) for one, other in zip(change, along, strict=True)]
            torch._foreach_lerp_(noise, torch._foreach_mul(duals, duals), 1.0 - self.beta2)
        torch._foreach_copy_(last, gradient)
        for leaf, direction, rate in zip(rows.leaves, directions, self._rates(noise, norms), strict=True):
            own = replace(step, lr=rate * step.lr)
            if step.decay:
                own.shrink(Stack([leaf]), step.decay)
            own.move(Stack([leaf]), Stack([direction]))

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """The products of the factors of m and of the differences."""
        return 2 * super().operations(shapes)

    def _rates(self, noise: Sequence[Tensor], norms: Sequence[MatrixNorm]) -> list[Tensor]:
        """Of each layer, [k], in lr."""
        quiet = torch.stack([self.alpha / (self.alpha**2 + part).sqrt() for part in noise])
        largest = {norm: quiet[[own == norm for own in norms]].amax(0) for norm in set(norms)}
        return [(one / largest[norm]).sqrt() for one, norm in zip(quiet, norms, strict=True)]
