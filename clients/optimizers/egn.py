"""Exact Gauss-Newton: the step that is right for outputs that are linear in the parameters.

With the Jacobian J of a mini-batch's N outputs, r and Q the gradient and the Hessian of the client's loss by them, and
e = decay y - corrections, what these add to its gradient J' r:
v <- momentum v + (J' Q J + lambda I)^-1 (J' r + e),  lambda = max(damping, scale |J' r + e|) + decay;  y <- y - lr v
It is solved for N numbers a client: (J' Q J + lambda I)^-1 (J' r + e) = J' u + e / lambda with
(Q J J' + lambda I) u = r - Q J e / lambda, and of chains of linear layers J is never made. Memory: v, with momentum.
Korbit et al. 2024, whose 1/B are in r and Q here; a step takes a gradient, a pass there and back, and the solution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsim.client import (
    Beginning,
    Beside,
    Fraction,
    Need,
    NonNegativeFloat,
    Optimizer,
    PositiveFloat,
    Remembered,
    Stack,
    Step,
    norms,
    options,
    products,
    scaled,
)


@options
class Egn(Optimizer):
    """For losses that curve upwards as functions of outputs: with little damping a linear model is fitted at once."""

    usual = 1.0
    needs = frozenset[Need]({"outputs", "curvature"})
    bounded = False
    effort = 2.0

    damping: PositiveFloat = 1.0
    """lambda, added to the curvature, or the least of it."""
    scale: NonNegativeFloat = 0.0
    """Times the gradient's norm it is added, where that is more."""
    momentum: Fraction = 0.0
    """How slowly v moves; 0: it is the solution."""

    @property
    def vectors(self) -> float:
        """v, where there is a momentum, and e."""
        return 1.0 + (self.momentum > 0)

    def solving(self, shapes: Sequence[tuple[int, ...]], outputs: int) -> Beside:
        """J, in case it is made, and four matrices [N, N]; products of a chain's deltas, and the solution."""
        rows = [shape for shape in shapes if len(shape) > 1]
        gram = sum(outputs * shape[0] * (outputs + torch.Size(shape[1:]).numel()) for shape in rows)
        dimension = sum(torch.Size(shape).numel() for shape in shapes)
        return Beside(outputs * (dimension + 4 * outputs), gram + outputs**3 // 3)

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """A velocity of zeros."""
        return {"v": y.zeros()} if self.momentum else {}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Solve for the direction, and move along the velocity."""
        assert step.outputs is not None
        added = step.outputs.corrections(rows)
        here = step.outputs.linearised(rows)
        (clients, batch), each = here.outputs.shape[:2], here.outputs[0, 0].numel()
        curvature = step.outputs.curvature(here.outputs)
        right = step.outputs.residuals(here.outputs).reshape(clients, -1, 1)
        damping = (self.scale * norms(step.gradient)).clamp(min=self.damping) + step.outputs.decay

        def curved(x: torch.Tensor) -> torch.Tensor:
            """Q x, [k, N, n]."""
            return products.bmm(curvature.flatten(0, 1), x.reshape(clients * batch, each, -1)).view_as(x)

        system = curved(here.gram())
        system.diagonal(dim1=1, dim2=2).add_(damping.unsqueeze(1))
        if added is not None:
            right = right - curved(here.push(added).reshape(clients, -1, 1)) / damping.view(-1, 1, 1)
        found = here.pull(torch.linalg.solve(system, right).view_as(here.outputs))
        if added is not None:
            found.add_(scaled(added, 1.0 / damping))
        if self.momentum:
            found = memory["v"].mul_(self.momentum).add_(found)
        step.move(rows, found)
