"""SCAFFOLD on black boxes: control variates c and c_i, made of estimated gradients, take the drift out of local search.

theta <- theta + eta * sum_i w_i Delta_i;  c <- sum_i w_i c_i, by default w_i = 1/k, over those who answer
fresh (SCAFFOLD-I): when theta is chosen, c_i <- ghat_i(theta), in a window of its own. Uplink 2d floats a client;
downlink 3d, for a client is sent the model again when it trains; q + 1 evaluations outside the published count.
average (SCAFFOLD-II): c_i <- mean_t ghat_i(z_t) over the client's local steps. Uplink and downlink 2d floats, no
further evaluation.
With a guard one or two floats more up, and up to 2d more down. Karimireddy et al. 2020; both kinds of control variate
as in Shu et al. 2023 (FZooS) and the code published with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.server import Metrics, Order, ProblemView, Replies, ServerState, Window, options
from fedsim.zeroth_order import TRAIN, GuardedStep


@options
class ScaffoldZO(GuardedStep):
    """Needs the client `scaffold_zo`.

    In the first round all control variates are zero, and the rounds are those of `fedzo`. Where not everybody takes
    part, c is the mean over the clients of the last round, while a client corrects with the c_i of the last round that
    it took part in.
    """

    shared: ClassVar[str] = "control"

    variant: Literal["fresh", "average"] = "fresh"
    """What control variates are made of: fresh estimates at the new model, or the average of local steps' ones."""

    @property
    def down(self) -> frozenset[str]:
        """The model and the control variate; and for the guard candidates."""
        return super().down | {"control", "report-control"}

    @property
    def up(self) -> frozenset[str]:
        """The change and the control variate; and for the guard values."""
        return super().up | {"control"}

    def windows(self, state: ServerState) -> tuple[str, ...]:
        """Those of a guarded step; for fresh control variates one more."""
        return super().windows(state) + (("control",) if self.variant == "fresh" else ())

    def init(self, problem: ProblemView) -> ServerState:
        """The control variate begins at zero."""
        state = super().init(problem)
        return replace(state, memory={**state.memory, "control": torch.zeros_like(state.params)})

    def message(self, state: ServerState) -> Mapping[str, Tensor]:
        """The model and the control variate."""
        return {"params": state.params, "control": state.memory["control"]}

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """As a guarded step asks; for average control variates, to send them along."""
        order, window = super().ask(state, chosen)
        if order.action == TRAIN and self.variant == "average":
            order = replace(order, config={"report-control": True})
        return order, window

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take in the control variates that came with the changes."""
        told, metrics, done = super().tell(state, replies)
        if "delta" in replies.payload and "control" in replies.payload and len(replies):
            told = self.remember(told, replies)
        return told, metrics, done
