"""D-PSGD, decentralised parallel SGD: local training, and a mean with the neighbours; there is no server.

X <- W (X - lr G),  or as published  X <- W X - lr G;  row i of X is client i's model, of G its gradient at that
W_ij = 1 / (1 + max(n_i, n_j)), W_ii = 1 - sum_j W_ij,  n_i the links of i to those who take part
Each sends d floats along each of its links. In a complete graph it is FedAvg with uniform weights. Clients who differ
end apart, and off the optimum, by what goes with the rate (see `gradient_tracking`). Lian et al. 2017, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from fedsim.server import Gossip, ProblemView, Replies, Rows, mixed, options


@options
class DPSGD(Gossip):
    """Needs the client `dpsgd`, of which each is judged by its own model."""

    down: ClassVar[frozenset[str]] = frozenset({"models"})
    up: ClassVar[frozenset[str]] = frozenset({"model"})

    combine: Literal["after", "before"] = "after"
    """When models are mixed: after the local steps, which allows rates up to 2/L, or, as published, before, where
    changes of before are added to what has been mixed, and rates end at (1 + lambda_min(W))/L.
    """

    def begin(self, problem: ProblemView) -> Rows:
        """Everybody's model."""
        return {"models": problem.initial().repeat(problem.num_clients, 1)}

    def step(self, before: Rows, replies: Replies, weights: Tensor) -> Rows:
        """Mix."""
        trained, models = replies.payload["model"], before["models"]
        if self.combine == "after":
            return {"models": mixed(weights, trained)}
        return {"models": mixed(weights, models) + (trained - models)}
