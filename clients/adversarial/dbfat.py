"""DBFAT: examples near the decision boundary count more, and local predictions stay near the global model's.

minimise  w CE(f(x'), target) + beta KL(f(x') || g(x')),  f the local model, g the one that the server sent
w ~ 1 + tanh(5 (1 - 2 kappa / n)), of mean 1 over a client's examples in a batch: kappa of the attack's n points, the
start among them, come before the first that is misclassified; x' is the last of them
Zhang et al. 2023 describe both terms. Reconstructed: w, in the form of GAIRAT (Zhang et al. 2021), the direction of the
KL and the default of beta. The attack has one start, and its last point counts. In rounds without an attack the loss is
the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedsim.client import (
    FORWARD,
    Armed,
    Batch,
    Cohort,
    CrossEntropy,
    Defence,
    InputError,
    Loss,
    NonNegativeFloat,
    Stack,
    Victim,
    divergence,
    options,
    victim,
)


@options
class DBFAT(Defence):
    """The divergence takes a forward pass more a batch, and the weights one for each point of the attack."""

    beta: NonNegativeFloat = 1.0
    """Factor of the divergence from the global model."""
    weights: Literal["boundary", "equal"] = "boundary"
    """w by the distance to the decision boundary, or 1 for all (equal)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, plain in (("restarts", 1), ("best", False)):
            if getattr(self.attacked_by, option, plain) != plain:
                found = getattr(self.attacked_by, option)
                raise InputError(f"attack.{option}", found, "the last point of one start counts here; leave it out")

    def effort(self, round: int) -> float:  # noqa: A002
        """Beside, forward passes of the global model and, for the weights, on each point of the attack."""
        passes = 1 + (self.attacked_by.gradients + 1 if self.weights == "boundary" else 0)
        return super().effort(round) + (FORWARD * passes if self.factor(round) else 0.0)

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Replace examples by attacked ones, and the loss by the weighted and anchored one."""
        sent = cohort.stack(cohort.received("params"))

        def arm(rows: Stack, batch: Batch) -> Batch:
            attacked = victim(cohort, rows, batch)
            found, weights = self._attacked(attacked, batch, factor)
            anchor = torch.log_softmax(cohort.network.outputs(sent[: len(batch)], found), dim=-1)
            return replace(batch, x=found, loss=Anchored(weights, anchor, self.beta))

        return arm

    def _attacked(self, attacked: Victim, batch: Batch, factor: float) -> tuple[Tensor, Tensor]:
        """The last point of the attack, [k, B, ...], and the examples' weights [k, B]."""
        found, right, kappa, points = batch.x, torch.ones_like(batch.weight), torch.zeros_like(batch.weight), 0
        for found in self.attacked_by.iterates(attacked, batch.x, batch.y, factor=factor):
            if self.weights == "boundary":
                right = right * (attacked.outputs(found).argmax(dim=-1) == batch.y)
                kappa, points = kappa + right, points + 1
        if self.weights == "equal":
            return found, right
        near = 1.0 + torch.tanh(5.0 * (1.0 - 2.0 * kappa / points))
        return found, near / (near * batch.weight).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Anchored(Loss):
    """w CE + beta KL(softmax(z) || g). weights: w, [k, B]. anchor: log g, [k, B, K]."""

    weights: Tensor
    anchor: Tensor
    beta: float

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [k, B] of outputs [k, B, K] and targets [k, B]."""
        away = divergence(torch.log_softmax(outputs, dim=-1), self.anchor)
        return self.weights * CrossEntropy().examples(outputs, targets) + self.beta * away
