"""SPSA, simultaneous perturbation with decaying gains; and SPSA-GC, with gradient correction."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import Fraction, InputError, NonNegativeFloat, PositiveFloat, PositiveInt, Shapes, options, products
from fedsim.zeroth_order import Estimate, Memory, Probe, check, dual, mean_told, told


@options
class Spsa:
    """SPSA: simultaneous perturbation with decaying gains.

    ghat = r_k (1/q) sum_j s_j / u_j, elementwise,  r_k = ((1 + offset) / (k + offset))^alpha
    s_j = (f(x + c_k u_j) - f(x - c_k u_j)) / (2 c_k),  c_k = c / k^gamma
    This is a client's k-th estimate, k = 1, 2, ... over all its rounds, and the u_j are its own random directions. With
    optimizer = "sgd" and without a schedule the gains are the classical a_k = a / (k + offset)^alpha, a_1 = lr; Adam
    divides such a slow decay out again.

    2 q evaluations; the mean is over those s_j whose values came, and 0 where none did. A client keeps the number of
    its estimates. Spall 1992.
    """

    values_only: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    directions: Literal["segmented", "rademacher"] = "segmented"
    """How the u_j are drawn: signs times magnitudes in [1/2, 1] (segmented), or signs."""
    count: PositiveInt = 5
    """q, directions of an estimate."""
    c: PositiveFloat = 0.01
    """The first radius, c_1."""
    gamma: NonNegativeFloat = 0.1
    """How fast the radius falls; 0: not."""
    offset: NonNegativeFloat = 1.0
    """Of the gain r_k; the larger, the slower it falls at first. Needs an alpha above 0."""
    alpha: NonNegativeFloat = 0.4
    """How fast the gain r_k falls; 0: it is 1 throughout."""

    def __post_init__(self) -> None:
        if self.offset != 1.0 and not self.alpha:
            raise InputError("offset", self.offset, "needs an alpha above 0")

    def evaluations(self, dimension: int) -> int:  # noqa: ARG002
        """Two a direction."""
        return 2 * self.count

    def state(self, dimension: int) -> Shapes:  # noqa: ARG002
        """How many estimates were made."""
        return {"estimates": ()}

    def check(self, dimension: int) -> None:
        """Refuse more directions than have names."""
        check(self.directions, self.count, dimension, "client.estimator.count")

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:  # noqa: ARG002
        """Estimate the gradients at x [k, d]."""
        gain, found = self._differences(probe, x, memory)
        return found._replace(gradient=gain * found.gradient)

    def _differences(self, probe: Probe, x: Tensor, memory: Memory) -> tuple[Tensor, Estimate]:
        """The gain r_k [k, 1], and ghat_k with the number of estimates."""
        k = memory["estimates"] + 1.0
        radius = (self.c * _power(k, -self.gamma)).unsqueeze(1)
        u, center = probe.directions(self.directions, self.count), x.unsqueeze(1)
        step = radius.unsqueeze(2) * u
        ahead, behind = probe.query(center + step), probe.query(center - step)
        slopes, share = told((ahead - behind) / (2.0 * radius))
        gradient = products.bmm(slopes.unsqueeze(1), dual(self.directions, u)).squeeze(1) / self.count * share
        gain = _power((k + self.offset) / (1.0 + self.offset), -self.alpha).unsqueeze(1)
        return gain, Estimate(gradient, mean_told(ahead + behind) / 2.0, {"estimates": k})


@options
class SpsaGC(Spsa):
    """SPSA-GC: SPSA with gradient correction.

    form = "code":       m <- beta m + ghat_k,      ghat = r_k (ghat_k + beta m)
    form = "lookahead":  m <- beta m + r_k ghat_k,  ghat = r_k ghat_k + beta m
    Here ghat_k is SPSA's estimate without its gain r_k, and m is 0 before the first one. With constant gains,
    alpha = 0, the forms are the same. The second is v <- beta v - a_k ghat(y + beta v), y <- y + v, where the model
    stands for the look-ahead point y + beta v, and v = -lr m. With beta = 0 it is SPSA.

    2 q evaluations. Oh et al. 2023 (BlackVIP), the first form as in their code, the second as in their paper.
    """

    beta: Fraction = 0.9
    """The momentum of the correction."""
    form: Literal["code", "lookahead"] = "code"
    """As in the authors' code, or as in their paper (lookahead)."""
    reset: bool = False
    """m is 0 again at the start of every round, as the round starts from another model."""

    def state(self, dimension: int) -> Shapes:
        """How many estimates were made, and m."""
        return {**super().state(dimension), "momentum": (dimension,)}

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:  # noqa: ARG002
        """Estimate the gradients at x [k, d], and correct them."""
        gain, found = self._differences(probe, x, memory)
        momentum = memory["momentum"]
        if self.reset and probe.step == 0:
            momentum = torch.zeros_like(momentum)
        inner, outer = (1.0, gain) if self.form == "code" else (gain, 1.0)
        current = inner * found.gradient
        momentum = self.beta * momentum + current
        corrected = outer * (current + self.beta * momentum)
        return Estimate(corrected, found.value, {**found.memory, "momentum": momentum})


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent, elementwise.

    `torch.pow` gives other last bits where a row falls out of a vector register, so that they would depend on the
    cohort.
    """
    return (base.log() * exponent).exp()
