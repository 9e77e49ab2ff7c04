"""FedALA's client: it begins between its own last model and what it receives, at shares that it learns for each number.

y = v_i + (theta - v_i) * W_i;  W_i <- clip(W_i - eta * grad f_i(y) * (theta - v_i), 0, 1)
W_i is learnt over mini-batches of a share of its examples; it is 1 at first, and always but in the last tensors. From y
it trains to its new v_i. Uplink d floats, v_i - theta; each client keeps 2 d. Zhang et al. 2023, "FedALA: Adaptive
Local Aggregation for Personalized Federated Learning", with the authors' code and PFLlib's defaults.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.client import (
    Cohort,
    Cost,
    LocalTraining,
    NonNegativeFloat,
    Order,
    PositiveInt,
    Shapes,
    Update,
    options,
)


@options
class FedALA(LocalTraining):
    """Goes with strategies that average changes. It is judged by v_i, its own model at the end of its last round.

    As long as theta is v_i there is nothing to learn. Shares are learnt on examples as they are, also with a defence.
    """

    eta: NonNegativeFloat = 1.0
    """The rate at which W is learnt; 0: W stays 1, and what the server does is what it does with `sgd`."""
    tensors: PositiveInt = 2
    """In how many of the model's tensors of parameters, the last ones, there are shares; 2: its last layer's."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The share of a client's examples on which it learns W, drawn anew whenever it takes part."""
    first_passes: PositiveInt = 11
    """Passes over these the first time; later there is one. The authors go on until the losses of the last ten are near
    each other, 11 at least; a number is the same for all, whoever is beside them.
    """

    accepts: ClassVar[frozenset[str]] = LocalTraining.accepts | {"proximal-mu"}
    models: ClassVar[tuple[str, ...]] = ("personal",)
    own_models: ClassVar[bool] = True

    def state(self, dimension: int) -> Shapes:
        """Each client keeps its own model, 1 - W, and 1 once it has learnt that."""
        return {**super().state(dimension), "personal": (dimension,), "own-share": (dimension,), "learnt": ()}

    def numbers(self, dimension: int, largest: int) -> int:
        """Local training's, with the models that it begins between."""
        return super().numbers(dimension, largest) + 4 * dimension

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, one pass to learn W, and d floats; who learns it for the first time takes longer than is known."""
        count, width = self.sampled(examples), self.width(order.config)
        effort = torch.ones_like(count) if width is None else -(-count // width)
        return super().cost(order, examples).beside(Cost(torch.zeros_like(examples), {}, effort=effort.double()))

    def sampled(self, examples: Tensor) -> Tensor:
        """On how many of its examples a client learns W, one at least: int64 [C]."""
        return (examples * self.share).long().clamp(min=1)

    def train(self, cohort: Cohort) -> Update:
        """Learn W, train from where that leads, and keep the end of it; send the way from theta to there."""
        own = cohort.state["personal"]
        theta = cohort.received("params").expand_as(own)
        shares = self.learn(cohort, theta, own)
        trained = self.descend(cohort, torch.lerp(theta, own, shares), **self.proximal(cohort, theta))
        cohort.keep(**{"personal": trained.params, "own-share": shares})
        return Update({"delta": trained.params - theta}, {"loss": trained.loss})

    def learn(self, cohort: Cohort, theta: Tensor, own: Tensor) -> Tensor:
        """1 - W, [C, d], after the passes of this time: the shares of v_i; 0 but in the last tensors."""
        network, layout = cohort.network, cohort.network.layout
        top = slice(sum(layout.sizes[: max(0, layout.trained - self.tensors)]), cohort.trained)
        shares, way, learnt = cohort.state["own-share"].clone(), (own - theta)[:, top], cohort.state["learnt"]
        unlike, places = (way != 0).any(dim=1), cohort.sample(self.sampled(cohort.examples), "shares")
        passes, width = torch.where(learnt > 0, 1, self.first_passes), self.width(cohort.config) or cohort.largest
        for number in range(self.first_passes):
            rows = (unlike & (passes > number)).nonzero().flatten()
            if not len(rows):
                break
            for some, batch in cohort.everything(rows, width, f"shares {number}", places):
                who = rows[some]
                weight = batch.weight / batch.weight.sum(dim=1, keepdim=True)
                y = layout.stack(torch.lerp(theta[who], own[who], shares[who]))
                _, gradient = network.gradients(y, replace(batch, weight=weight))
                slope = gradient.flat()[:, top] * way[who]
                shares[who, top] = (shares[who, top] - self.eta * slope).clamp(0.0, 1.0)
        cohort.keep(learnt=torch.where(unlike, 1.0, learnt))
        return shares

    def personal(self, cohort: Cohort) -> Tensor:
        """The client's own model."""
        return cohort.state["personal"]
