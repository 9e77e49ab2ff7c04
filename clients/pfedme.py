"""pFedMe's client: a model of its own that minimises its loss and the distance from the model that it sends.

K times  v <- v - inner_lr * (grad f_i(v) + weight_decay v + lam (v - y)),  then  y <- y - lr lam (y - v)
on each mini-batch, from v = y = theta at the beginning of a round. y is sent and v is kept: lam (y - v) is the slope by
y of the least that the client's loss and lam/2 times the squared distance from y come to. Uplink d floats; each client
keeps d. T Dinh et al. 2020, "Personalized Federated Learning with Moreau Envelopes", algorithm 1, whose beta is the
server's `server_lr`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import (
    Cohort,
    Cost,
    InputError,
    Order,
    PlainSteps,
    PositiveFloat,
    PositiveInt,
    Rate,
    Shapes,
    Update,
    options,
)


@options
class PFedMe(PlainSteps):
    """Goes with strategies that average changes. `epochs` or `steps` are its local rounds, a mini-batch each."""

    lam: PositiveFloat = 15.0
    """Factor of lam/2 |v - y|^2, by which its own model is drawn to the one that it sends."""
    lr: Rate = 0.005
    """The rate eta at which the model that it sends follows its own; times lam it is at most 1."""
    inner_lr: Rate = 0.09
    """The learning rate of its own model."""
    inner_steps: PositiveInt = 5
    """K, the steps of its own model on a mini-batch."""

    own_models: ClassVar[bool] = True
    decays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scaling != "none":
            raise InputError("lr_scaling", self.lr_scaling, "lr is no rate of gradients here; leave it out")
        if self.lr * self.lam > 1.0:
            raise InputError("lr", self.lr, f"times lam, {self.lam:g}, it is above 1, which overshoots; lower one")
        pull = self.lam + self.weight_decay
        if self.inner_lr * pull >= 2.0:
            remedy = f"times lam + weight_decay, {pull:g}, it is 2 or more, which diverges; lower one"
            raise InputError("inner_lr", self.inner_lr, remedy)

    def state(self, dimension: int) -> Shapes:
        """Each client keeps its own model, and 1 where there is one."""
        return {**super().state(dimension), "personal": (dimension,), "begun": ()}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """A mini-batch a local round, on which K steps are taken, and d floats."""
        cost = super().cost(order, examples)
        return cost.beside(Cost(torch.zeros_like(examples), {}, effort=(self.inner_steps - 1.0) * cost.steps))

    def train(self, cohort: Cohort) -> Update:
        """Have its own model solve its problem roughly, and the one that is sent follow it; send that one's change."""
        theta, lam, network = cohort.received("params"), self.lam, cohort.network
        y, own = cohort.stack(theta), cohort.stack(theta)
        losses = torch.zeros(len(cohort), dtype=cohort.dtype, device=theta.device)
        for step in self.paced(cohort):
            k = len(step)
            sent, v, anchor = y[:k], own[:k], y[:k].copy().mul_(lam)
            for _ in range(self.inner_steps):
                losses[:k] += network.descend(v, step.batch, self.inner_lr, lam + self.weight_decay, anchor)
            step.along(sent.minus(v).mul_(lam), sent, v)
        cohort.keep(personal=own.flat(), begun=torch.ones_like(cohort.state["begun"]))
        return Update({"delta": y.flat() - theta}, {"loss": losses / (self.inner_steps * cohort.steps_taken)})

    def personal(self, cohort: Cohort) -> Tensor:
        """Its own model; that which it would begin with, as long as it has none."""
        begun = cohort.state["begun"].unsqueeze(1) > 0
        return torch.where(begun, cohort.state["personal"], cohort.received("params"))
