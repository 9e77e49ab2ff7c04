"""SCAFFOLD: control variates c and c_i take the drift out of local steps.

theta <- theta + eta * mean_i Delta_i;  c <- c + |S|/N * mean_i (c_i+ - c_i)
Uplink and downlink 2d floats a client. Karimireddy et al. 2020, algorithm 1; means are uniform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import Averaging, Metrics, ProblemView, Replies, ServerState, Weighting, observed, options


@options
class Scaffold(Averaging):
    """Needs the client `scaffold`. The control variate stays the mean of the clients' whatever the weighting."""

    down: ClassVar[frozenset[str]] = frozenset({"params", "control"})
    up: ClassVar[frozenset[str]] = frozenset({"delta", "control-delta"})

    weighting: Weighting = "uniform"

    def init(self, problem: ProblemView) -> ServerState:
        """All control variates begin at zero; N is kept to weigh the cohort against."""
        state = super().init(problem)
        control = torch.zeros_like(state.params)
        return replace(state, memory={"control": control, "clients": torch.tensor(problem.num_clients)})

    def message(self, state: ServerState) -> Mapping[str, Tensor]:
        """The model and the control variate."""
        return {"params": state.params, "control": state.memory["control"]}

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change, and the control variate by the cohort's share of the clients."""
        share = len(replies) / int(state.memory["clients"])
        change = replies.combine(replies.weights("uniform"), share, name="control-delta")
        control = state.memory["control"] + change
        return self.advance(state, replies, self.change(state, replies), control=control), observed(replies), True
