"""Values that failed, NaN or infinite: what a search makes of those that came.

Every client by itself, and where all values came, with the same bits as if nothing could fail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.core.finite import surely_finite


def told(slopes: Tensor) -> tuple[Tensor, Tensor | float]:
    """Slopes [k, Q] with 0 in place of those that failed; and by what a mean over Q is to be multiplied, 1 or [k, 1].

    That is Q over the number that came, so that the mean is over these; where none came, it is 0.
    """
    if surely_finite(slopes):
        return slopes, 1.0
    came = torch.isfinite(slopes)
    share = slopes.shape[1] / came.sum(dim=1, keepdim=True).clamp(min=1).to(slopes.dtype)
    return torch.where(came, slopes, 0.0), share


def mean_told(values: Tensor) -> Tensor:
    """Means [k] of those of the values [k, n] that came; NaN where none did."""
    if surely_finite(values):
        return values.mean(dim=1)
    came = torch.isfinite(values)
    partial = torch.where(came, values, 0.0).sum(dim=1) / came.sum(dim=1)
    return torch.where(came.all(dim=1), values.mean(dim=1), partial)


def based(base: Tensor, around: Tensor) -> Tensor:
    """Values [k] at points; where one failed, the mean of those around it, [k, Q], which came.

    Of an estimate along random directions any number that does not depend on them may take the base's place.
    """
    return base if surely_finite(base) else torch.where(torch.isfinite(base), base, mean_told(around))


def ranked_last(values: Tensor) -> Tensor:
    """Values [k, n] at candidates with finite ones, above all others of the client, in place of those that are not.

    Of one that failed that is the client's largest value, and as much again as its values are apart, so that among many
    clients one failure does not decide. One that is infinite is above everybody's. A client of which no value is finite
    keeps its NaN.
    """
    came = torch.isfinite(values)
    high = values.masked_fill(~came, -torch.inf).amax(dim=1, keepdim=True)
    low = values.masked_fill(~came, torch.inf).amin(dim=1, keepdim=True)
    apart = torch.where(high > low, high - low, high.abs().clamp(min=1.0))
    failed = torch.where(came.any(dim=1, keepdim=True), high + apart, torch.nan)
    return torch.where(came, values, torch.where(values == torch.inf, _above_all(values), failed))


def outranked(values: Tensor) -> Tensor:
    """Values [k, n] with one that is above everybody's in place of those that are not finite."""
    return torch.where(torch.isfinite(values), values, _above_all(values))


def _above_all(values: Tensor) -> float:
    """A number whose square is finite, too."""
    return math.sqrt(torch.finfo(values.dtype).max) / 2.0


def saying_nothing(losses: Tensor) -> Tensor:
    """Losses [k, s, n] of n perturbations and, where s = 2, of their mirrors, with others where some failed.

    There stands the mirror's, so that the pair has no slope, or without one the client's mean.
    """
    found = torch.where(torch.isfinite(losses), losses, losses.flip(1))
    return torch.where(torch.isfinite(found), found, mean_told(losses.flatten(1)).view(-1, 1, 1))
