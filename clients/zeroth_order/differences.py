"""Finite differences along random directions: RGF, FedZO's sphere, Rademacher, orthonormal, coordinates.

forward: s_j = (f(x + mu u_j) - f(x)) / mu;  central: s_j = (f(x + mu u_j) - f(x - mu u_j)) / (2 mu)
ghat = (1/q) sum_j s_j w_j,  w_j the dual of u_j, so that small mu gives the mean grad f; or plainly w_j = u_j
q evaluations beside f(x), or 2q; the mean is over those s_j whose values came, and 0 where none did; where f(x)
failed, the mean of those values stands for it. Nesterov and Spokoiny 2017; Fang et al. 2022 (sphere); Shu et al. 2023,
whose RGF has orthonormal directions and w = u, so that its mean is grad f / d.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from fedsim.client import PositiveFloat, PositiveInt, Shapes, options, products
from fedsim.zeroth_order import Estimate, Kind, Memory, Probe, based, check, dual, mean_told, told


@options
class Differences:
    """A plain estimate along directions of length 1 has the mean grad f / d."""

    values_only: ClassVar[bool] = True

    difference: Literal["forward", "central"] = "forward"
    """Slopes from f(x) (forward), or of two perturbed values (central)."""
    directions: Kind = "gaussian"
    """How the u_j are drawn."""
    count: PositiveInt = 20
    """q, directions of an estimate."""
    mu: PositiveFloat = 0.01
    """The radius."""
    scaling: Literal["unbiased", "plain"] = "unbiased"
    """unbiased, so that for small mu the mean of ghat is grad f; or plain, w = u."""

    @property
    def needs_base(self) -> bool:
        """Forward differences use f(x)."""
        return self.difference == "forward"

    def evaluations(self, dimension: int) -> int:  # noqa: ARG002
        """One a direction, or two."""
        return self.count if self.needs_base else 2 * self.count

    def state(self, dimension: int) -> Shapes:  # noqa: ARG002
        """Nothing."""
        return {}

    def check(self, dimension: int) -> None:
        """Refuse more directions than there are, where they may not repeat."""
        check(self.directions, self.count, dimension, "client.estimator.count")

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:
        """Estimate the gradients at x [k, d]."""
        u, center = probe.directions(self.directions, self.count), x.unsqueeze(1)
        ahead = probe.query(center + self.mu * u)
        if base is not None:
            value = based(base, ahead)
            slopes = (ahead - value.unsqueeze(1)) / self.mu
        else:
            behind = probe.query(center - self.mu * u)
            slopes, value = (ahead - behind) / (2.0 * self.mu), mean_told(ahead + behind) / 2.0
        along = dual(self.directions, u) if self.scaling == "unbiased" else u
        slopes, share = told(slopes)
        gradient = products.bmm(slopes.unsqueeze(1), along).squeeze(1)
        return Estimate(gradient / self.count * share, value, memory)
