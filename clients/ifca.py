"""IFCA's client: local training of that of several models which costs it least on all of its training examples.

z = argmin_j f_i(theta_j), the first of equal ones, dropout inactive;  Delta_i = y - theta_z, y trained from theta_z
Uplink d floats and a byte, z; a forward pass of all its examples for each model. It is judged by the model that it
would choose now. Ghosh, Chung, Yin and Ramchandran 2020, algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import FORWARD, Cohort, Cost, InputError, LocalTraining, Order, Size, Update, options


@options
class IFCA(LocalTraining):
    """Needs the strategy `ifca`. It remembers nothing, and chooses by examples as they are, also with a defence."""

    requires: ClassVar[frozenset[str]] = frozenset({"params", "other-models"})
    accepts: ClassVar[frozenset[str]] = frozenset({"one-step"})
    up: ClassVar[frozenset[str]] = frozenset({"delta", "cluster"})
    own_models: ClassVar[bool] = True
    descends: ClassVar[bool] = True

    def check(self, sent: frozenset[str]) -> None:
        """Refuse more than a step on all examples where the server averages gradients."""
        if "one-step" in sent and (1 not in (self.steps, self.epochs) or self.batch_size != "full"):
            remedy = 'the strategy averages gradients, of one step each; give steps = 1 and batch_size = "full"'
            raise InputError("steps", self.steps, remedy)

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, a pass of each model, and d floats and a byte."""
        cost, width = super().cost(order, examples), self.width(order.config)
        steps = torch.ones_like(examples) if width is None else -(-examples // width)
        effort = FORWARD * (1 + len(order.payload["other-models"])) * steps.double()
        reply = {**cost.reply, "cluster": Size(1, 8)}
        return replace(cost.beside(Cost(torch.zeros_like(examples), {}, effort=effort)), reply=reply)

    def train(self, cohort: Cohort) -> Update:
        """Train the chosen model; send its change, and which it is, uint8 [C, 1]."""
        theta, chosen = self.choice(cohort)
        trained = self.descend(cohort, theta, change=True)
        payload = {"delta": trained.params, "cluster": chosen.to(torch.uint8).unsqueeze(1)}
        return Update(payload, {"loss": trained.loss})

    def personal(self, cohort: Cohort) -> Tensor:
        """The chosen model; its number is told as `cluster`."""
        theta, cohort.metrics["cluster"] = self.choice(cohort)
        return theta

    def choice(self, cohort: Cohort) -> tuple[Tensor, Tensor]:
        """The models that clients choose, [C, d], and their numbers, int64 [C]."""
        models = torch.cat((cohort.received("params").unsqueeze(-2), cohort.received("other-models")), dim=-2)
        inside = torch.arange(cohort.largest, device=models.device) < cohort.examples.unsqueeze(1)
        losses = list[Tensor]()
        for number in range(models.shape[-2]):
            each = cohort.judge(models[..., number, :], cohort.network.loss.examples)
            losses.append(each.double().where(inside, 0.0).sum(dim=1))
        found = torch.stack(losses, dim=1).nan_to_num(nan=torch.inf, posinf=torch.inf)  # of models that have diverged
        chosen = found.argmin(dim=1)
        return models.expand(len(cohort), -1, -1)[torch.arange(len(cohort), device=models.device), chosen], chosen
