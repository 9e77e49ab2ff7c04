"""TRADES: the loss of clean examples, and how far predictions move under attack.

minimise  CE(f(x), target) + beta KL(f(x) || f(x')),  x' maximises the KL from the fixed predictions f(x)
Twice the gradients of a batch, beside the attack's. Zhang et al. 2019. Published attacks begin at x + 0.001 N(0, 1),
because at x the KL has no slope; here they begin at the random start of the attack itself, anywhere in the ball. In
rounds without an attack the loss is the plain one, which is that of x' = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import (
    FORWARD,
    Armed,
    Batch,
    Cohort,
    Defence,
    Divergence,
    Loss,
    NonNegativeFloat,
    Stack,
    apart,
    check_start,
    clean_and_attacked,
    divergence,
    options,
    victim,
)


@options
class Trades(Defence):
    """Each example is in a batch twice, clean and attacked."""

    views: ClassVar[int] = 2

    beta: NonNegativeFloat = 6.0
    """Factor of the divergence; the published code has 6."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self.attacked_by)

    def effort(self, round: int) -> float:  # noqa: A002
        """Beside, a forward pass for the predictions that the attack leads away from."""
        return super().effort(round) + (FORWARD if self.factor(round) else 0.0)

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Show each example clean and attacked."""
        loss = TradeOff(self.beta)

        def arm(rows: Stack, batch: Batch) -> Batch:
            attacked = victim(cohort, rows, batch)
            away = Divergence(torch.log_softmax(attacked.outputs(batch.x), dim=-1))
            return clean_and_attacked(batch, self.perturbed(attacked, batch.x, batch.y, away, factor), loss)

        return arm


@dataclass(frozen=True)
class TradeOff(Loss):
    """Of two views, clean and attacked: the cross-entropy of the first, and beta times the divergence."""

    beta: float

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [..., 2B] of outputs [..., 2B, K] and targets [..., 2B]."""
        clean, attacked, at = apart(outputs, targets)
        own = -clean.gather(-1, at).squeeze(-1)
        return torch.cat((own, self.beta * divergence(clean, attacked)), dim=-1)
