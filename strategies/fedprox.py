"""FedProx: FedAvg whose clients minimise f_i(y) + mu/2 |y - theta|^2.

theta <- theta + eta * sum_i w_i Delta_i; d floats up and down. Li et al. 2020, algorithm 2, with equation 2's square.
"""

from __future__ import annotations

from fedsim.server import Averaging, Config, NonNegativeFloat, options


@options
class FedProx(Averaging):
    """With proximal_mu = 0 it is FedAvg."""

    proximal_mu: NonNegativeFloat = 0.01
    """mu, the penalty's factor."""

    def config(self) -> Config:
        """Tell mu."""
        return {"proximal-mu": self.proximal_mu}
