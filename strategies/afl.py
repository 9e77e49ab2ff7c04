"""AFL: agnostic federated learning, for the worst mixture of the clients' losses instead of a given one.

theta <- theta + eta * sum_i lambda_i Delta_i / sum_i lambda_i, over those who answer
lambda <- P(lambda + lambda_lr * g),  g_i = f_i(theta), or 0 of who does not answer
P gives the nearest point of the simplex of all N clients, on which lambda begins at p: descent for theta and ascent for
lambda on sum_i lambda_i f_i(theta). Uplink d + 1 floats a client, for f_i(theta) over all of its training examples,
which is a pass more; downlink d. Mohri, Sivek and Suresh 2019, whose clients take one step.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.server import (
    ByLosses,
    Metrics,
    NonNegativeFloat,
    ProblemView,
    Replies,
    ServerState,
    Weighting,
    options,
    shares,
)


@options
class AFL(ByLosses):
    """Goes with clients that train and send their change. Reports the largest lambda_i.

    Where all who answer have lambda_i = 0, the model stays.
    """

    weighting: Weighting = "uniform"
    lambda_lr: NonNegativeFloat = 0.1
    """The rate of lambda; 0: it stays p, and this is FedAvg."""

    def init(self, problem: ProblemView) -> ServerState:
        """Lambda begins at p."""
        return replace(super().init(problem), memory={"mixture": shares(problem, self.weighting)})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """New clients have lambda_i = p_i, and the others share the rest; before the first round all have p_i."""
        known, p = state.memory["mixture"], shares(problem, self.weighting)
        later = p[len(known) :] if state.round else p
        mixture = torch.cat((known[: len(p) - len(later)] * (1.0 - later.sum()), later))
        return replace(state, memory={**state.memory, "mixture": mixture})

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move by the mixture, and the mixture by the losses."""
        mixture, clients, losses = state.memory["mixture"], replies.clients, self.losses(replies)
        weights = mixture[clients] / mixture[clients].sum().clamp(min=torch.finfo(torch.float64).tiny)
        change = replies.combine(weights.to(replies.payload["delta"]))
        risen = mixture.index_add(0, clients, self.lambda_lr * losses.cpu())
        metrics = {**self.seen(state, replies, change), "largest_weight": float(mixture.max())}
        return self.advance(state, replies, change, mixture=onto_simplex(risen)), metrics, True


def onto_simplex(point: Tensor) -> Tensor:
    """The nearest point to this one, [N], whose numbers are 0 or more and sum to one."""
    ordered = point.sort(descending=True).values
    above = (ordered.cumsum(0) - 1.0) / torch.arange(1, len(point) + 1, device=point.device)
    return (point - above[(ordered > above).sum() - 1]).clamp(min=0.0)
