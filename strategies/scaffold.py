"""SCAFFOLD: control variates c and c_i take the drift out of local steps.

theta <- theta + eta * sum_i w_i Delta_i;  c <- c + (sum_i p_i) * sum_i w_i (c_i+ - c_i), sums over those who answer
p_i is client i's share of all clients, 1/N, or of all examples, and w_i = p_i / sum_i p_i: c stays sum_i p_i c_i, and
the method stands still where sum_i p_i grad f_i = 0. Uplink and downlink 2d floats a client. Karimireddy et al. 2020,
algorithm 1, where p_i = 1/N and the factor of c is |S|/N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import Averaging, Metrics, ProblemView, Replies, ServerState, Weighting, options


@options
class Scaffold(Averaging):
    """Needs the client `scaffold`. The control variate is the mean of the clients', weighted as their changes are."""

    down: ClassVar[frozenset[str]] = frozenset({"params", "control"})
    up: ClassVar[frozenset[str]] = frozenset({"delta", "control-delta"})

    weighting: Weighting = "uniform"

    def init(self, problem: ProblemView) -> ServerState:
        """All control variates begin at zero; N, or the number of all examples, is kept to weigh the cohort against."""
        state = super().init(problem)
        return replace(state, memory={"control": torch.zeros_like(state.params), "whole": self._whole(problem)})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Keep c = sum_i p_i c_i: new clients, and those whose examples are news, begin with c_i = 0.

        Where a client with another c_i is found to have other examples, c_i counts by what was known of it before.
        """
        whole = self._whole(problem)
        control = state.memory["control"] * (int(state.memory["whole"]) / int(whole))
        return replace(state, memory={**state.memory, "control": control, "whole": whole})

    def message(self, state: ServerState) -> Mapping[str, Tensor]:
        """The model and the control variate."""
        return {"params": state.params, "control": state.memory["control"]}

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change, and the control variate by the cohort's share of the clients, or examples."""
        part = int(replies.examples.sum()) if self.weighting == "examples" else len(replies)
        share = part / int(state.memory["whole"])
        change = replies.combine(replies.weights(self.weighting), share, name="control-delta")
        control = state.memory["control"] + change
        delta = self.change(state, replies)
        return self.advance(state, replies, delta, control=control), self.seen(state, replies, delta), True

    def _whole(self, problem: ProblemView) -> Tensor:
        """What the p_i are shares of: N, or the number of all examples."""
        return problem.sizes.sum().cpu() if self.weighting == "examples" else torch.tensor(problem.num_clients)
