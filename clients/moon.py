"""MOON's client: features are drawn to those of the received model, and away from those of the client's own last one.

y <- y - lr grad (f_i(y) + mu mean_b l_b),  l = log(1 + e^((cos(z, z_l) - cos(z, z_r)) / tau))
Here z is what the head reads of an example under y, z_r under the model received, z_l under the one with which the
client ended its last round, at first the problem's start; the latter two without dropout. l is the cross-entropy of z_r
among the two; in a cosine a length is at least 1e-8. Uplink d floats; each client keeps d; two forward passes a step
beside. Li, He and Song 2021, "Model-Contrastive Federated Learning", whose published code takes for z two more layers'
projection of it, which here are the model's own, before its head, if it is to have them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.client import (
    FORWARD,
    Armed,
    Batch,
    Cohort,
    Cost,
    CrossEntropy,
    FeatureLoss,
    LocalTraining,
    Loss,
    NonNegativeFloat,
    Order,
    PositiveFloat,
    Shapes,
    Stack,
    Update,
    options,
)


@options
class Moon(LocalTraining):
    """Goes with strategies that average changes, and with models whose features are known."""

    mu: NonNegativeFloat = 1.0
    """Factor of the contrast between models; 0: none, plain local training."""
    temperature: PositiveFloat = 0.5
    """tau, by which cosines are divided: the smaller, the more their differences count."""

    accepts: ClassVar[frozenset[str]] = LocalTraining.accepts | {"proximal-mu"}
    models: ClassVar[tuple[str, ...]] = ("last",)
    descends: ClassVar[bool] = True

    @property
    def of_features(self) -> bool:
        """Only where features are compared."""
        return self.mu > 0.0

    def state(self, dimension: int) -> Shapes:
        """The model with which a client ended its last round."""
        return {**super().state(dimension), "last": (dimension,)}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, each with two forward passes more, and d floats."""
        cost = super().cost(order, examples)
        if not self.mu:
            return cost
        passes = 2.0 * FORWARD * cost.steps.double()
        return replace(cost, effort=passes if cost.effort is None else cost.effort + passes)

    def numbers(self, dimension: int, largest: int) -> int:
        """Two models more."""
        return super().numbers(dimension, largest) + 2 * dimension

    def train(self, cohort: Cohort) -> Update:
        """Train on the client's loss and the contrast, and send the change."""
        theta = cohort.received("params")
        armed = self._contrasted(cohort, theta) if self.mu else None
        trained = self.descend(cohort, theta, **self.proximal(cohort, theta), armed=armed)
        cohort.keep(last=trained.params)
        return Update({"delta": trained.params - theta}, {"loss": trained.loss})

    def _contrasted(self, cohort: Cohort, theta: Tensor) -> Armed:
        network, others = cohort.network, [cohort.stack(rows) for rows in (theta, cohort.state["last"])]

        def contrasted(rows: Stack, batch: Batch) -> Batch:
            near, far = (unit(network.features(other[: len(rows)], batch.x)) for other in others)
            loss = network.loss if batch.loss is None else batch.loss
            return replace(batch, loss=Contrast(loss, near, far, self.mu, self.temperature))

        return contrasted


@dataclass(frozen=True)
class Contrast(FeatureLoss):
    """Another loss, and mu times the cross-entropy of `near` among two unit vectors for each example, [k, B, h]."""

    loss: Loss
    near: Tensor
    far: Tensor
    mu: float
    temperature: float

    def of(self, features: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Losses [k, B] of features [k, B, h]."""
        z = unit(features)
        cosines = torch.stack([(z * other).sum(dim=-1) for other in (self.near, self.far)], dim=-1)
        first = torch.zeros(cosines.shape[:-1], dtype=torch.int64, device=cosines.device)
        return self.mu * CrossEntropy().each(cosines / self.temperature, first)


def unit(z: Tensor) -> Tensor:
    """Vectors [..., h] at length 1, but for those that are next to nothing."""
    return functional.normalize(z, dim=-1, eps=1e-8)
