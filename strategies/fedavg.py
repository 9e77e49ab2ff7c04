"""FedAvg, and with a server optimizer FedAvgM and FedOpt.

theta <- theta + eta * sum_i w_i Delta_i,  Delta_i = y_i - theta
Uplink and downlink d floats a client. McMahan et al. 2017, algorithm 1; Hsu et al. 2019 (server momentum); Reddi et
al. 2021, algorithm 2 (adaptive server optimizers).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.exchange import All, Orders, Replies, Window
from fedsim.options import options
from fedsim.strategy import Metrics, ServerState, ServerStep, observed


@options
class FedAvg(ServerStep):
    """No options beyond those of the server's step."""

    sends: ClassVar[frozenset[str]] = frozenset({"params"})
    expects: ClassVar[frozenset[str]] = frozenset({"delta"})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Orders, Window]:
        """Send the model; wait for everybody."""
        return Orders("train", chosen, {"params": state.params}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change."""
        return self.advance(state, replies.combine(replies.weights(self.weighting))), observed(replies), True
