"""Local training of a model of the client's own, which goes on where it was.

v_i <- v_i - lr grad f_i(v_i)
Uplink 0; each client keeps d.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.client import Cohort, LocalTraining, Order, Shapes, Size, Update, options


@options
class Local(LocalTraining):
    """Needs the strategy `local`."""

    requires: ClassVar[frozenset[str]] = frozenset()
    accepts: ClassVar[frozenset[str]] = frozenset()
    up: ClassVar[frozenset[str]] = frozenset()
    models: ClassVar[tuple[str, ...]] = ("model",)
    own_models: ClassVar[bool] = True
    descends: ClassVar[bool] = True

    def state(self, dimension: int) -> Shapes:
        """Its model."""
        return {**super().state(dimension), "model": (dimension,)}

    def reply(self, order: Order) -> dict[str, Size]:  # noqa: ARG002
        """Nothing."""
        return {}

    def train(self, cohort: Cohort) -> Update:
        """Train its model, and keep it."""
        trained = self.descend(cohort, cohort.state["model"])
        cohort.keep(model=trained.params)
        return Update({}, {"loss": trained.loss})

    def personal(self, cohort: Cohort) -> Tensor:
        """Its model."""
        return cohort.state["model"]
