"""FZooS's server: averages the clients' models, then their surrogates of the functions around the new model.

x <- x + eta * mean_i (z_i - x);  w <- mean_i w_i, of which grad mu(x; w) = mean_i grad mu(x; w_i)
Uplink d + M floats a client and downlink 2d + M, in two exchanges a round: the model is sent in both, since it may be
other clients' turn (no M down in the first round; with a guard one float more up and up to 2d more down, in an exchange
of its own). Shu et al. 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from fedsim.server import Order, ServerState, Window, options
from fedsim.zeroth_order import GuardedStep


@options
class FZooS(GuardedStep):
    """Needs the client `fzoos`."""

    sharing: ClassVar[str | None] = "share"
    shared: ClassVar[str] = "surrogate"

    correction: bool = True
    """Exchange surrogates; without it clients follow their own: for one client ZoRD (Shu et al. 2022)."""

    @property
    def down(self) -> frozenset[str]:
        """The model and the mean surrogate; and for the guard candidates."""
        return super().down | ({"surrogate", "corrected"} if self.correction else frozenset())

    @property
    def up(self) -> frozenset[str]:
        """The change and a surrogate; and for the guard values."""
        return super().up | ({"surrogate"} if self.correction else frozenset())

    def windows(self, state: ServerState) -> tuple[str, ...]:
        """Without a correction nothing is shared."""
        windows = super().windows(state)
        return windows if self.correction else windows[:-1]

    def message(self, state: ServerState) -> Mapping[str, Tensor]:
        """The model, and the mean surrogate once there is one."""
        shared = {name: state.memory[name] for name in ("surrogate",) if name in state.memory}
        return {"params": state.params, **shared}

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Say, too, whether there is a mean surrogate in the message."""
        order, window = super().ask(state, chosen)
        if "surrogate" not in order.payload:
            return order, window
        return replace(order, config={"corrected": True}), window
