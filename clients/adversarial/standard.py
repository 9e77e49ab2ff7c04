"""Training on attacked examples: the inner loop of FAL, and with `mix` below 1 that of FAT.

every local step:  x' = A(y, x);  y <- y - lr * grad (1/B) sum_b loss(f_y(x'_b), target_b),  y the current local model
Gradients are as many more a step as the attack takes. Li, Song and Yang 2023, algorithm 1; Zizzo et al. 2020 (a part of
each batch, rounds without an attack at first). With no attack (epsilon, mix or `growth` 0, `warm_up`) a round is
that of a client without a defence to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from fedsim.client import Armed, Batch, Cohort, Defence, Share, Stack, options, victim


@options
class Standard(Defence):
    """The batch's other examples stay clean."""

    of_classes: ClassVar[bool] = False

    mix: Share = 1.0
    """The share of a batch that is attacked: of n examples round(mix n), half to even, drawn at random."""

    def factor(self, round: int) -> float:  # noqa: A002
        """Of epsilon in a round; 0: no attack."""
        return super().factor(round) if self.mix else 0.0

    def effort(self, round: int) -> float:  # noqa: A002
        """The attack's share of the batch."""
        return self.mix * super().effort(round)

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Replace examples by attacked ones."""

        def arm(rows: Stack, batch: Batch) -> Batch:
            attacked = victim(cohort, rows, batch)
            if self.mix == 1.0:
                return replace(batch, x=self.perturbed(attacked, batch.x, batch.y, factor=factor))
            # Of the batch's width, not of what the widest client has: other widths have other last bits. Nor one row.
            width = round(self.mix * batch.y.shape[1])
            if width == 0:
                return batch
            row, place, taken = self._drawn(batch, max(width, min(2, batch.y.shape[1])))
            own = batch.x[row, place]
            found = self.perturbed(attacked, own, batch.y[row, place], factor=factor)
            x = batch.x.clone()
            x[row, place] = torch.where(taken.view(*taken.shape, *(1,) * (x.dim() - 2)), found, own)
            return replace(batch, x=x)

        return arm

    def _drawn(self, batch: Batch, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices of `width` examples of each client in random order: [k, 1], [k, width]; and which are attacked.

        Batches are drawn without replacement, but in an order of their own.
        """
        draw, real = batch.draw, batch.weight > 0
        keys = draw.streams.uniform("mix", draw.clients, real.shape[1:], turn=draw.turn, step=draw.step)
        place = torch.where(real, keys, 1.0).argsort(dim=1, stable=True)[:, :width]
        count = (self.mix * real.sum(dim=1).double()).round()
        row = torch.arange(len(batch), device=place.device).unsqueeze(1)
        return row, place, torch.arange(width, device=place.device) < count.unsqueeze(1)
