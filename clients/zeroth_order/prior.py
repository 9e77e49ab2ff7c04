"""Prior-guided RGF: directions that lean towards a guess of the gradient, a client's own previous estimate.

u_j = sqrt(lambda) v + sqrt(1 - lambda) e_j,   v = p / |p|, p the estimate before
e_j uniform on the unit sphere across v
ghat = (1/q) sum_j (f(x + mu u_j) - f(x)) / mu * u_j

lambda may be chosen anew in each step: with a = cos(v, grad f) it is best, in that (E[ghat * g])^2 / E|ghat|^2 is
greatest, at

    0 if a^2 <= 1 / (d + 2q - 2),   1 if a^2 >= (2q - 1) / (d + 2q - 2),   otherwise
    (1 - a^2) (a^2 (d + 2q - 2) - 1) / (2 a^2 d q - a^4 d (d + 2q - 2) - 1)

where a^2 is estimated as s_v^2 / ((d/S) sum_i s_i^2), from a slope s_v along v and slopes s_i along S uniform unit
vectors. Without a previous estimate lambda is 0. The mean of ghat is no multiple of grad f, and about grad f / d where
lambda is 0: lr, or Adam, sets the length of steps.
q evaluations beside f(x), or q + 1 + S; means are over those whose values came, and an estimate of which none did is 0,
and not remembered. Cheng et al. 2019 (P-RGF), whose guess is the gradient of another model.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import Fraction, InputError, PositiveFloat, PositiveInt, Shapes, options, products
from fedsim.zeroth_order import Estimate, Memory, Probe, based, check, mean_told, told


@options
class Prior:
    """A client keeps its previous estimate."""

    values_only: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    weight: Fraction | Literal["optimal"] = "optimal"
    """lambda, or the best one of each step (optimal)."""
    count: PositiveInt = 20
    """q, directions of an estimate."""
    mu: PositiveFloat = 0.01
    """The radius."""
    samples: PositiveInt = 10
    """S, slopes that the optimal weight is estimated from; of optimal only."""

    def __post_init__(self) -> None:
        if self.samples != 10 and self.weight != "optimal":
            raise InputError("samples", self.samples, "is an option of weight = 'optimal' only")

    def evaluations(self, dimension: int) -> int:  # noqa: ARG002
        """One a direction, and those that the weight takes."""
        return self.count + (1 + self.samples if self.weight == "optimal" else 0)

    def state(self, dimension: int) -> Shapes:
        """The previous estimate."""
        return {"previous": (dimension,)}

    def check(self, dimension: int) -> None:
        """Refuse more directions than have names."""
        check("sphere", self.count + self.samples, dimension, "client.estimator.count")

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:
        """Estimate the gradients at x [k, d]."""
        assert base is not None
        center = x.unsqueeze(1)
        guess = unit(memory["previous"]).unsqueeze(1)
        drawn = probe.directions("sphere", self.count + (self.samples if self.weight == "optimal" else 0))
        across = drawn[:, : self.count]
        across = unit(across - products.bmm(across, guess.mT) * guess)
        if self.weight == "optimal":
            tried = torch.cat((guess, drawn[:, self.count :]), dim=1)
            ahead = probe.query(center + self.mu * tried)
            squares = ((ahead - based(base, ahead).unsqueeze(1)) / self.mu).square()
            square = mean_told(squares[:, 1:]) * x.shape[1]
            known = (square > 0) & torch.isfinite(squares[:, 0])
            cosine = torch.where(known, squares[:, 0] / square, 0.0).clamp(max=1.0)
            weight = optimal_weight(cosine, x.shape[1], self.count)
        else:
            weight = torch.full_like(base, self.weight)
        weight = (weight * guess[:, 0].ne(0).any(dim=1)).view(-1, 1, 1)  # a guess of zeros is none
        u = weight.sqrt() * guess + (1.0 - weight).sqrt() * across
        ahead = probe.query(center + self.mu * u)
        value = based(base, ahead)
        found = (ahead - value.unsqueeze(1)) / self.mu
        slopes, share = told(found)
        gradient = products.bmm(slopes.unsqueeze(1), u).squeeze(1) / self.count * share
        came = torch.isfinite(found).any(dim=1, keepdim=True)
        return Estimate(gradient, value, {"previous": torch.where(came, gradient, memory["previous"])})


def optimal_weight(cosine: Tensor, dimension: int, count: int) -> Tensor:
    """The best lambda for squared cosines a^2 of any shape, in d dimensions with q directions; the module's formula."""
    reach = dimension + 2 * count - 2
    inside = (1.0 - cosine) * (cosine * reach - 1.0)
    inside = inside / (2.0 * cosine * dimension * count - cosine.square() * dimension * reach - 1.0)
    best = torch.where(cosine * reach <= 1.0, 0.0, inside)
    return torch.where(cosine * reach >= 2 * count - 1, 1.0, best)


def unit(rows: Tensor) -> Tensor:
    """Vectors [..., d] divided by their lengths; zeros stay."""
    length = rows.square().sum(dim=-1, keepdim=True).sqrt()
    return rows / torch.where(length > 0, length, 1.0)
