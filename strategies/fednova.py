"""FedNova: normalised averaging, so that clients with more local steps do not bias the objective.

theta <- theta + eta * (sum_i w_i nu_i) * sum_i w_i Delta_i / nu_i
nu_i is the l1 norm of the weights that client i's gradients have in Delta_i / lr. Uplink d + 1 floats a client,
downlink d. Wang et al. 2020, equations 8 and 9.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.core.options import options
from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All, Window
from fedsim.server.strategy import Metrics, ServerState, WeightedStep, observed


@options
class FedNova(WeightedStep):
    """Works with the client `sgd`, with momentum or a proximal term."""

    sends: ClassVar[frozenset[str]] = frozenset({"params", "report-nu"})
    expects: ClassVar[frozenset[str]] = frozenset({"delta", "nu"})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model, and ask for nu; wait for everybody."""
        config = {"report-nu": True}
        return Order("train", chosen, {"params": state.params}, config, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change per unit of local work, times the mean work."""
        weights, nu = replies.weights(self.weighting), replies.payload["nu"]
        work = weights @ nu
        delta = replies.combine(weights, scale=work, rows=replies.payload["delta"] / nu.unsqueeze(1))
        return self.advance(state, replies, delta), {**observed(replies), "effective_steps": float(work)}, True
