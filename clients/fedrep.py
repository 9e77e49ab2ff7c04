"""FedRep's client: what stays with it is trained by itself first, and then what is shared.

h_i <- h_i - lr * grad_h f_i(theta, h_i), theta fixed; then y <- y - lr * grad_y f_i(y, h_i), h_i fixed, from y = theta
Uplink d floats of what is shared. Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated
Learning", algorithm 1, with `problem.shared = "body"`. Without the first part nobody's head ever moves: FedBABU, whose
clients are judged after fine-tuning, Oh et al. 2022.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from fedsim.client import Cohort, Cost, InputError, LocalTraining, Order, Passes, Update, options


@options
class FedRep(LocalTraining):
    """Goes with strategies that average changes, and problems of which a part stays with clients.

    Epochs or steps are those on what is shared. Both parts have mini-batches of their own, and rates from the first.
    """

    head_epochs: Passes | Literal[0] | None = None
    """Passes over the examples on what stays with the client, before the others; 0: it is never trained. Not given:
    head_steps decide.
    """
    head_steps: Passes | None = None
    """So many steps on it instead, each on an independent batch. Not given: head_epochs decide."""

    accepts: ClassVar[frozenset[str]] = LocalTraining.accepts | {"proximal-mu"}
    descends: ClassVar[bool] = True
    divides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.head_epochs is None) == (self.head_steps is None):
            raise InputError("head_epochs", self.head_epochs, "give exactly one of head_epochs and head_steps")
        if self.head is not None:
            self.hold_two_models()

    @cached_property
    def head(self) -> LocalTraining | None:
        """How what stays with the client is trained; None: not at all."""
        if self.head_epochs == 0:
            return None
        return self.like(epochs=self.head_epochs, steps=self.head_steps, epochs_schedule="constant")

    @property
    def for_tuning(self) -> bool:
        """It is where heads stay as at the start."""
        return self.head is None

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """The steps on both parts, and d floats."""
        cost = super().cost(order, examples)
        return cost if self.head is None else cost.beside(self.head.taken(order, examples))

    def train(self, cohort: Cohort) -> Update:
        """Train one part and then the other, and send the change of what is shared."""
        theta, own = cohort.received("params"), cohort.stays
        start = theta
        if self.head is not None:
            with cohort.apart("head"):
                start = self.head.descend(cohort, theta, moves=own).params  # theta, with running statistics that moved
        shared = [not stays for stays in own]
        trained = self.descend(cohort, start, **self.proximal(cohort, theta), moves=shared)
        return Update({"delta": trained.params.sub_(theta)}, {"loss": trained.loss})
