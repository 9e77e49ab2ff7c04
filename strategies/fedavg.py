"""FedAvg, and with a server optimizer FedAvgM and FedOpt; with a deadline or over-selection for slow clients.

theta <- theta + eta * sum_i w_i Delta_i,  Delta_i = y_i - theta, over the replies that are in when the round closes
Uplink and downlink d floats a client. McMahan et al. 2017, algorithm 1; Hsu et al. 2019 (server momentum); Reddi et
al. 2021, algorithm 2 (adaptive server optimizers); Bonawitz et al. 2019 (deadline, over-selection).
"""

from __future__ import annotations

from torch import Tensor

from fedsim.server import All, Averaging, First, InputError, Order, PositiveInt, Seconds, ServerState, Window, options


@options
class FedAvg(Averaging):
    """Who is late when a round closes is told to stop."""

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
        """Wait for everybody, or the first, or until the deadline."""
        window: Window = All(self.deadline)
        if self.first is not None:
            window = First(min(self.first, len(chosen)), self.deadline)
        return self.order(state, chosen), window
