"""Muon: matrices move by the nearest orthogonal ones to their momentum.

m <- beta m + (1 - beta) g;  u = (1 - beta) g + beta m, or m without nesterov
y <- y - lr sqrt(max(1, out / in)) U V',  where u = U S V', after y <- (1 - lr decay) y
Memory: m. Jordan et al. 2024, who have the factor by five steps of Newton and Schulz; a kernel [out, in, ...] is a
matrix [out, in ...]. With an exact factor and a decay, no singular value grows beyond sqrt(max(1, out / in)) / decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from fedsim.client import (
    Beginning,
    Divided,
    Fraction,
    NonNegativeInt,
    Remembered,
    Stack,
    Step,
    matrices,
    options,
    polar,
)


@options
class Muon(Divided):
    """For the matrices within a network; biases, embeddings and what comes last are moved by another rule."""

    usual: ClassVar[float] = 0.02

    beta: Fraction = 0.95
    """How slowly m moves."""
    nesterov: bool = True
    """Whether the gradient has a part of its own in what is made orthogonal."""
    newton_schulz: NonNegativeInt = 5
    """Steps to the factor, each of which takes products of the matrix with itself; 0: it is exact."""
    first: bool = True
    """Whether the first matrix is moved so, too; of a model that begins with an embedding it should not be."""
    last: bool = False
    """Whether the last matrix is moved so, too; of a model that has no other, all is the other rule's without it."""

    @property
    def vectors(self) -> float:
        """M, and at most three that steps to a factor take; or those of the other rule, if they are more."""
        return max(4.0, self.other.vectors)

    def own(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[int]:
        """Leaves with two axes or more, without the last of them, unless it is asked for."""
        return matrices(shapes)[0 if self.first else 1 : None if self.last else -1]

    def begin_own(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """A momentum of zeros."""
        return {"m": y.zeros()}

    def step_own(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the factors of the momenta."""
        along, gradient = memory["m"].leaves, step.gradient.leaves
        torch._foreach_lerp_(along, gradient, 1.0 - self.beta)
        if self.nesterov:
            torch._foreach_lerp_(gradient, along, self.beta)
            along = gradient
        factors = polar.polar(along, self.newton_schulz)
        torch._foreach_mul_(factors, [max(1.0, leaf[0].size(0) / leaf[0, 0].numel()) ** 0.5 for leaf in factors])
        step.move(rows, Stack(factors))

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """The products of its factors."""
        own = sum(polar.operations(shapes[number], self.newton_schulz) for number in self.own(shapes))
        return own + super().operations(shapes)
