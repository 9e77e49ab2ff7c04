"""Local training on the client's own loss.

y <- y - lr * (grad f_i(y) + mu (y - theta)),  Delta_i = y - theta
Uplink d floats (one more, nu, where the server asks for it). McMahan et al. 2017; the proximal term mu of Li et
al. 2020; nu of Wang et al. 2020, section 4.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.errors import InputError
from fedsim.exchange import Cost, Orders, Update
from fedsim.options import NonNegative, options
from fedsim.training import LocalTraining


@options
class Sgd(LocalTraining):
    """proximal_mu: the penalty's factor, unless the server sends one."""

    proximal_mu: NonNegative = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"params"})
    knows: ClassVar[frozenset[str]] = frozenset({"proximal-mu", "report-nu"})
    sends: ClassVar[frozenset[str]] = frozenset({"delta", "nu"})

    def cost(self, orders: Orders, examples: Tensor) -> Cost:
        """Steps, d floats, and one more for nu."""
        cost = super().cost(orders, examples)
        extra = orders.payload["params"].element_size() if orders.config.get("report-nu") else 0
        return Cost(cost.steps, cost.bytes_up + extra)

    def train(self, cohort: Cohort) -> Update:
        """Train from the server's model and send the change."""
        theta, mu = cohort.received("params"), self._mu(cohort)
        y, loss = self.descend(cohort, theta, decay=mu, shift=mu * theta if mu else None)
        payload = {"delta": y - theta}
        if cohort.config.get("report-nu"):
            payload["nu"] = self.normaliser(cohort.steps_taken, self.rate(cohort), mu).to(y.dtype)
        return Update(payload, {"loss": loss})

    def _mu(self, cohort: Cohort) -> float:
        return float(cohort.config.get("proximal-mu", self.proximal_mu))

    def check(self, sent: frozenset[str]) -> None:
        """Refuse options that do not go with what the server sends."""
        if "proximal-mu" in sent and self.proximal_mu:
            raise InputError("proximal_mu", self.proximal_mu, "the strategy sends its own; leave this one out")
        if "report-nu" not in sent:
            return
        if self.optimizer != "sgd" or self.nesterov or (self.momentum and self.proximal_mu):
            raise InputError(
                "optimizer",
                self.optimizer,
                "FedNova knows sgd, with momentum or with a proximal term, without Nesterov's form",
            )
        if self.lr * self.proximal_mu >= 1.0:
            raise InputError(
                "proximal_mu", self.proximal_mu, f"FedNova needs lr * proximal_mu < 1; lower it or lr = {self.lr}"
            )

    def normaliser(self, steps: Tensor, lr: float, mu: float) -> Tensor:
        """nu_i, the l1 norm of the gradients' weights after `steps` [C] steps, float64 [C].

        tau steps of plain SGD: tau. Momentum rho: (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho). Proximal mu:
        (1 - (1 - lr mu)^tau) / (lr mu).
        """
        tau, rho = steps.double(), self.momentum
        if rho:
            return (tau - rho * (1.0 - rho**tau) / (1.0 - rho)) / (1.0 - rho)
        if mu and lr:
            return (1.0 - torch.pow(1.0 - lr * mu, tau)) / (lr * mu)
        return tau
