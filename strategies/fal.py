"""FAL: federated adversarial learning, FedAvg of clients that train on attacked examples.

theta <- theta + eta_global * (1/k) sum_i Delta_i,  Delta_i = y_i - theta after the local steps of `defences.standard`
Uplink and downlink d floats a client. Li, Song and Yang 2023. Stated there: clients alternate between attacking their
examples and steps on them, and the server averages their updates. Reconstructed, as the order of algorithm 1's lines is
not published in another form: each local step attacks the current local model; eta_global scales a uniform mean.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.core.options import options
from fedsim.exchange.messages import Order, Replies, Weighting
from fedsim.exchange.windows import All, Window
from fedsim.server.strategy import Metrics, ServerState, WeightedStep, observed


@options
class FAL(WeightedStep):
    """eta_global is `server_lr`. What clients defend against is their option `adversarial`."""

    sends: ClassVar[frozenset[str]] = frozenset({"params"})
    expects: ClassVar[frozenset[str]] = frozenset({"delta"})

    weighting: Weighting = "uniform"

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model; wait for everybody."""
        return Order("train", chosen, {"params": state.params}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change."""
        return self.advance(state, replies, replies.combine(replies.weights(self.weighting))), observed(replies), True
