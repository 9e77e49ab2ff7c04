"""D-PSGD's client: local training from its own model, which it sends to its neighbours.

y_i trained from x_i. Uplink d floats along each link.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.client import Cohort, LocalTraining, Order, Size, Update, options, own_rows


@options
class DPSGD(LocalTraining):
    """Needs the strategy `dpsgd`."""

    requires: ClassVar[frozenset[str]] = frozenset({"models"})
    up: ClassVar[frozenset[str]] = frozenset({"model"})
    own_models: ClassVar[bool] = True
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True

    def reply(self, order: Order) -> dict[str, Size]:
        """A model."""
        return {"model": Size.of(order.payload["models"][0])}

    def train(self, cohort: Cohort) -> Update:
        """Train its model, and send it."""
        trained = self.descend(cohort, own_rows(cohort, "models"))
        return Update({"model": trained.params}, {"loss": trained.loss})

    def personal(self, cohort: Cohort) -> Tensor:
        """Its model."""
        return own_rows(cohort, "models")
