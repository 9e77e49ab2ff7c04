"""A client that only answers: the values of its function at the points that it is sent.

y_j = f_i(x_j), j = 1..n
Uplink n floats and n evaluations; for servers that do all of the search themselves.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedsim.engine.cohort import Cohort
from fedsim.exchange import Cost, Orders, Update
from fedsim.options import Count, options


@options
class Values:
    """batch_size: examples that a round's values are about; "full": all of a client's, and all a black box knows."""

    black_box: ClassVar[bool] = True
    same_every_round: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"candidates"})
    sends: ClassVar[frozenset[str]] = frozenset({"values"})

    batch_size: Count | Literal["full"] = "full"

    def cost(self, orders: Orders, examples: torch.Tensor) -> Cost:
        """A value for each candidate [n, d]."""
        candidates = orders.payload["candidates"]
        steps = torch.full_like(examples, int(self.batch_size != "full"))
        return Cost(steps, len(candidates) * candidates.element_size(), len(candidates))

    def evaluate(self, cohort: Cohort) -> Update:
        """Tell the values [C, n], and their mean as the loss."""
        batch = None
        if self.batch_size != "full":
            (batch,) = cohort.batches(steps=1, batch_size=self.batch_size)
        # Orders that are executed together may carry different candidates: [n, d], or [C, n, d].
        candidates = cohort.received("candidates")
        values = cohort.query(candidates.expand(len(cohort), -1, -1), batch)
        return Update({"values": values}, {"loss": values.mean(dim=1)})
