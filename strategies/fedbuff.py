"""FedBuff: the server steps when a buffer of replies is full, whoever they are from.

theta <- theta + eta * sum_(i in buffer) d_i s(u_i) Delta_i(theta^(rho_i)),  u_i the staleness
identical: d_i = 1 / size;  unbiased: d_i = p_i / f_i, f_i how often client i took part so far
Delta_i is taken from the model that client i was sent, and added to the current one. Uplink and downlink d floats a
reply. Nguyen et al. 2022, algorithm 1 (restart = "arrival"); Fraboni et al. 2023, section 4 (restart = "window").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from fedsim.server import (
    Averaging,
    Discount,
    First,
    InputError,
    Metrics,
    Order,
    Polynomial,
    PositiveInt,
    ProblemView,
    Replies,
    ServerState,
    Share,
    Weights,
    Window,
    counting,
    hold_needed,
    observed_weights,
    options,
    recounted,
)


@options
class FedBuff(Averaging):
    """`weighting` and `floor` are about unbiased weights; with identical ones a floor is refused."""

    size: PositiveInt = 10
    """Replies in the buffer."""
    restart: Literal["arrival", "window"] = "arrival"
    """A client starts again on arrival, from the model that there is then, or when its reply's window closes."""
    staleness: Discount = Polynomial()
    """The discount s of a reply's staleness."""
    weights: Weights = "identical"
    """d_i the same for all (identical), or such that clients count as in the objective (unbiased)."""
    floor: Share = 0.0001
    """The least f_i, as a share of the rounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "identical":
            hold_needed(self, "identical weights know no such thing", "floor")

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse a buffer that the clients at work could not fill."""
        if self.size > at_once:
            raise InputError(
                "size", self.size, f"only {at_once} clients work at once; lower it or raise selection.count"
            )

    def init(self, problem: ProblemView) -> ServerState:
        """Keep p_i and how often each client took part, if that is needed."""
        state = super().init(problem)
        if self.weights == "identical":
            return state
        return replace(state, memory=counting(problem, self.weighting))

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Renew p_i, and count new clients, too, if that is needed."""
        return state if self.weights == "identical" else recounted(state, problem, self.weighting)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Look again when the buffer is full."""
        return self.order(state, chosen, "keep"), First(self.size, refill=self.restart == "arrival")

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the discounted changes."""
        weights, memory = self.staleness.factor(replies.staleness), dict[str, Tensor]()
        if self.weights == "identical":
            weights = weights / self.size
        else:
            unbiased, memory = observed_weights(self.weights, state, replies, self.floor)
            weights = weights * unbiased
        delta = replies.payload["delta"]
        step = replies.combine(weights.to(delta.device, delta.dtype))
        return self.advance(state, replies, step, **memory), self.seen(state, replies, step), True
