"""SSO: several steps on a surrogate of the loss in the space of outputs, from one look at the targets.

With outputs z_0 and q = dl/dz at z_0, of B examples:  s(y) = <q, z(y) - z_0> + |z(y) - z_0|^2 / (2 eta B)
y <- y - lr grad s(y), `inner` times on the same mini-batch, with decay and corrections as always
The first is a step of SGD, whatever eta; where outputs are free to move, the last one is z_0 - eta B q: each example's
own gradient, eta times. Lavington et al. 2023, with steps of a rate in place of a line search; the eta of their code,
which is in mean(q z / eta + (z - z_0)^2), is 1 / (2 eta B) here. A step takes `inner` gradients and a forward pass.
"""

from __future__ import annotations

from fedsim.client import (
    FORWARD,
    Need,
    Optimizer,
    PositiveFloat,
    PositiveInt,
    Remembered,
    Stack,
    Step,
    options,
)


@options
class Sso(Optimizer):
    """For losses that cost much, such as those of attacked examples: these are looked at once."""

    needs = frozenset[Need]({"outputs"})

    inner: PositiveInt = 4
    """Steps on the surrogate; 1: SGD."""
    eta: PositiveFloat = 1.0
    """How far outputs may move, in gradients of their own example's loss."""

    @property
    def effort(self) -> float:
        """Its steps, and the outputs at the first of them."""
        return self.inner + (FORWARD if self.inner > 1 else 0.0)

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:  # noqa: ARG002
        """Step along the gradient, and on."""
        assert step.outputs is not None
        if self.inner > 1:
            first = step.outputs.linearised(rows).outputs
            slope = step.outputs.residuals(first)
            pull = step.outputs.shares / self.eta
        step.move(rows, step.gradient)
        for _ in range(self.inner - 1):
            here = step.outputs.linearised(rows)
            away = here.outputs - first
            gradient = here.pull(slope + away * pull.view(*pull.shape, *(1,) * (away.dim() - 2)))
            step.move(rows, step.outputs.corrected(rows, gradient))
