"""FedZO's client: local steps along estimated gradients; with a proximal term, FedProx on black boxes.

z <- z - lr * (ghat_i(z) + mu (z - theta)),  Delta_i = z - theta
Uplink d floats; T (q + 1) evaluations with an estimator of q directions and a base. Fang et al. 2022; the proximal term
of Li et al. 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.client import Cohort, NonNegativeFloat, Update, options
from fedsim.zeroth_order import EstimatedSearch, Memory, Probe, mean_told


@options
class FedZO(EstimatedSearch):
    """Goes with the strategy `fedzo`, and with others that only average changes."""

    proximal_mu: NonNegativeFloat = 0.0
    """mu, the penalty's factor; 0: none."""

    def train(self, cohort: Cohort) -> Update:
        """Search from the server's model and send the change."""
        theta, values = cohort.received("params"), list[Tensor]()
        memory: Memory = cohort.state

        def direction(probe: Probe, z: Tensor) -> Tensor:
            nonlocal memory
            gradient, value, memory = self.estimate(probe, z, memory)
            values.append(value)
            return gradient + self.proximal_mu * (z - theta) if self.proximal_mu else gradient

        z = self.search(cohort, theta, direction)
        cohort.keep(**memory)
        return Update({"delta": z - theta}, {"loss": mean_told(torch.stack(values, dim=1))})
