"""Steepest descent under a norm of each layer.

y <- y - lr T, with T = argmax <m, T> over |T| <= 1, or y <- y - lr <m, T> T, after y <- (1 - lr decay) y
m <- beta m + (1 - beta) g;  with beta = 0 it is g
Memory: m, where there is a beta. Bernstein and Newhouse 2024. What T is under which norm: max: sign m; frobenius: m /
|m| of each layer; spectral: U V' of m = U S V'; columns, rows: each of them by its l2 norm. With length unit and a
decay, no layer's norm grows beyond 1 / decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from fedsim.client import (
    Beginning,
    Fraction,
    InputError,
    MatrixNorm,
    NonNegativeInt,
    Optimizer,
    Remembered,
    Stack,
    Step,
    VectorNorm,
    columns,
    inner,
    matrix_norms,
    options,
)


@options
class Steepest(Optimizer):
    """Signs, normalised layers, and orthogonal matrices are all its steps, each under its norm."""

    usual: ClassVar[float] = 0.02

    norm: MatrixNorm = "spectral"
    """Of matrices; a kernel [out, in, ...] is a matrix [out, in ...]."""
    biases: VectorNorm = "max"
    """Of what has one axis; frobenius is its l2 norm."""
    length: Literal["unit", "dual"] = "unit"
    """Of a step under the norm: lr, or lr times the gradient's dual norm, with which it falls."""
    beta: Fraction = 0.0
    """How slowly m moves; 0: it is g."""
    newton_schulz: NonNegativeInt = 5
    """Of norm = "spectral", steps to U V', which they come near; 0: it is exact."""

    def __post_init__(self) -> None:
        if self.newton_schulz != 5 and self.norm != "spectral":
            raise InputError("newton_schulz", self.newton_schulz, "is an option of norm = 'spectral' only")

    @property
    def decoupled(self) -> bool:
        """So that it bounds the norm."""
        return True

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
        norms = matrix_norms.named([leaf.shape[1:] for leaf in along], self.norm, self.biases)
        directions = matrix_norms.steepest(along, norms, self.newton_schulz)
        if self.length == "dual":
            for leaf, direction in zip(along, directions, strict=True):
                direction.mul_(columns(inner(Stack([leaf]), Stack([direction])), direction))
        step.move(rows, Stack(directions))

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """The products of factors."""
        return matrix_norms.operations(shapes, matrix_norms.named(shapes, self.norm, self.biases), self.newton_schulz)
