"""Ditto's client: beside the model for all, a model of its own, which is drawn to what it received.

v_i <- v_i - lr * (grad f_i(v_i) + lam (v_i - theta)); the model for all is trained as by `sgd`, on the same batches
Uplink d floats; each client keeps d. Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through
Personalization", algorithm 2, with the authors' code, whose steps on both take the same mini-batch.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from fedsim.client import (
    Cohort,
    Cost,
    InputError,
    LocalTraining,
    NonNegativeFloat,
    Order,
    Passes,
    PositiveFloat,
    Shapes,
    Update,
    options,
)


@options
class Ditto(LocalTraining):
    """Goes with strategies that average changes, and what these come to is what they would without it."""

    lam: NonNegativeFloat
    """Factor of lam/2 |v - theta|^2, theta the model that was received; 0: local training alone."""
    personal_lr: PositiveFloat | None = None
    """The learning rate of the client's own model. Not given: lr."""
    personal_epochs: Passes | None = None
    """Passes over the examples for the client's own model. Not given: as many as for the other."""
    own_batches: bool = False
    """Draw mini-batches for the client's own model by themselves; otherwise it sees those of the other."""

    models: ClassVar[tuple[str, ...]] = ("personal",)
    own_models: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = LocalTraining.accepts | {"proximal-mu"}
    descends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hold_two_models()
        if self.own.base * self.lam >= 1.0:
            remedy = f"times the rate of the client's own model, {self.own.base:g}, it is 1 or more, which overshoots"
            raise InputError("lam", self.lam, f"{remedy}; lower one of the two")

    @cached_property
    def own(self) -> LocalTraining:
        """How the client's own model is trained."""
        passes = {} if self.personal_epochs is None else {"epochs": self.personal_epochs, "steps": None}
        return self.like(lr=self.base if self.personal_lr is None else self.personal_lr, **passes)

    def state(self, dimension: int) -> Shapes:
        """Each client keeps its own model."""
        return {**super().state(dimension), "personal": (dimension,)}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """The steps on both models, and d floats."""
        return super().cost(order, examples).beside(self.own.taken(order, examples))

    def train(self, cohort: Cohort) -> Update:
        """Train both from where they are, and send the change of the model for all."""
        theta, lam = cohort.received("params"), self.lam
        with cohort.apart("personal") if self.own_batches else nullcontext():
            own = self.own.descend(cohort, cohort.state["personal"], decay=lam, shift=lam * theta if lam else None)
        trained = self.descend(cohort, theta, **self.proximal(cohort, theta), change=True)
        cohort.keep(personal=own.params)
        return Update({"delta": trained.params}, {"loss": trained.loss})

    def personal(self, cohort: Cohort) -> Tensor:
        """The client's own model."""
        return cohort.state["personal"]
