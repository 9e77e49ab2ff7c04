"""The client of SCAFFOLD on black boxes: local steps along estimated gradients, corrected by control variates.

z <- z - lr * (ghat_i(z) + c - c_i),  Delta_i = z - theta
Uplink 2d floats: Delta_i and c_i, together (average) or in two windows (fresh). T (q + 1) evaluations with an estimator
of q directions and a base; q + 1 more for a fresh c_i. Shu et al. 2023 (FZooS), whose code calls the two "scaf" and
"diff".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.engine.store import Shapes
from fedsim.exchange import Cost, Orders, Update, payload_bytes
from fedsim.options import options
from fedsim.parts import Parts
from fedsim.zeroth_order.estimator import Estimate, Memory, Probe
from fedsim.zeroth_order.search import MEASURE, LocalSearch


@options
class ScaffoldZO(LocalSearch, Parts):
    """estimator: how gradients are made of values, a name or a table with `kind`.

    A client that has no control variate yet does not correct.
    """

    needs: ClassVar[frozenset[str]] = LocalSearch.needs | {"control"}
    knows: ClassVar[frozenset[str]] = LocalSearch.knows | {"report-control"}
    sends: ClassVar[frozenset[str]] = LocalSearch.sends | {"control"}
    parts: ClassVar[Mapping[str, str]] = {"estimator": "estimators"}

    estimator: Any = "differences"

    def __post_init__(self) -> None:
        LocalSearch.__post_init__(self)
        Parts.__post_init__(self)

    @property
    def black_box(self) -> bool:  # type: ignore[override]
        """Whether values are all that its estimator asks for."""
        return bool(self.made["estimator"].black_box)

    def state(self, dimension: int) -> Shapes:
        """The control variate, 1 where there is one, and what the estimator remembers."""
        estimator = self.made["estimator"]
        estimator.check(dimension)
        return {"control": (dimension,), "controlled": (), **estimator.state(dimension)}

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The directions and the points along them, and the control variates."""
        return (9 + 2 * int(self.made["estimator"].evaluations(dimension))) * dimension

    def cost(self, orders: Orders, examples: Tensor) -> Cost:
        """Evaluations of all steps, or of one estimate; the change, the control variate or both."""
        if orders.action == MEASURE:
            return self.declared(orders, examples, 0)
        estimator, params = self.made["estimator"], orders.payload["params"]
        queries, vector = estimator.evaluations(params.numel()) + estimator.needs_base, payload_bytes({"": params})
        if orders.action == "control":
            steps = torch.full_like(examples, int(self.batch_size != "full"))
            return Cost(steps, vector, queries)
        cost = self.declared(orders, examples, self.steps * queries)
        return replace(cost, bytes_up=2 * vector) if orders.config.get("report-control") else cost

    def train(self, cohort: Cohort) -> Update:
        """Search from the server's model with the correction; send the change, and c_i where it is asked for."""
        theta, own = cohort.received("params"), cohort.state["control"]
        correction = cohort.state["controlled"].unsqueeze(1) * (cohort.received("control") - own)
        memory, values, total = self._remembered(cohort), list[Tensor](), torch.zeros_like(own)

        def direction(probe: Probe, z: Tensor) -> Tensor:
            nonlocal memory
            gradient, value, memory = self._estimate(probe, z, memory)
            values.append(value)
            total.add_(gradient)
            return gradient + correction

        payload = {"delta": self.search(cohort, theta, direction) - theta}
        cohort.keep(**memory)
        if cohort.config.get("report-control"):
            payload["control"] = self._controlled(cohort, total / self.steps)
        return Update(payload, {"loss": torch.stack(values, dim=1).mean(dim=1)})

    def control(self, cohort: Cohort) -> Update:
        """Estimate the gradient at the server's model afresh, which the method's paper does not count."""
        batch = None
        if self.batch_size != "full":
            (batch,) = cohort.batches(steps=1, batch_size=self.batch_size)
        theta = cohort.received("params").expand(len(cohort), -1)
        probe = Probe(cohort, len(cohort), batch, 0, "control")
        gradient, _, memory = self._estimate(probe, theta, self._remembered(cohort))
        cohort.keep(**memory)
        cohort.extra_queries = cohort.queries.clone()
        return Update({"control": self._controlled(cohort, gradient)})

    def _remembered(self, cohort: Cohort) -> Memory:
        """What the estimator remembers."""
        return {name: rows for name, rows in cohort.state.items() if name not in ("control", "controlled")}

    def _estimate(self, probe: Probe, x: Tensor, memory: Memory) -> Estimate:
        """The estimate at x [C, d], and all that the estimator then remembers."""
        estimator = self.made["estimator"]
        base = probe.query(x.unsqueeze(1))[:, 0] if estimator.needs_base else None
        found: Estimate = estimator.estimate(probe, x, base, memory)
        return found._replace(memory={**memory, **found.memory})

    def _controlled(self, cohort: Cohort, control: Tensor) -> Tensor:
        """The control variates, kept."""
        cohort.keep(control=control, controlled=torch.ones_like(cohort.state["controlled"]))
        return control
