"""One-point residual feedback: the value of the last step takes the place of a second evaluation.

g_t = (f(x_t + mu u_t) - f(x_{t-1} + mu u_{t-1})) / mu * w_t,   w_t = u_t, or d u_t on the sphere
One evaluation. As u_t is independent of the last value, the mean is the gradient of f smoothed by mu, whatever that
value was. A client's first estimate, which has no last value, is 0; later the last value may be that of an earlier
round, a model or a mini-batch away, which costs variance alone. A value that failed gives 0, and is not remembered.
Zhang, Zhou, Ji and Zavlanos 2022.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import PositiveFloat, Shapes, options
from fedsim.zeroth_order import Estimate, Memory, Probe, dual, told


@options
class Residual:
    """A client keeps its last value."""

    values_only: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    directions: Literal["gaussian", "sphere"] = "gaussian"
    """How u_t is drawn."""
    mu: PositiveFloat = 0.1
    """The radius."""

    def evaluations(self, dimension: int) -> int:  # noqa: ARG002
        """One."""
        return 1

    def state(self, dimension: int) -> Shapes:  # noqa: ARG002
        """The last value, and 1 once there is one."""
        return {"last": (), "known": ()}

    def check(self, dimension: int) -> None:
        """Any number of parameters will do."""

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:  # noqa: ARG002
        """Estimate the gradients at x [k, d]; the value is that at x + mu u."""
        u = probe.directions(self.directions, 1)
        value = probe.query(x.unsqueeze(1) + self.mu * u)[:, 0]
        slope, _ = told((memory["known"] * (value - memory["last"]) / self.mu).unsqueeze(1))
        gradient, came = slope * dual(self.directions, u)[:, 0], torch.isfinite(value)
        last = {"last": torch.where(came, value, memory["last"]), "known": torch.where(came, 1.0, memory["known"])}
        return Estimate(gradient, value, last)
