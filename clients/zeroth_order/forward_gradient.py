"""Forward gradients: exact directional derivatives, in forward mode, times the directions.

guess = "random":    ghat = (1/q) sum_j Df(x)[v_j] v_j,   E[v v^T] = I
guess = "momentum":  ghat = Df(x)[u] u + (1/q) sum_j Df(x)[v_j'] v_j',   v_j' = v_j - (v_j.u) u,
                     m <- beta m + (1 - beta) ghat,   u = m / |m| before that, and 0 in a client's first estimate

Both have the mean grad f. The second projects it exactly on the guessed direction u, and draws only what lies across:
E|ghat - g|^2 = (c - 1)/q |g - (g.u) u|^2, with c = d + 1 for gaussian v. A projection on the guess alone, which would
keep a client on one line when the guess is its own, is what Fournier et al. do with guesses of local losses.
q passes of forward mode, or q + 1, counted as evaluations; no black box. Baydin et al. 2022; Fournier et al. 2023.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import Fraction, InputError, PositiveInt, Shapes, options, products
from fedsim.zeroth_order import Estimate, Memory, Probe, check


@options
class ForwardGradient:
    """A client's guess is made of its own earlier estimates."""

    values_only: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False

    directions: Literal["gaussian", "rademacher"] = "gaussian"
    """How the v_j are drawn."""
    count: PositiveInt = 10
    """q, directions of an estimate."""
    guess: Literal["random", "momentum"] = "random"
    """random: all directions are drawn; momentum: one more is the guess, and the others lie across it."""
    beta: Fraction = 0.9
    """The momentum of the guess; of momentum only."""

    def __post_init__(self) -> None:
        if self.beta != 0.9 and self.guess != "momentum":
            raise InputError("beta", self.beta, "is an option of guess = 'momentum' only")

    def evaluations(self, dimension: int) -> int:  # noqa: ARG002
        """One a derivative."""
        return self.count + (self.guess == "momentum")

    def state(self, dimension: int) -> Shapes:
        """The mean of past estimates, where it is the guess."""
        return {"momentum": (dimension,)} if self.guess == "momentum" else {}

    def check(self, dimension: int) -> None:
        """Refuse more directions than have names."""
        check(self.directions, self.count, dimension, "client.estimator.count")

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:  # noqa: ARG002
        """Estimate the gradients at x [k, d]."""
        v = probe.directions(self.directions, self.count)
        if self.guess == "random":
            value, slopes = probe.differentiate(x, v)
            return Estimate(products.bmm(slopes.unsqueeze(1), v).squeeze(1) / self.count, value, memory)
        momentum = memory["momentum"]
        length = momentum.square().sum(dim=1, keepdim=True).sqrt()
        u = (momentum / torch.where(length > 0, length, 1.0)).unsqueeze(1)
        across = v - products.bmm(v, u.mT) * u
        value, slopes = probe.differentiate(x, torch.cat((u, across), dim=1))
        gradient = products.bmm(slopes[:, 1:].unsqueeze(1), across).squeeze(1) / self.count + slopes[:, :1] * u[:, 0]
        return Estimate(gradient, value, {"momentum": torch.lerp(gradient, momentum, self.beta)})
