"""FedDyn's client: local training on a loss whose regulariser remembers where the client has been.

minimise f_i(y) - <L_i, y> + alpha/2 |y - theta|^2;  L_i <- L_i - alpha (y - theta)
Uplink d floats. Acar et al. 2021, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from fedsim.client import Cohort, LocalTraining, Shapes, Update, options


@options
class FedDyn(LocalTraining):
    """The regulariser's alpha comes with the server's order."""

    requires: ClassVar[frozenset[str]] = frozenset({"params", "feddyn-alpha"})
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True

    def state(self, dimension: int) -> Shapes:
        """Each client keeps the gradient of its loss at its last local solution, L_i."""
        return {**super().state(dimension), "gradient": (dimension,)}

    def train(self, cohort: Cohort) -> Update:
        """Train on the regularised loss and send the change."""
        theta, alpha = cohort.received("params"), float(cohort.config["feddyn-alpha"])
        own = cohort.state["gradient"]
        trained = self.descend(cohort, theta, decay=alpha, shift=own + alpha * theta, change=True)
        delta = trained.params
        cohort.keep(gradient=own - alpha * delta)
        return Update({"delta": delta}, {"loss": trained.loss})
