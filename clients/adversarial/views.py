"""Batches that show each example twice."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.client import Batch, Loss


def clean_and_attacked(batch: Batch, attacked: Tensor, loss: Loss) -> Batch:
    """The examples [k, B, ...] as they are, then as attacked [k, B, ...], under a loss of two views: [k, 2B, ...]."""
    x, y, weight = torch.cat((batch.x, attacked), dim=1), batch.y.repeat(1, 2), batch.weight.repeat(1, 2)
    return replace(batch, x=x, y=y, weight=weight, loss=loss)


def apart(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log probabilities [..., B, K] of the clean view and of the attacked one, and the targets' places [..., B, 1]."""
    clean, attacked = torch.log_softmax(outputs, dim=-1).chunk(2, dim=-2)
    return clean, attacked, targets.chunk(2, dim=-1)[0].unsqueeze(-1)
