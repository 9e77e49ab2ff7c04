"""FZooS's server: averages the clients' models, then their surrogates of the functions around the new model.

x <- x + eta * mean_i (z_i - x);  w <- mean_i w_i, of which grad mu(x; w) = mean_i grad mu(x; w_i)
Uplink and downlink d + M floats a client, in two exchanges a round (downlink d in the first round; with a guard one
float more up and up to 2d more down, in an exchange of its own). Shu et al. 2023, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.exchange import Orders, Window
from fedsim.options import options
from fedsim.strategy import ServerState
from fedsim.zeroth_order.server import GuardedStep


@options
class FZooS(GuardedStep):
    """correction: exchange surrogates; without it this is FedAvg over the gradients of the clients' own surrogates,
    and with a single client ZoRD (Shu et al. 2022).
    """

    sends: ClassVar[frozenset[str]] = GuardedStep.sends | {"surrogate"}
    expects: ClassVar[frozenset[str]] = GuardedStep.expects | {"surrogate"}
    sharing: ClassVar[str | None] = "share"
    shared: ClassVar[str] = "surrogate"

    correction: bool = True

    def windows(self, state: ServerState) -> tuple[str, ...]:
        """Without a correction nothing is shared."""
        windows = super().windows(state)
        return windows if self.correction else windows[:-1]

    def message(self, state: ServerState) -> dict[str, Tensor]:
        """The model, and the mean surrogate once there is one."""
        shared = {name: state.memory[name] for name in ("surrogate",) if name in state.memory}
        return {"params": state.params, **shared}

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Orders, Window]:
        """Say, too, whether there is a mean surrogate in the message."""
        orders, window = super().ask(state, chosen)
        if "surrogate" not in orders.payload:
            return orders, window
        return Orders(orders.action, chosen, orders.payload, {"corrected": True}, state.round), window
