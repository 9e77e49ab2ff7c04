"""Random Fourier features: a surrogate of M numbers, which clients can send and a server can average.

    phi(x) = sqrt(2/M) cos(Omega x + b),  rows of Omega ~ N(0, I/l^2),  b ~ U[0, 2 pi)
    k(x, x') ~ phi(x).phi(x'),  k the RBF kernel of length scale l
    w = Phi^T (Phi Phi^T + s2 I)^-1 y,  rows of Phi: phi(x_a)
    gradient(x) = d (w.phi(x)) / dx = -sqrt(2/M) Omega^T (w * sin(Omega x + b))

Rahimi and Recht 2007; Shu et al. 2023. The gradient is linear in w: that of a mean of weights is the mean of the
gradients. Omega and b are everyone's. `C` clients, `n` points a client, `d` parameters, `M` features; float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.streams import SERVER, Streams
from fedsim.surrogates.gaussian_process import NOISE, factorise, product, rescale, usable


@dataclass(frozen=True)
class RandomFeatures:
    """Features that are shared by everyone; made by `draw`. frequencies: Omega [M, d]. phases: b [M]."""

    frequencies: Tensor
    phases: Tensor

    def features(self, x: Tensor) -> Tensor:
        """The features phi at x [..., d]: [..., M]."""
        return self._angles(x).cos_().mul_(self._amplitude())

    def fit(self, points: Tensor, values: Tensor, counts: Tensor, *, noise: float = NOISE) -> Tensor:
        """Fit weights to each client's points [C, n, d] and values [C, n]: [C, M], in units of the values.

        counts: int64 [C]; rows beyond a client's count are padding, whatever they hold; pairs that are not finite are
        dropped. The values are scaled to [0, 1] first; the weights are 0 where values are equal or fewer than two.
        noise: s2, above 0, for the scaled values; where the factorisation fails it grows as a Gaussian process's does.
        O(C n M (d + n)), and a little more than C n M numbers of memory.
        """
        kept = usable(points, values, counts)
        targets, _, scale = rescale(values, kept)
        dropped = ~kept.unsqueeze(2)
        features = self.features(points.masked_fill(dropped, 0.0)).masked_fill_(dropped, 0.0)
        covariance = product(features, features.mT)
        covariance.diagonal(dim1=1, dim2=2).masked_fill_(~kept, 1.0)
        factor, _ = factorise(covariance, kept, noise)
        solved = torch.cholesky_solve(targets.unsqueeze(2), factor).mT
        return product(solved, features).squeeze(1) * scale.unsqueeze(1)

    def gradient(self, weights: Tensor, x: Tensor) -> Tensor:
        """The surrogate's gradient at x [C, d] under weights [C, M], or [M] for all: [C, d]."""
        return self._angles(x).sin_().mul_(weights).mul_(-self._amplitude()) @ self.frequencies

    def _angles(self, x: Tensor) -> Tensor:
        return (x.to(torch.float64) @ self.frequencies.T).add_(self.phases)

    def _amplitude(self) -> float:
        return math.sqrt(2.0 / len(self.phases))


def draw(
    streams: Streams, number: int, dimension: int, *, length_scale: float = 1.0, device: torch.device | str = "cpu"
) -> RandomFeatures:
    """Draw `number` features, M, of the RBF kernel in d dimensions, as the server: the same for the same run's seed."""
    owner = torch.tensor([SERVER], device=device)
    normal = streams.normal("feature-frequencies", owner, (number, dimension), dtype=torch.float64)
    uniform = streams.uniform("feature-phases", owner, (number,), dtype=torch.float64)
    return RandomFeatures(normal[0] / length_scale, uniform[0] * (2.0 * math.pi))
