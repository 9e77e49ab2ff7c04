"""MART: misclassification-aware training, which cares most for predictions that were already doubtful.

minimise  BCE(f(x'), y) + lambda KL(f(x) || f(x')) (1 - p_y(x)),  BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x'))
x' maximises the cross-entropy. Twice the gradients of a batch, beside the attack's. Wang et al. 2020; all of it is
differentiated, as in the published code, whose constants against log 0 are not needed here. In rounds without an attack
the loss is the plain one, not that of x' = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import (
    Armed,
    Batch,
    Cohort,
    Defence,
    Loss,
    NonNegativeFloat,
    Stack,
    apart,
    clean_and_attacked,
    divergence,
    options,
    victim,
)


@options
class Mart(Defence):
    """Each example is in a batch twice, clean and attacked."""

    views: ClassVar[int] = 2

    regularisation: NonNegativeFloat = 6.0
    """lambda; the published code has 6."""

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Show each example clean and attacked."""
        loss = Boosted(self.regularisation)

        def arm(rows: Stack, batch: Batch) -> Batch:
            found = self.perturbed(victim(cohort, rows, batch), batch.x, batch.y, factor=factor)
            return clean_and_attacked(batch, found, loss)

        return arm


@dataclass(frozen=True)
class Boosted(Loss):
    """Of two views, clean and attacked: the doubt times the divergence, and the boosted cross-entropy of the second."""

    regularisation: float

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [..., 2B] of outputs [..., 2B, K] and targets [..., 2B]."""
        clean, attacked, at = apart(outputs, targets)
        rival = attacked.scatter(-1, at, -torch.inf).argmax(dim=-1, keepdim=True)
        others = attacked.scatter(-1, rival, -torch.inf).logsumexp(dim=-1)  # log(1 - p_rival), finite at p_rival = 1
        boosted = -attacked.gather(-1, at).squeeze(-1) - others
        doubt = -torch.expm1(clean.gather(-1, at).squeeze(-1))
        return torch.cat((self.regularisation * divergence(clean, attacked) * doubt, boosted), dim=-1)
