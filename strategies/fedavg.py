"""FedAvg, and with a server optimizer FedAvgM and FedOpt; with a deadline or over-selection for slow clients.

theta <- theta + eta * sum_i w_i Delta_i,  Delta_i = y_i - theta, over the replies that are in when the round closes
Uplink and downlink d floats a client. McMahan et al. 2017, algorithm 1; Hsu et al. 2019 (server momentum); Reddi et
al. 2021, algorithm 2 (adaptive server optimizers); Bonawitz et al. 2019 (deadline, over-selection).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, Seconds, options
from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All, First, Window
from fedsim.server.strategy import Metrics, ServerState, WeightedStep, observed


@options
class FedAvg(WeightedStep):
    """Who is late when a round closes is told to stop."""

    sends: ClassVar[frozenset[str]] = frozenset({"params"})
    expects: ClassVar[frozenset[str]] = frozenset({"delta"})

    deadline: Seconds | None = None
    """Virtual seconds after which a round closes. Not given: it waits for all."""
    first: PositiveInt | None = None
    """A round closes with so many replies; select more clients than that. Not given: it waits for all."""

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse to wait for more replies than there are clients in a round."""
        if self.first is not None and self.first > at_once:
            raise InputError("first", self.first, f"only {at_once} clients are selected; raise selection.count")

    def plan(self, state: ServerState, durations: Tensor | None) -> ServerState:
        """Refuse a deadline that nobody can meet."""
        if self.deadline is not None and durations is not None and float(durations.min()) > self.deadline:
            quickest = float(durations.min())
            raise InputError("deadline", self.deadline, f"nobody can meet it: the fastest client takes {quickest:g} s")
        return state

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model; wait for everybody, or the first, or until the deadline."""
        window: Window = All(self.deadline)
        if self.first is not None:
            window = First(min(self.first, len(chosen)), self.deadline)
        return Order("train", chosen, {"params": state.params}, round=state.round), window

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change; where nobody was in time, stay."""
        return self.advance(state, replies, replies.combine(replies.weights(self.weighting))), observed(replies), True
