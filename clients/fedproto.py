"""FedProto's client: a model of its own, whose features are drawn to the prototypes of their classes.

v <- v - lr grad (f_i(v) + lam mean_b (1/h) |z_b - P_c|^2),  c the class of example b, z_b its h features under v
Here the second term is left out of classes whose prototype is not known. It sends the mean features of each class that
it has, as they were before each step of the last epoch, with whatever was dropped out of them. Uplink k h floats and k
bits; each client keeps d. Tan et al. 2022, algorithm 1, with the published code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import (
    Armed,
    Batch,
    Cohort,
    FeatureLoss,
    LocalTraining,
    Loss,
    NonNegativeFloat,
    Order,
    Shapes,
    Size,
    Stack,
    Update,
    from_bits,
    options,
    products,
    to_bits,
)


@options
class FedProto(LocalTraining):
    """Needs the strategy `fedproto`, examples of one class each, and a model whose features are known."""

    requires: ClassVar[frozenset[str]] = frozenset({"prototypes", "has"})
    accepts: ClassVar[frozenset[str]] = frozenset({"report-counts"})
    up: ClassVar[frozenset[str]] = frozenset({"prototypes", "has", "counts"})
    models: ClassVar[tuple[str, ...]] = ("model",)
    own_models: ClassVar[bool] = True

    lam: NonNegativeFloat = 1.0
    """Factor of the squared distances to prototypes; 0: local training alone."""
    predict: Literal["prototypes", "head"] = "prototypes"
    """How clients' models are judged: by the nearest prototype that the server knows, or by their own heads."""

    @property
    def of_features(self) -> bool:
        """They are drawn somewhere, or told of."""
        return True

    def state(self, dimension: int) -> Shapes:
        """Its model."""
        return {**super().state(dimension), "model": (dimension,)}

    def numbers(self, dimension: int, largest: int) -> int:
        """Sums of features beside: no more than the head has numbers."""
        return super().numbers(dimension, largest) + dimension

    def reply(self, order: Order) -> dict[str, Size]:
        """Prototypes, and a bit or a count for each class."""
        prototypes = Size.of(order.payload["prototypes"])
        if order.config.get("report-counts"):
            return {"prototypes": prototypes, "counts": Size(len(order.payload["prototypes"]), prototypes.bits)}
        return {"prototypes": prototypes, "has": Size.of(order.payload["has"])}

    def train(self, cohort: Cohort) -> Update:
        """Train its model, and send what the features of each class were like in the last epoch."""
        goal, has = _known(cohort)
        tally = Tally(torch.zeros_like(goal), goal.new_zeros(goal.shape[:2]))
        trained = self.descend(cohort, cohort.state["model"], armed=self._drawn(cohort, goal, has, tally))
        cohort.keep(model=trained.params)
        payload = {"prototypes": tally.sums / tally.counts.clamp(min=1.0).unsqueeze(2)}
        if cohort.config.get("report-counts"):
            payload["counts"] = tally.counts
        else:
            payload["has"] = to_bits(tally.counts > 0)
        return Update(payload, {"loss": trained.loss})

    def _drawn(self, cohort: Cohort, goal: Tensor, has: Tensor, tally: Tally) -> Armed:
        def drawn(rows: Stack, batch: Batch) -> Batch:
            count, steps = len(rows), cohort.steps_taken
            late = batch.draw.step >= (steps - self.last_epoch(cohort, steps))[:count]
            own = batch.y.unsqueeze(2)
            towards = goal[:count].gather(1, own.expand(-1, -1, goal.shape[2]))
            loss = cohort.network.loss if batch.loss is None else batch.loss
            noted = (batch.weight > 0) & late.unsqueeze(1)
            return replace(batch, loss=Pulled(loss, self.lam, towards, has[:count].gather(1, batch.y), noted, tally))

        return drawn

    def personal(self, cohort: Cohort) -> Tensor:
        """Its model."""
        return cohort.state["model"]

    def outputs(self, cohort: Cohort, models: Stack, x: Tensor) -> Tensor:
        """Minus the squared distances to prototypes; a class without one is farther than all others.

        The head's, where it is to predict, and until there is a prototype.
        """
        goal, has = _known(cohort)
        if self.predict == "head" or not bool(has.any()):
            return super().outputs(cohort, models, x)
        features = cohort.network.features(models, x)
        lengths = features.square().sum(dim=2, keepdim=True) + goal.square().sum(dim=2).unsqueeze(1)
        far = (lengths - 2.0 * products.bmm(features, goal.mT)).clamp(min=0.0)  # differences would be [k, B, k, h]
        farthest = far.where(has.unsqueeze(1), 0.0).amax(dim=2, keepdim=True)
        return -far.where(has.unsqueeze(1), 2.0 * farthest + 1.0)


@dataclass
class Tally:
    """Sums of features [C, k, h] and numbers of examples [C, k] of each class."""

    sums: Tensor
    counts: Tensor


@dataclass
class Pulled(FeatureLoss):
    """Another loss, and lam times the mean squared distance to a goal for each example, [k, B, h], where it is known.

    What it sees first is the training pass before a step, whose features are counted, of examples that are to be noted.
    """

    loss: Loss
    lam: float
    goal: Tensor
    known: Tensor
    noted: Tensor
    tally: Tally | None

    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        """Losses [k, B] of features [k, B, h]."""
        if self.tally is not None:
            self._count(self.tally, features.detach(), targets)
            self.tally = None
        away = (features - self.goal).square().mean(dim=2)
        return self.lam * away.where(self.known, 0.0)

    def _count(self, tally: Tally, features: Tensor, targets: Tensor) -> None:
        classes = torch.arange(tally.counts.shape[1], device=targets.device)
        of_class = ((targets.unsqueeze(1) == classes.unsqueeze(1)) & self.noted.unsqueeze(1)).to(features.dtype)
        tally.sums[: len(features)] += products.bmm(of_class, features)
        tally.counts[: len(features)] += of_class.sum(dim=2)


def _known(cohort: Cohort) -> tuple[Tensor, Tensor]:
    """The prototypes that clients have received, [C, k, h], and which of them there are, bool [C, k]."""
    goal, has = cohort.received("prototypes"), cohort.received("has")
    goal = goal.expand(len(cohort), *goal.shape[-2:])
    return goal, from_bits(has, goal.shape[1]).expand(len(cohort), -1)
