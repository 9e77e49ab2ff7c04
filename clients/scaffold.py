"""SCAFFOLD's client: local SGD corrected by control variates.

y <- y - lr_s * (grad f_i(y) - c_i + c);  c_i+ = c_i - c + (theta - y) / sum_s lr_s, which is K lr at a constant rate
Uplink 2d floats: Delta_i and c_i+ - c_i. Karimireddy et al. 2020, algorithm 1, option II.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from fedsim.client import Cohort, Cost, InputError, LocalTraining, Order, Shapes, Update, options


@options
class Scaffold(LocalTraining):
    """K is the number of steps that the client took. Option II is exact for plain SGD, so that is what it takes."""

    requires: ClassVar[frozenset[str]] = frozenset({"params", "control"})
    up: ClassVar[frozenset[str]] = LocalTraining.up | {"control-delta"}
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True
    commits: ClassVar[frozenset[str]] = frozenset({"control-delta"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.plain or self.weight_decay:
            raise InputError(
                "optimizer",
                self.optimizer,
                "SCAFFOLD's control variates need plain sgd: no momentum, clipping or weight decay",
            )

    def state(self, dimension: int) -> Shapes:
        """Each client keeps its control variate."""
        return {**super().state(dimension), "control": (dimension,)}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, and 2d floats."""
        cost = super().cost(order, examples)
        return replace(cost, reply={**cost.reply, "control-delta": cost.reply["delta"]})

    def train(self, cohort: Cohort) -> Update:
        """Train with the correction; send the changes of model and control variate."""
        theta, c, own = cohort.received("params"), cohort.received("control"), cohort.state["control"]
        trained = self.descend(cohort, theta, shift=own - c, change=True)
        delta, way = trained.params, self.rates(cohort).to(own.dtype).unsqueeze(1)
        renewed = own  # at a rate of 0, where a schedule has ended, nothing was learnt about the gradients
        if self.rate(cohort):
            renewed = own - c - delta / way
            renewed[:, cohort.trained :] = 0.0  # running statistics have no gradient
        cohort.keep(control=renewed)
        return Update({"delta": delta, "control-delta": renewed - own}, {"loss": trained.loss})

    def commit(self, cohort: Cohort, lost: Mapping[str, Tensor]) -> None:
        """Change c_i by what has arrived, so that the server's c stays the clients' mean."""
        cohort.keep(control=cohort.state["control"] - lost["control-delta"])
