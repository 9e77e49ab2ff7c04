"""q-FedAvg: clients whose losses are large weigh more, and the more that is so, the shorter are the server's steps.

theta <- theta + eta * s * sum_i v_i Delta_i,  v_i ~ p_i F_i^q, which sum to one,  F_i = f_i(theta) + 1e-10
s = 1 / (1 + q / lr * sum_i v_i |Delta_i|^2 / F_i)
In the paper's terms, with L = 1 / lr and D_i = -L Delta_i: theta - sum_i p_i w_i D_i / sum_i p_i h_i of w_i = F_i^q and
h_i = q F_i^(q-1) |D_i|^2 + L w_i, which bounds the curvature of the objective, sum_i p_i F_i^(q+1) / (q + 1). Other
aggregators than the mean are handed the rows F_i^q Delta_i; a loss below 0 counts as 0. Uplink d + 1 floats a client,
for f_i(theta) over all of its training examples, which is a pass more; downlink d. Li et al. 2020, "Fair Resource
Allocation in Federated Learning", algorithm 2, where p_i is the same for all.
"""

from __future__ import annotations

from fedsim.server import (
    ByLosses,
    ClientRate,
    Metrics,
    NonNegativeFloat,
    Replies,
    ServerState,
    Weighting,
    options,
)


@options
class QFedAvg(ClientRate, ByLosses):
    """With q = 0 it is FedAvg. Goes with clients that train and send their change.

    Reports `step_scale`, s: its step against FedAvg's.
    """

    weighting: Weighting = "uniform"
    q: NonNegativeFloat = 1.0
    """How much more large losses weigh; 0: not at all."""

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the changes by their losses; where nobody answers, stay."""
        if not len(replies):
            return super().tell(state, replies)
        weights, delta = replies.weights(self.weighting), replies.payload["delta"]
        losses = self.losses(replies).clamp(min=0.0) + 1e-10
        raised = (losses / losses.max()) ** self.q
        total, parts = weights.double().sum(), weights.double() * raised
        lengths = delta[:, : state.trained].double().square().sum(dim=1)
        scale = 1.0 / (1.0 + self.q / self.client_lr * float(parts @ (lengths / losses) / parts.sum()))
        rows = delta * raised.to(delta.dtype).unsqueeze(1)
        change = replies.combine(weights, scale * float(total / parts.sum()), rows=rows)
        if state.trained is not None:
            change = state.joined(change, replies.combine((parts / parts.sum()).to(weights.dtype)))
        metrics = {**self.seen(state, replies, change), "step_scale": scale}
        return self.advance(state, replies, change), metrics, True
