"""U-DoG: DoG by extragradients; a step is one of two halves, each with a mini-batch of its own.

rbar_t = max_(k<=t) max(|y_k - x_0|, |x_k - x_0|), at least reps_rel (1 + |x_0|)
omega_t = sum_(k<=t) rbar_k;  alpha_t = omega_t / rbar_t;  a_t = (sum_(k<t) omega_k x_(k+1)) / (sum_(k<t) omega_k)
even step 2t: m_t, the gradient at what a_(t+1) would be if x_(t+1) were y_t;
x_(t+1) = y_t - lr alpha_t rbar_t / sqrt(G) m_t
odd step 2t + 1: g_t, the gradient at a_(t+1);
y_(t+1) = y_t - lr alpha_t rbar_t / sqrt(G) g_t
G = epsilon + |m_0|^2 + sum_k alpha_k^2 |g_k - m_k|^2, over all k whose g_k is known;  what is sent is a
Memory: x_0, y and m. Kreisler, Ivgi, Hinder and Carmon 2024; G as in UniXGrad.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.client import (
    Beginning,
    Distances,
    Need,
    Remembered,
    Stack,
    Step,
    StepDraws,
    mix,
    norms,
    options,
    scale,
    squares,
)


@options
class UDog(Distances):
    """Deltas do not change with the scale of a client's loss. Clients are at a, which even steps move.

    So many gradients are taken as there are steps; of an odd number, the last x is in the average that is sent, too.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Gradients elsewhere."""
        return frozenset({"point"})

    @property
    def vectors(self) -> float:
        """x_0, y and m."""
        return 3.0

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """Y is there, too, and no m; beside the longest distance, omega and the sum of omegas."""
        memory = super().begin(y, beginning)
        (distance,) = memory["distance"].leaves
        return memory | {"y": y.copy(), "m": y.zeros(), "numbers": Stack([distance.clone() for _ in range(3)])}

    def point(self, memory: Remembered, rows: Stack, number: int, noise: StepDraws) -> Stack:  # noqa: ARG002
        """In even steps, from the average towards y."""
        return rows if number % 2 else mix(rows.copy(), memory["y"], _share(memory))

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Find an x, which goes into the average, or move y."""
        (distance,), (total,), start = memory["distance"].leaves, memory["total"].leaves, memory["start"]
        longest, omega, summed = memory["numbers"].leaves
        alpha = omega / distance
        if step.number % 2:
            total.addcmul_(alpha.square(), squares(step.gradient.minus(memory["m"])))
            step.move(memory["y"], scale(step.gradient, alpha * self.rate(distance, total)))
            torch.maximum(longest, norms(memory["y"].minus(start)), out=longest)
            distance.copy_(longest)
            summed.add_(omega.add_(distance))
        else:
            if not step.number:
                total.add_(squares(step.gradient))
            torch._foreach_copy_(memory["m"].leaves, step.gradient.leaves)
            x = memory["y"].copy()
            step.move(x, scale(step.gradient, alpha * self.rate(distance, total)))
            torch.maximum(longest, norms(x.minus(start)), out=longest)
            mix(rows, x, _share(memory))


def _share(memory: Remembered) -> Tensor:
    """What the newest x has of the average, [k]."""
    _, omega, summed = memory["numbers"].leaves
    return omega / summed
