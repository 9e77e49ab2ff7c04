"""FedNova: normalised averaging, so that clients with more local steps do not bias the objective.

theta <- theta + eta * (sum_i w_i nu_i) * sum_i w_i Delta_i / nu_i
Of them nu_i is the l1 norm of the weights that client i's gradients have in Delta_i / lr. Uplink d + 1 floats a client,
downlink d. Wang et al. 2020, equations 8 and 9.
"""

from __future__ import annotations

from typing import ClassVar

from fedsim.server import Averaging, Config, Metrics, Replies, ServerState, options


@options
class FedNova(Averaging):
    """Works with the client `sgd`, with momentum or a proximal term."""

    up: ClassVar[frozenset[str]] = frozenset({"delta", "nu"})

    def config(self) -> Config:
        """Ask for nu."""
        return {"report-nu": True}

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change per unit of local work, times the mean work."""
        weights, nu = replies.weights(self.weighting), replies.payload["nu"]
        work = weights @ nu
        delta = replies.combine(weights, scale=work, rows=replies.payload["delta"] / nu.unsqueeze(1))
        if state.trained is not None:
            delta = state.joined(delta, replies.combine(weights))
        metrics = {**self.seen(state, replies, delta), "effective_steps": float(work)}
        return self.advance(state, replies, delta), metrics, True
