"""A-DoG: DoG with Nesterov's acceleration, at one gradient a step.

From w = y = y_0, alpha = 1, rbar = S = reps_rel (1 + |y_0|), G = 0:
G <- G + alpha^2 |g|^2;  eta = rbar / (sqrt(G) + epsilon);  w <- w - lr alpha eta g;  y' = y - lr eta g
rbar <- max(rbar, |w - y_0|);  S <- S + rbar;  alpha <- max(1, S / (2 rbar));  y <- y' + (w - y') / alpha
While alpha is 1 it is DoG. Memory: y_0 and w. After the class AcceleDoG of DoG's authors.
"""

from __future__ import annotations

import torch

from fedsim.client import (
    Beginning,
    CompiledRule,
    Distances,
    Remembered,
    Stack,
    Step,
    mix,
    norms,
    options,
    scale,
    scaled,
    squares,
)


@options
class ADog(Distances):
    """Deltas do not change with the scale of a client's loss, but for epsilon. y is what is sent."""

    @property
    def vectors(self) -> float:
        """y_0 and w."""
        return 2.0

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("a_dog", (self.reps_rel, self.epsilon), more=1)

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """W is there, too; beside S and alpha. G begins with nothing."""
        memory = super().begin(y, beginning)
        (distance,), (total,) = memory["distance"].leaves, memory["total"].leaves
        total.zero_()
        return memory | {"w": y.copy(), "numbers": Stack([distance.clone(), torch.ones_like(distance)])}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move y, and w further, then y towards w."""
        (distance,), (total,), far = memory["distance"].leaves, memory["total"].leaves, memory["w"]
        summed, alpha = memory["numbers"].leaves
        total.addcmul_(alpha.square(), squares(step.gradient))
        rate = distance / (total.clamp(min=torch.finfo(total.dtype).tiny).sqrt_() + self.epsilon)
        step.move(far, scaled(step.gradient, alpha * rate))
        step.move(rows, scale(step.gradient, rate))
        torch.maximum(distance, norms(far.minus(memory["start"])), out=distance)
        summed.add_(distance)
        torch.clamp(summed / (2.0 * distance), min=1.0, out=alpha)
        mix(rows, far, 1.0 / alpha)
