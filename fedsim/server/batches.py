"""How many examples a step is about, decided by the server from what clients tell of their gradients.

A client tells of its first mini-batch V_i, the variance of its examples' gradients g_b summed over the coordinates, and
N_i = |gbar_i|^2, the square of their mean. A mean of b examples is off by V / b in the square, which is to be at most
eta^2 N, the square of what is sought:

    B <- max(B, min(ceil(V / (eta^2 N)), max_batch))

    M = sum_i w_i N_i;  N = rho M,  rho = |sum_i w_i Delta_i|^2 / sum_i w_i |Delta_i|^2
    within: V = sum_i w_i V_i;  total: V = sum_i w_i V_i + M - N

rho is how far the clients' changes go the same way, which stands for how far their gradients do: of one step of SGD it
is that, and N is |sum_i w_i gbar_i|^2. M - N is then the variance of the gbar_i (law of total variance), which no batch
makes smaller. Lau, Liu, Kolar 2024 (AdAdaGrad; the norm test of Bollapragada, Byrd, Nocedal 2018), of all parameters.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch import Tensor

from fedsim.core.options import PositiveFloat, PositiveInt, one_of, options


@options
class NormTest:
    """B is such that the error of a batch's gradient is at most eta times as long as the gradient; it never falls."""

    eta: PositiveFloat = 0.5
    """The error that is borne; half of it takes four times the examples."""
    across: Literal["within", "total"] = "within"
    """Whose error: that within clients; or that between them, too, which grows with how unlike they are."""
    max_batch: PositiveInt = 64
    """The most that B becomes; who has fewer examples takes them all."""

    def wanted(self, variance: float, square: float) -> float:
        """V / (eta^2 N), not rounded; max_batch where N is 0."""
        return variance / (self.eta**2 * square) if square > 0.0 else float(self.max_batch)

    def size(self, before: int, variance: float, square: float) -> int:
        """B after B."""
        return max(before, min(math.ceil(min(self.wanted(variance, square), self.max_batch)), self.max_batch))

    def tested(self, spread: Tensor, delta: Tensor, weights: Tensor, several: Tensor) -> tuple[float, float]:
        """V and N, of what clients tell, [k, 2], their changes [k, d] and weights [k].

        several: bool [k], who has more than one example, without which there is no variance to be told.
        """
        share, told, rows = weights.double(), spread.double(), delta.double()
        mean = float(share @ told[:, 1])
        alike = float((share @ rows).square().sum())
        apart = float(share @ rows.square().sum(dim=1))
        square = mean * alike / apart if apart > 0.0 else mean
        own = share * several
        variance = float(own @ told[:, 0] / own.sum()) if bool(several.any()) else 0.0
        return variance + (max(0.0, mean - square) if self.across == "total" else 0.0), square


BatchRule = Annotated[NormTest, one_of(norm_test=NormTest)]
"""A rule, or its name, or a table with `kind` and its options."""
