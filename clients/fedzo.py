"""FedZO's client: local steps along estimated gradients; with a proximal term, FedProx on black boxes.

z <- z - lr * (ghat_i(z) + mu (z - theta)),  Delta_i = z - theta
Uplink d floats; T (q + 1) evaluations with an estimator of q directions and a base. Fang et al. 2022; the proximal term
of Li et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.engine.store import Shapes
from fedsim.exchange import Cost, Orders, Update
from fedsim.options import NonNegative, options
from fedsim.parts import Parts
from fedsim.zeroth_order.estimator import Probe
from fedsim.zeroth_order.search import MEASURE, LocalSearch


@options
class FedZO(LocalSearch, Parts):
    """estimator: how gradients are made of values, a name or a table with `kind`. proximal_mu: the penalty's factor."""

    parts: ClassVar[Mapping[str, str]] = {"estimator": "estimators"}

    estimator: Any = "differences"
    proximal_mu: NonNegative = 0.0

    def __post_init__(self) -> None:
        LocalSearch.__post_init__(self)
        Parts.__post_init__(self)

    @property
    def black_box(self) -> bool:  # type: ignore[override]
        """Whether values are all that its estimator asks for."""
        return bool(self.made["estimator"].black_box)

    def state(self, dimension: int) -> Shapes:
        """What the estimator remembers."""
        estimator = self.made["estimator"]
        estimator.check(dimension)
        shapes: Shapes = estimator.state(dimension)
        return shapes

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The directions and the points along them."""
        return (6 + 2 * int(self.made["estimator"].evaluations(dimension))) * dimension

    def cost(self, orders: Orders, examples: Tensor) -> Cost:
        """Evaluations of all steps, and d floats."""
        queries = 0
        if orders.action != MEASURE:
            estimator = self.made["estimator"]
            queries = self.steps * (estimator.evaluations(orders.payload["params"].numel()) + estimator.needs_base)
        return self.declared(orders, examples, queries)

    def train(self, cohort: Cohort) -> Update:
        """Search from the server's model and send the change."""
        theta, estimator = cohort.received("params"), self.made["estimator"]
        memory, values = dict(cohort.state), []

        def direction(probe: Probe, z: Tensor) -> Tensor:
            base = probe.query(z.unsqueeze(1))[:, 0] if estimator.needs_base else None
            found = estimator.estimate(probe, z, base, memory)
            memory.update(found.memory)
            values.append(found.value)
            gradient: Tensor = found.gradient
            return gradient + self.proximal_mu * (z - theta) if self.proximal_mu else gradient

        z = self.search(cohort, theta, direction)
        cohort.keep(**memory)
        return Update({"delta": z - theta}, {"loss": torch.stack(values, dim=1).mean(dim=1)})
