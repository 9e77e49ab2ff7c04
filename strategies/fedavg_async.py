"""Asynchronous FedAvg: the server steps with every reply, and its client starts again at once.

theta <- theta + eta * d_i Delta_i(theta^(rho_i))
unbiased: d_i = p_i tau_i sum_j (1 / tau_j);  identical: d_i = 1
Delta_i is taken from the model that client i was sent, and added to the current one. Uplink and downlink d floats a
reply. Fraboni et al. 2023, section 4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.server import (
    Averaging,
    First,
    Frequency,
    InputError,
    Metrics,
    Order,
    ProblemView,
    Replies,
    ServerState,
    Share,
    Weights,
    Window,
    counting,
    extended,
    hold_needed,
    observed_weights,
    options,
    recounted,
    refuse_waiting,
    shares,
)


@options
class FedAvgAsync(Averaging):
    """`weighting`, `frequency` and `floor` are about unbiased weights; with identical ones the last two are refused."""

    weights: Weights = "unbiased"
    """d_i such that clients count as in the objective (unbiased), or the same for all (identical)."""
    frequency: Frequency = "declared"
    """How often a client takes part: declared, by the durations tau_j of all clients, which all work all the time; or
    observed so far, where they are selected, asleep or lost, or their durations vary or are unknown.
    """
    floor: Share = 0.0001
    """The least frequency that is taken for observed, as a share of the rounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "identical":
            hold_needed(self, "identical weights know no such thing", "frequency", "floor")
        elif self.frequency == "declared":
            hold_needed(self, "declared frequencies are none that were observed", "floor")

    def check(self, at_once: int, population: int, steady: bool) -> None:
        """Refuse declared frequencies where clients also wait, sleep or fail."""
        if self.weights == "unbiased" and self.frequency == "declared":
            refuse_waiting(at_once, population, steady)

    def init(self, problem: ProblemView) -> ServerState:
        """Keep p_i, or d_i where they are all the same; and how often each client took part, if that is needed."""
        state = super().init(problem)
        if self.weights == "identical":
            return replace(state, memory={"weights": torch.ones(problem.num_clients)})
        if self.frequency == "observed":
            return replace(state, memory=counting(problem, self.weighting))
        return replace(state, memory={"shares": shares(problem, self.weighting)})

    def plan(self, state: ServerState, durations: Tensor | None) -> ServerState:
        """Find d_i from the durations of all clients."""
        if self.weights == "identical" or self.frequency == "observed":
            return state
        if durations is None:
            raise InputError("frequency", self.frequency, "durations are random or unknown here; use observed")
        weights = state.memory["shares"] * durations * (1.0 / durations).sum()
        return replace(state, memory={"weights": weights.to(state.params.dtype)})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Renew p_i, and count new clients, too, if that is needed; d_i that are all the same are so for them."""
        if self.weights == "identical":
            weights = extended(state.memory["weights"], problem.num_clients, 1.0)
            return replace(state, memory={**state.memory, "weights": weights})
        if "weights" in state.memory:
            raise InputError("frequency", self.frequency, "clients that come later have declared nothing; use observed")
        return recounted(state, problem, self.weighting)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Look again at the next reply."""
        return self.order(state, chosen, "keep"), First(1)

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the weighted change."""
        memory: dict[str, Tensor] = {}
        if "weights" in state.memory:
            weights = state.memory["weights"][replies.clients]
        else:
            weights, memory = observed_weights(self.weights, state, replies, self.floor)
        delta = replies.payload["delta"]
        step = replies.combine(weights.to(delta.device, delta.dtype))
        return self.advance(state, replies, step, **memory), self.seen(state, replies, step), True
