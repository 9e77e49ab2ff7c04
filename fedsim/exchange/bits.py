"""Truths as they cross: eight a byte, the first in the lowest bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def to_bits(truths: Tensor) -> Tensor:
    """Truths, bool [..., n], as uint8 [..., ceil(n / 8)]."""
    filled = functional.pad(truths.to(torch.uint8), (0, -truths.shape[-1] % 8))
    eights = filled.view(*filled.shape[:-1], filled.shape[-1] // 8, 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=truths.device)).sum(dim=-1, dtype=torch.uint8)


def from_bits(codes: Tensor, count: int) -> Tensor:
    """The first `count` truths of codes uint8 [..., b], bool [..., count]."""
    parts = codes.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=codes.device) & 1
    return parts.flatten(-2)[..., :count].bool()
