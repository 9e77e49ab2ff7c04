"""TERM: tilted averaging, by which clients with large losses weigh more, or with t below 0 less.

theta <- theta + eta * sum_i w_i Delta_i,  w_i ~ p_i exp(t f_i(theta)), which sum to one
Gradient descent on (1/t) log sum_i p_i exp(t f_i): t = 0 is FedAvg, a large t minimises the worst client's loss, and
one below 0 leaves outliers out. Uplink d + 1 floats a client, for f_i(theta) over all of its training examples, which
is a pass more; downlink d. Li, Beirami, Sanjabi and Smith 2021, "Tilted Empirical Risk Minimization", of clients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.server import ByLosses, Replies, ServerState, options


@options
class Term(ByLosses):
    """Goes with clients that train and send their change. One whose loss is larger by ln 2 / t weighs twice as much."""

    t: float = 1.0
    """The tilt, in units of 1 / loss."""

    def change(self, state: ServerState, replies: Replies) -> Tensor:
        """The tilted mean change."""
        weights = replies.weights(self.weighting)
        if not len(replies):
            return super().change(state, replies)
        tilt = self.t * self.losses(replies)
        tilted = weights.double() * torch.exp(tilt - tilt.max())
        return replies.combine((tilted * (weights.double().sum() / tilted.sum())).to(weights.dtype))
