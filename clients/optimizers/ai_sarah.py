"""AI-SARAH: recursive gradients, each step as long as the curvature along its own direction says.

V <- the gradient over all examples of the client; then in each step, with a mini-batch's gradient g and Hessian H:
a = <V, H V> / |H V|^2, at most 1 / delta of the steps before;  1 / delta <- harmonic mean with weights beta, 1 - beta
y' = y - lr a V;  V <- g(y') - g(y) + V
V begins anew, `restarts` times at most, where |V|^2 < gamma |V_0|^2. Memory: V, |V_0|^2, delta and the restarts left.
Shi et al. 2023, algorithm 2, one Newton step for |V|^2 along V, without its third derivative: exact on quadratics.
A step takes two gradients and a product H v, about four; a round takes a pass over all examples, and one a restart.
"""

from __future__ import annotations

import torch

from fedsim.client import (
    Beginning,
    Fraction,
    Need,
    NonNegativeInt,
    Optimizer,
    Remembered,
    Stack,
    Step,
    inner,
    options,
    scaled,
    squares,
)


@options
class AiSarah(Optimizer):
    """Without curvature above 0 along V a step is 1 / delta, or where none was seen before, 1."""

    usual = 1.0
    rate_free = True
    needs = frozenset[Need]({"again", "product", "whole"})
    vectors = 3.0  # with H V, and a gradient
    effort = 4.0

    beta: Fraction = 0.999
    """How slowly the bound of a moves."""
    gamma: Fraction = 0.03125
    """V begins anew where |V|^2 is less than that share of what it began with."""
    restarts: NonNegativeInt = 1
    """How often in a round it may; as many passes over all examples are declared."""

    @property
    def passes(self) -> float:
        """One at the beginning, and those that may come."""
        return 1.0 + self.restarts

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """No direction, and no bound; the first step begins V without counting."""
        first, delta = (y.leaves[0].new_zeros(len(y)) for _ in range(2))
        left = torch.full_like(first, self.restarts + 1.0)
        return {"v": y.zeros(), "first": Stack([first]), "delta": Stack([delta]), "left": Stack([left])}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Begin anew where that is due, find the size, move, and follow the gradient."""
        assert step.objective is not None
        v, (first,), (delta,), (left,) = memory["v"], *(memory[name].leaves for name in ("first", "delta", "left"))
        due = torch.full_like(left, step.number == 0).bool() | ((squares(v) < self.gamma * first) & (left > 0))
        again = due.nonzero().flatten()
        if len(again):
            for leaf, own in zip(v.leaves, step.objective.whole(rows, again).leaves, strict=True):
                leaf.index_copy_(0, again, own)
            first.copy_(torch.where(due, squares(v), first))
            left.sub_(due.to(left.dtype))
        curved = step.objective.product(rows, v)
        newton = inner(v, curved) / squares(curved)
        sound = newton.isfinite() & (newton > 0)
        bound = torch.where(delta > 0, 1.0 / delta, torch.inf)
        size = torch.where(sound, torch.minimum(newton, bound), torch.where(bound.isfinite(), bound, 1.0))
        mixed = torch.where(delta > 0, self.beta * delta + (1.0 - self.beta) / newton, 1.0 / newton)
        delta.copy_(torch.where(sound, mixed, delta))
        step.move(rows, scaled(v, size))
        _, gradient = step.objective.again(rows)
        v.add_(gradient).add_(step.gradient, -1.0)
