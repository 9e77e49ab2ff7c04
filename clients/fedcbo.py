"""FedCBO's agent: local training of its own model, and a move towards the models of others that suit its examples.

mu_j ~ exp(-alpha L_i(theta_j)), sum_j mu_j = 1;  m_i = sum_j mu_j theta_j over its M peers;  L_i the mean loss
theta_i <- theta_i - pull (theta_i - m_i) + noise |theta_i - m_i| xi,  xi ~ N(0, I)
Uplink d floats after training, M + 1 after the move; M + 1 evaluations of all examples. Carrillo, Garcia Trillos, Li
and Zhu 2024, whose lambda gamma is `pull`; the published code has no noise, and takes the sum of a client's losses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from fedsim.client import Cohort, Cost, LocalTraining, NonNegativeFloat, Order, Shapes, Share, Size, Update, options


@options
class FedCBO(LocalTraining):
    """Needs the strategy `fedcbo`."""

    requires: ClassVar[frozenset[str]] = frozenset({"params", "models", "selection"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "losses"})

    alpha: NonNegativeFloat = 30.0
    """How much more the better models weigh."""
    pull: Share = 0.5
    """The share of the way to the consensus that an agent goes."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of a random step in every trained coordinate, in lengths of the way to the consensus."""

    def state(self, dimension: int) -> Shapes:
        """Its model, and 1 where there is one."""
        return {**super().state(dimension), "model": (dimension,), "begun": ()}

    def cost(self, order: Order, examples: torch.Tensor) -> Cost:
        """Steps, and d floats; or evaluations, and as many floats."""
        if order.action == "train":
            cost = super().cost(order, examples)
            return replace(cost, reply={"model": cost.reply["delta"]})
        queries = 1 + order.payload["selection"].shape[1]
        losses = Size(queries, 8 * order.payload["models"].element_size())
        return Cost(torch.zeros_like(examples), {"losses": losses}, queries)

    def train(self, cohort: Cohort) -> Update:
        """Train its model, at first the one that it is sent; send it."""
        begun = cohort.state["begun"].unsqueeze(1) > 0
        trained = self.descend(cohort, torch.where(begun, cohort.state["model"], cohort.received("params")))
        cohort.keep(model=trained.params, begun=torch.ones_like(cohort.state["begun"]))
        return Update({"model": trained.params}, {"loss": trained.loss})

    def mix(self, cohort: Cohort) -> Update:
        """Move to the consensus of its peers; send its own loss and theirs, [C, 1 + M]."""
        theta, models = cohort.state["model"], cohort.received("models")
        peers = cohort.received("selection")[cohort.clients]
        # One peer of each at a time, so that memory does not grow with M.
        values = [cohort.query(theta.unsqueeze(1)), *(cohort.query(models[own].unsqueeze(1)) for own in peers.T)]
        losses = torch.cat(values, dim=1)
        if peers.shape[1]:
            weights = torch.softmax(-self.alpha * losses[:, 1:], dim=1)
            center = torch.zeros_like(theta)
            for own, weight in zip(peers.T, weights.T, strict=True):
                center.addcmul_(models[own], weight.unsqueeze(1))
            moved = torch.lerp(theta, center, self.pull)
            if self.noise:
                way, shape = (theta - center)[:, : cohort.trained], (cohort.trained,)
                distance = torch.linalg.vector_norm(way, dim=1, keepdim=True)
                xi = cohort.streams.normal("consensus", cohort.clients, shape, turn=cohort.turn, dtype=theta.dtype)
                moved[:, : cohort.trained].addcmul_(distance, xi, value=self.noise)
            cohort.keep(model=moved)
        return Update({"losses": losses})
