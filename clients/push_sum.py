"""Push-sum's client: local training from its model, of which the weight that it has been sent says how much it counts.

z_i = x_i / w_i; it sends x_i + (y_i - z_i), y_i trained from z_i, and w_i. Uplink d + 1 floats along each link.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.client import Cohort, LocalTraining, Order, Size, Update, options, own_rows


@options
class PushSum(LocalTraining):
    """Needs the strategy `push_sum`."""

    requires: ClassVar[frozenset[str]] = frozenset({"models", "weights"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "weight"})
    own_models: ClassVar[bool] = True
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True

    def reply(self, order: Order) -> dict[str, Size]:
        """A model, and a weight."""
        return {"model": Size.of(order.payload["models"][0]), "weight": Size.of(order.payload["weights"][0])}

    def train(self, cohort: Cohort) -> Update:
        """Train its model; send the sum that moves along, and the weight."""
        trained = self.descend(cohort, self.personal(cohort), change=True)
        model = own_rows(cohort, "models") + trained.params
        return Update({"model": model, "weight": own_rows(cohort, "weights")}, {"loss": trained.loss})

    def personal(self, cohort: Cohort) -> Tensor:
        """Z."""
        return own_rows(cohort, "models") / own_rows(cohort, "weights")
