"""FRUGAL: Adam for some columns of each matrix, drawn anew from time to time, and signs for the rest.

Every gap steps floor(density in) of the columns of each matrix [out, in] are drawn, and their moments begin anew. There
y <- y - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon), as in Adam, t = 1, ... since then; in the others
y <- y - lr rest_scale sign g, or g itself; all after y <- (1 - lr decay) y. Each client draws its own columns.
Memory: 2 density d. Zmushko et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import (
    Beginning,
    Divided,
    Fraction,
    InputError,
    Need,
    PositiveFloat,
    PositiveInt,
    Remembered,
    Share,
    Stack,
    Step,
    StepDraws,
    matrices,
    options,
)


@options
class Frugal(Divided):
    """With density 1 it is Adam that begins anew every gap steps, with density 0 sign descent."""

    usual: ClassVar[float] = 0.003

    density: Share = 0.25
    """Of a matrix's columns, how many have moments; a kernel [out, in, ...] is a matrix [out, in ...]."""
    gap: PositiveInt = 200
    """Steps of a round until columns are drawn anew; rounds of fewer draw once."""
    rest: Literal["sign", "plain", "none"] = "sign"
    """How the other columns move: by the gradient's signs, by itself, or not at all."""
    rest_scale: PositiveFloat = 1.0
    """Times lr: their rate; the authors have 0.1 where a trained model is tuned."""
    beta1: Fraction = 0.9
    """How slowly m moves."""
    beta2: Fraction = 0.99
    """How slowly v moves; PyTorch's default is 0.999, which a round of few steps does not come to."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root."""
    others_rate: PositiveFloat = 1.0
    """The learning rate of the rule of the other leaves, times lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rest == "none" and self.rest_scale != 1.0:
            raise InputError("rest_scale", self.rest_scale, "with rest = 'none' nothing else moves; leave it out")

    @property
    def needs(self) -> frozenset[Need]:
        """Draws, and what the other rule needs."""
        return super().needs | {"noise"}

    @property
    def vectors(self) -> float:
        """M and v of the columns; or those of the other rule, if they are more."""
        return max(2.0 * self.density, self.other.vectors)

    def own(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[int]:
        """All matrices."""
        return matrices(shapes)

    def begin_own(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """Moments of zeros, and places for the columns' numbers."""
        kept = [leaf.flatten(2)[:, :, : self._count(leaf)] for leaf in y.leaves]
        chosen = [torch.zeros_like(part[:, 0], dtype=torch.int64) for part in kept]
        return {"m": Stack(kept).zeros(), "v": Stack(kept).zeros(), "columns": Stack(chosen)}

    def step_own(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Draw columns where it is time, and move them and the rest."""
        number, gradient = step.number % self.gap, [leaf.flatten(2) for leaf in step.gradient.leaves]
        if number == 0:
            self._draw(memory, gradient, step.noise)
        mean, square, chosen = memory["m"].leaves, memory["v"].leaves, memory["columns"].leaves
        places = [own.unsqueeze(1).expand_as(part) for own, part in zip(chosen, mean, strict=True)]
        seen = [leaf.gather(2, place) for leaf, place in zip(gradient, places, strict=True)]
        torch._foreach_lerp_(mean, seen, 1.0 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, seen, seen, 1.0 - self.beta2)
        scale = torch._foreach_div(square, 1.0 - self.beta2 ** (number + 1))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.epsilon)
        along = torch._foreach_div(torch._foreach_div(mean, 1.0 - self.beta1 ** (number + 1)), scale)
        directions = [self._rest(leaf).scatter_(2, *pair) for leaf, *pair in zip(gradient, places, along, strict=True)]
        step.move(rows, Stack([own.view_as(leaf) for own, leaf in zip(directions, rows.leaves, strict=True)]))

    def _draw(self, memory: Remembered, gradient: Sequence[Tensor], noise: StepDraws | None) -> None:
        """Forget the moments, and draw the columns that are to have some."""
        assert noise is not None
        for number, (leaf, own) in enumerate(zip(gradient, memory["columns"].leaves, strict=True)):
            own.copy_(noise.permutation(f"columns {number}", len(leaf), leaf.shape[2])[:, : own.shape[1]])
        memory["m"].mul_(0.0)
        memory["v"].mul_(0.0)

    def _rest(self, gradient: Tensor) -> Tensor:
        """How the rest moves, in lr."""
        if self.rest == "none":
            return torch.zeros_like(gradient)
        return self.rest_scale * (gradient.sign() if self.rest == "sign" else gradient)

    def _count(self, leaf: Tensor) -> int:
        """How many columns of each matrix [k, out, in, ...] have moments."""
        return int(self.density * leaf.shape[2:].numel())
