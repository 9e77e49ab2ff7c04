"""A client that only answers: the values of its function at the points that it is sent.

y_j = f_i(x_j), j = 1..n
Uplink n floats and n evaluations; for servers that do all of the search themselves. A value that failed (NaN) is sent
as one above all of the client's others, an infinite one as one above everybody's: such a candidate ranks last.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsim.client import BatchSize, Client, Cohort, Cost, Order, Size, Update, options
from fedsim.zeroth_order import batches, mean_told, ranked_last

AT_ONCE = 32
"""How many candidates a client is asked about in one call."""


@options
class Values(Client):
    """Goes with the strategies `cbo`, `cma_es`, `cma_es_margin`, `direct_search` and `evosax`."""

    values_only: ClassVar[bool] = True
    same_every_round: ClassVar[bool] = True
    requires: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"values"})

    batch_size: BatchSize = "full"
    """Examples that a round's values are about; full: all of a client's, and all that a black box knows."""

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The candidates that are asked about at once, and as many again while they are evaluated."""
        return (2 * AT_ONCE + 2) * dimension

    def cost(self, order: Order, examples: torch.Tensor) -> Cost:
        """A value for each candidate [n, d]."""
        candidates = order.payload["candidates"]
        steps = torch.full_like(examples, int(self.batch_size != "full"))
        return Cost(steps, {"values": Size.of(candidates[:, 0])}, len(candidates))

    def evaluate(self, cohort: Cohort) -> Update:
        """Tell the values [C, n], and their mean as the loss."""
        (batch,) = batches(cohort, self.batch_size, 1)
        # Orders that are executed together may carry different candidates: [n, d], or [C, n, d].
        candidates = cohort.received("candidates").expand(len(cohort), -1, -1)
        values = torch.cat([cohort.query(part, batch) for part in torch.split(candidates, AT_ONCE, dim=1)], dim=1)
        return Update({"values": ranked_last(values)}, {"loss": mean_told(values)})
