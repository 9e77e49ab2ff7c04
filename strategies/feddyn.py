"""FedDyn: dynamic regularisation, whose fixed points are those of the global objective.

h <- h - alpha/N * sum_i Delta_i;  theta <- mean_i y_i - h/alpha
Uplink and downlink d floats a client. Acar et al. 2021, algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import (
    All,
    Metrics,
    Order,
    PositiveFloat,
    ProblemView,
    Replies,
    ServerState,
    Strategy,
    Window,
    observed,
    options,
)


@options
class FedDyn(Strategy):
    """Needs the client `feddyn`."""

    alpha: PositiveFloat = 0.01
    """Strength of the regulariser, for server and clients alike."""

    down: ClassVar[frozenset[str]] = frozenset({"params", "feddyn-alpha"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})

    def init(self, problem: ProblemView) -> ServerState:
        """The sum of all drifts, h, begins at zero; N is kept to average it over."""
        params = problem.initial()
        memory = {"drift": torch.zeros_like(params), "clients": torch.tensor(problem.num_clients)}
        return ServerState(params, memory=memory, trained=problem.trained)

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Keep h the mean of what the clients remember, sum_i L_i / N: new ones begin with L_i = 0.

        As it was it would never be that mean again, and the model would not end at the optimum.
        """
        count = torch.tensor(problem.num_clients)
        drift = state.memory["drift"] * (int(state.memory["clients"]) / int(count))
        return replace(state, memory={**state.memory, "drift": drift, "clients": count})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model and alpha; wait for everybody."""
        config = {"feddyn-alpha": self.alpha}
        return Order("train", chosen, {"params": state.params}, config, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move to the mean of the local models, and against the drift that has gathered."""
        if len(replies) == 0:
            return replace(state, round=state.round + 1), {}, True
        mean = replies.combine(replies.weights("uniform"))
        share = len(replies) / int(state.memory["clients"])
        drift = state.memory["drift"] - self.alpha * share * state.joined(mean, torch.zeros_like(mean))
        params = state.params + mean - drift / self.alpha
        memory = {**state.memory, "drift": drift}
        return replace(state, params=params, round=state.round + 1, memory=memory), observed(replies), True
