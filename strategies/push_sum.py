"""Push-sum, or stochastic gradient push: gossip where links lead one way, so that rows and columns are not both even.

X <- A (X - lr G(Z)),  w <- A w,  z_i = x_i / w_i;  w = 1 at first
A_ij = 1 / (n_j + 1) where j sends to i, and to n_j in all, of those who take part.
Columns of A sum to one, so that sums of x and of w stay, and z tends to their mean where rows do not. Each sends d + 1
floats along each link that leads away from it. Nedic and Olshevsky 2016; Assran et al. 2019.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.server import Gossip, Graph, ProblemView, Replies, Ring, Rows, mixed, options, pushing


@options
class PushSum(Gossip):
    """Needs the client `push_sum`, of which each is judged by z."""

    down: ClassVar[frozenset[str]] = frozenset({"models", "weights"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "weight"})
    directed: ClassVar[bool] = True

    graph: Graph = Ring(directed=True)

    def matrix(self, links: Tensor, count: int) -> Tensor:
        """A."""
        return pushing(links, count)

    def begin(self, problem: ProblemView) -> Rows:
        """Everybody's model, and weight 1."""
        models = problem.initial().repeat(problem.num_clients, 1)
        return {"models": models, "weights": models.new_ones((len(models), 1))}

    def step(self, before: Rows, replies: Replies, weights: Tensor) -> Rows:  # noqa: ARG002
        """Mix both."""
        return {
            "models": mixed(weights, replies.payload["model"]),
            "weights": mixed(weights, replies.payload["weight"]),
        }

    def models(self, rows: Rows) -> Tensor:
        """Z."""
        return rows["models"] / rows["weights"]
