"""FedAsync: every arriving model is mixed into the global one, the less the staler it is.

theta <- (1 - alpha s(u_i)) theta + alpha s(u_i) y_i,  u_i the staleness
Clients minimise f_i(y) + rho/2 |y - theta^(rho_i)|^2. Uplink d floats a reply, downlink d floats and rho. Xie et al.
2019, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.server import (
    Discount,
    First,
    Metrics,
    NonNegativeFloat,
    NonNegativeInt,
    Order,
    Polynomial,
    Replies,
    ServerState,
    ServerStep,
    Share,
    Strategy,
    Window,
    options,
)


@options
class FedAsync(ServerStep, Strategy):
    """The server's optimizer and rate apply to the change that mixing makes."""

    down: ClassVar[frozenset[str]] = frozenset({"params", "proximal-mu"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})

    alpha: Share = 0.6
    """The mixing rate."""
    staleness: Discount = Polynomial()
    """The discount s of a model's staleness."""
    max_staleness: NonNegativeInt | None = None
    """A model that is staler, in steps of the server, is left out. Not given: none is."""
    proximal_mu: NonNegativeFloat = 0.005
    """rho, the factor of the clients' penalty; 0: none."""

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model and rho; look again at the next reply."""
        config = {"proximal-mu": self.proximal_mu}
        return Order("train", chosen, {"params": state.params}, config, round=state.round, late="keep"), First(1)

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move towards the client's model y = (what it was sent) + Delta."""
        delta = replies.payload["delta"]
        weights = self.alpha * self.staleness.factor(replies.staleness)
        if self.max_staleness is not None:
            weights = weights * (replies.staleness <= self.max_staleness)
        rows = replies.sent("params") + delta - state.params if len(replies) else delta
        step = replies.combine(weights.to(delta.device, delta.dtype), rows=rows)
        metrics = {**self.seen(state, replies, step), "mixing": float(weights.sum())}
        return self.advance(state, replies, step), metrics, True
