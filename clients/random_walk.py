"""A client of a token algorithm: it trains the model that it is handed, and notes that it has been visited.

theta <- theta + c Delta, Delta = y - theta, y trained from theta;  x <- x + g (e_i - x), or x + e_i
c, g: told. Uplink d + N floats, handed on with the model.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsim.client import Cohort, LocalTraining, Order, Size, Update, options


@options
class RandomWalk(LocalTraining):
    """Needs the strategy `random_walk`."""

    requires: ClassVar[frozenset[str]] = frozenset({"params", "visits", "step-factor", "memory-rate"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "visits"})
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True

    def reply(self, order: Order) -> dict[str, Size]:
        """The model, and how often everybody has been visited."""
        return {"model": Size.of(order.payload["params"]), "visits": Size.of(order.payload["visits"])}

    def train(self, cohort: Cohort) -> Update:
        """Train, and go a share of the way; count itself."""
        theta, before = cohort.received("params"), cohort.received("visits")
        trained = self.descend(cohort, theta, change=True)
        model = theta + trained.params.mul_(float(cohort.config["step-factor"]))
        rate = float(cohort.config["memory-rate"])
        visits = (before * (1.0 - rate)).expand(len(cohort), -1).clone()
        visits[torch.arange(len(cohort), device=visits.device), cohort.clients] += rate or 1.0
        return Update({"model": model, "visits": visits}, {"loss": trained.loss})
