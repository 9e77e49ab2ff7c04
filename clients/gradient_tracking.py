"""Gradient tracking's client: its own change, corrected by how others' differ from it.

s_i = e_i + (y_i - x_i), y_i trained from x_i; it sends x_i + s_i and s_i. Uplink 2 d floats along each link.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.client import Cohort, LocalTraining, Order, Size, Update, options, own_rows


@options
class GradientTracking(LocalTraining):
    """Needs the strategy `gradient_tracking`. Its corrections are of gradients, which no running statistics have."""

    requires: ClassVar[frozenset[str]] = frozenset({"models", "corrections"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "tracker"})
    own_models: ClassVar[bool] = True
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True
    keeps_statistics: ClassVar[bool] = False

    def reply(self, order: Order) -> dict[str, Size]:
        """A model, and a change."""
        size = Size.of(order.payload["models"][0])
        return {"model": size, "tracker": size}

    def train(self, cohort: Cohort) -> Update:
        """Train its model; send the step that it takes, and where to."""
        model = own_rows(cohort, "models")
        trained = self.descend(cohort, model, change=True)
        tracker = trained.params + own_rows(cohort, "corrections")
        return Update({"model": model + tracker, "tracker": tracker}, {"loss": trained.loss})

    def personal(self, cohort: Cohort) -> Tensor:
        """Its model."""
        return own_rows(cohort, "models")
