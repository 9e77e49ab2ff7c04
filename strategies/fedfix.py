"""FedFix: the server steps at fixed times, with whatever has arrived; who has not goes on with its work.

theta^(n+1) = theta^n + eta * sum_(i arrived in (t^n, t^(n+1)]) d_i Delta_i(theta^(rho_i)),  t^(n+1) = t^n + window
unbiased: d_i = p_i c_i, c_i = ceil(tau_i / window);  identical: d_i = 1 / sum_j (1 / c_j)
Delta_i is taken from the model that client i was sent, and added to the current one. Clients that were aggregated
start again when the window has closed; while all sleep at once, no window opens. Uplink and downlink d floats a reply.
Fraboni et al. 2023, sections 2 and 5.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.server import (
    Averaging,
    Every,
    Frequency,
    InputError,
    Metrics,
    Order,
    ProblemView,
    Replies,
    Seconds,
    ServerState,
    Share,
    Weights,
    Window,
    counting,
    hold_needed,
    observed_weights,
    options,
    recounted,
    refuse_waiting,
    shares,
    ticks,
)


@options
class FedFix(Averaging):
    """Unbiased weights make up for how seldom slow clients arrive."""

    window: Seconds = 0.5
    """Virtual seconds between two steps."""
    weights: Weights = "unbiased"
    """d_i such that clients count as in the objective (unbiased), or the same for all (identical)."""
    frequency: Frequency = "declared"
    """How often a client takes part, 1 / c_i: declared, by the time that each reply has taken, which is exact if all
    clients work all the time (where durations vary, each reply weighs for the windows that it took); or observed so
    far, where clients are selected, asleep or lost.
    """
    floor: Share = 0.01
    """The least frequency that is taken for observed, as a share of the windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "identical":
            hold_needed(self, "identical weights know no such thing", "floor")
        elif self.frequency == "declared":
            hold_needed(self, "declared frequencies are none that were observed", "floor")

    def check(self, at_once: int, population: int, steady: bool) -> None:
        """Refuse declared frequencies where clients also wait, sleep or fail."""
        if self.frequency == "declared":
            refuse_waiting(at_once, population, steady)

    def init(self, problem: ProblemView) -> ServerState:
        """Keep p_i, and how often each client took part if that is needed."""
        counted = self.frequency == "observed"
        memory = counting(problem, self.weighting) if counted else {"shares": shares(problem, self.weighting)}
        return replace(super().init(problem), memory=memory)

    def plan(self, state: ServerState, durations: Tensor | None) -> ServerState:
        """Identical weights need the c_i of all clients from the start."""
        if self.weights != "identical" or self.frequency != "declared":
            return state
        if durations is None:
            raise InputError("frequency", self.frequency, "durations are random or unknown here; use observed")
        arrivals = sum(1.0 / self._windows(ticks(duration)) for duration in durations.tolist())
        return replace(state, memory={**state.memory, "identical": torch.tensor(1.0 / arrivals, dtype=torch.float64)})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Renew p_i, and count new clients, too, if that is needed."""
        if "identical" in state.memory and problem.num_clients > len(state.memory["shares"]):
            raise InputError("frequency", self.frequency, "clients that come later have declared nothing; use observed")
        return recounted(state, problem, self.weighting)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Look again when the window is over."""
        return self.order(state, chosen, "keep"), Every(self.window)

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the weighted changes; where nothing has arrived, only time has gone by."""
        memory: dict[str, Tensor] = {}
        if self.frequency == "observed":
            weights, memory = observed_weights(self.weights, state, replies, self.floor)
        elif self.weights == "identical":
            weights = state.memory["identical"].expand(len(replies))
        else:
            weights = state.memory["shares"][replies.clients] * self._windows(replies.durations)
        delta = replies.payload["delta"]
        step = replies.combine(weights.to(delta.device, delta.dtype))
        metrics = {**self.seen(state, replies, step), "weight": float(weights.sum())}
        return self.advance(state, replies, step, **memory), metrics, True

    def _windows(self, duration: Tensor | int) -> Tensor | int:
        """How many windows work of so many ticks takes: it is taken in the one in which it ends."""
        return -(-duration // ticks(self.window))
