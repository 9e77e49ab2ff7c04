"""Steepest descent under a norm of each layer.

y <- y - lr T, with T = argmax <m, T> over |T| <= 1, or y <- y - lr <m, T> T, after y <- (1 - lr decay) y
m <- beta m + (1 - beta) g;  with beta = 0 it is g
Memory: m, where there is a beta. Bernstein and Newhouse 2024. What T is under which norm: max: sign m; frobenius: m /
|m| of each layer; spectral: U V' of m = U S V'; columns, rows: each of them by its l2 norm. With length unit and a
decay, no layer's norm grows beyond 1 / decay.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedsim.client import (
    Beginning,
    Fraction,
    Layered,
    Remembered,
    Stack,
    Step,
    columns,
    inner,
    options,
)


@options
class Steepest(Layered):
    """Signs, normalised layers, and orthogonal matrices are all its steps, each under its norm."""

    usual: ClassVar[float] = 0.02

    length: Literal["unit", "dual"] = "unit"
    """Of a step under the norm: lr, or lr times the gradient's dual norm, with which it falls."""
    beta: Fraction = 0.0
    """How slowly m moves; 0: it is g."""

    @property
    def vectors(self) -> float:
        """m, where there is a beta, and at most three that steps to a factor take."""
        return float(self.beta > 0.0) + 3.0 * (self.norm == "spectral")

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """A momentum of zeros."""
        return {"m": y.zeros()} if self.beta else {}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move along the steepest directions."""
        along = step.gradient.leaves
        if self.beta:
            torch._foreach_lerp_(memory["m"].leaves, along, 1.0 - self.beta)
            along = memory["m"].leaves
        norms = self.norms([leaf.shape[1:] for leaf in along])
        directions = self.directions(along, norms)
        if self.length == "dual":
            for leaf, direction in zip(along, directions, strict=True):
                direction.mul_(columns(inner(Stack([leaf]), Stack([direction])), direction))
        step.move(rows, Stack(directions))
