"""CalFAT: outputs are calibrated by how often a client has each class, so that skewed clients agree.

minimise  L = CE(scale (z(x') + prior_weight log n_c), target),  n_c the number of its examples of class c, at least 1
x' maximises  D = KL(softmax(z(x) + prior_weight log n) || softmax(z(x') + prior_weight log n)), or L itself
Chen et al. 2022; scale, prior_weight, the unscaled KL and 1 for missing classes are those of the published code, whose
attacks begin at x + 0.001 N(0, 1); here they begin at the attack's own random start (see `trades`). Its server takes
the uniform mean. In rounds without an attack the loss is the plain one, uncalibrated.
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
    Divergence,
    Loss,
    NonNegativeFloat,
    PositiveFloat,
    Stack,
    check_start,
    options,
    victim,
)


@options
class CalFAT(Defence):
    """Gradients grow with `scale`, so the learning rate must be as much smaller (published with 0.01)."""

    scale: PositiveFloat = 10.0
    """Factor of the calibrated outputs."""
    prior_weight: NonNegativeFloat = 0.1
    """Factor of the logarithms of the classes' counts."""
    attack_loss: Literal["kl", "own"] = "kl"
    """What the attack maximises: kl, from the calibrated predictions, or own, the loss that is trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack_loss == "kl":
            check_start(self.attacked_by)

    def effort(self, round: int) -> float:  # noqa: A002
        """Beside, a forward pass for the predictions that the attack leads away from."""
        return super().effort(round) + (FORWARD if self.attack_loss == "kl" and self.factor(round) else 0.0)

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Replace examples by attacked ones, and the loss by the calibrated one."""
        counts = cohort.class_counts().clamp(min=1)
        prior = (self.prior_weight * counts.double().log()).to(cohort.dtype).unsqueeze(1)

        def arm(rows: Stack, batch: Batch) -> Batch:
            attacked, own = victim(cohort, rows, batch), prior[: len(batch)]
            trained = away = Calibrated(CrossEntropy(), own, self.scale)
            if self.attack_loss == "kl":
                clean = torch.log_softmax(attacked.outputs(batch.x) + own, dim=-1)
                away = Calibrated(Divergence(clean), own)
            found = self.perturbed(attacked, batch.x, batch.y, away, factor)
            return replace(batch, x=found, loss=trained)

        return arm


@dataclass(frozen=True)
class Calibrated(Loss):
    """Another loss, of scale * (z + prior). prior: [k, 1, K]."""

    loss: Loss
    prior: Tensor
    scale: float = 1.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [k, B] of outputs [k, B, K] and targets [k, B]."""
        return self.loss.examples(self.scale * (outputs + self.prior), targets)
