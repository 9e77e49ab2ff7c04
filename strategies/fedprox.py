"""FedProx: FedAvg whose clients minimise f_i(y) + mu/2 |y - theta|^2.

theta <- theta + eta * sum_i w_i Delta_i
Uplink and downlink d floats a client. Li et al. 2020, algorithm 2; the squared norm, as in its equation 2.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.core.options import NonNegativeFloat, options
from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All, Window
from fedsim.server.strategy import Metrics, ServerState, WeightedStep, observed


@options
class FedProx(WeightedStep):
    """With proximal_mu = 0 it is FedAvg."""

    proximal_mu: NonNegativeFloat = 0.01
    """mu, the penalty's factor."""

    sends: ClassVar[frozenset[str]] = frozenset({"params", "proximal-mu"})
    expects: ClassVar[frozenset[str]] = frozenset({"delta"})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model and mu; wait for everybody."""
        config = {"proximal-mu": self.proximal_mu}
        return Order("train", chosen, {"params": state.params}, config, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change."""
        return self.advance(state, replies, replies.combine(replies.weights(self.weighting))), observed(replies), True
