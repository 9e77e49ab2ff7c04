"""The client of SCAFFOLD on black boxes: local steps along estimated gradients, corrected by control variates.

z <- z - lr * (ghat_i(z) + c - c_i),  Delta_i = z - theta
Uplink 2d floats: Delta_i and c_i, together (average) or in two windows (fresh). T (q + 1) evaluations with an estimator
of q directions and a base; q + 1 more for a fresh c_i. Shu et al. 2023 (FZooS), whose code calls the two "scaf" and
"diff".
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import Cohort, Cost, Order, Shapes, Update, options
from fedsim.zeroth_order import EstimatedSearch, Memory, Probe, batches, mean_told


@options
class ScaffoldZO(EstimatedSearch):
    """A client that has no control variate yet does not correct."""

    requires: ClassVar[frozenset[str]] = EstimatedSearch.requires | {"control"}
    accepts: ClassVar[frozenset[str]] = EstimatedSearch.accepts | {"report-control"}
    up: ClassVar[frozenset[str]] = EstimatedSearch.up | {"control"}

    def state(self, dimension: int) -> Shapes:
        """The control variate, 1 where there is one, and what the estimator remembers."""
        return {"control": (dimension,), "controlled": (), **super().state(dimension)}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Evaluations of all steps, or of one estimate; the change, the control variate or both."""
        cost = super().cost(order, examples)
        if order.action == "control":
            steps = torch.full_like(examples, int(self.batch_size != "full"))
            queries = cost.queries // self.steps
            return Cost(steps, {"control": cost.reply["delta"]}, queries, extra=queries)
        if order.config.get("report-control"):
            return replace(cost, reply={**cost.reply, "control": cost.reply["delta"]})
        return cost

    def train(self, cohort: Cohort) -> Update:
        """Search from the server's model with the correction; send the change, and c_i where it is asked for."""
        theta, own = cohort.received("params"), cohort.state["control"]
        correction = cohort.state["controlled"].unsqueeze(1) * (cohort.received("control") - own)
        memory, values, total = self._remembered(cohort), list[Tensor](), torch.zeros_like(own)

        def direction(probe: Probe, z: Tensor) -> Tensor:
            nonlocal memory
            gradient, value, memory = self.estimate(probe, z, memory)
            values.append(value)
            total.add_(gradient)
            return gradient + correction

        payload = {"delta": self.search(cohort, theta, direction) - theta}
        cohort.keep(**memory)
        if cohort.config.get("report-control"):
            payload["control"] = self._controlled(cohort, total / self.steps)
        return Update(payload, {"loss": mean_told(torch.stack(values, dim=1))})

    def control(self, cohort: Cohort) -> Update:
        """Estimate the gradient at the server's model afresh, which the method's paper does not count."""
        (batch,) = batches(cohort, self.batch_size, 1)
        theta = cohort.received("params").expand(len(cohort), -1)
        probe = Probe(cohort, len(cohort), batch, 0, "control")
        gradient, _, memory = self.estimate(probe, theta, self._remembered(cohort))
        cohort.keep(**memory)
        cohort.extra_queries = cohort.queries.clone()
        return Update({"control": self._controlled(cohort, gradient)})

    def _remembered(self, cohort: Cohort) -> Memory:
        """What the estimator remembers."""
        return {name: rows for name, rows in cohort.state.items() if name not in ("control", "controlled")}

    def _controlled(self, cohort: Cohort, control: Tensor) -> Tensor:
        """The control variates, kept."""
        cohort.keep(control=control, controlled=torch.ones_like(cohort.state["controlled"]))
        return control
