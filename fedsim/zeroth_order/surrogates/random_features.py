"""Random Fourier features: a surrogate of M numbers, which clients can send and a server can average.

    phi(x) = sqrt(2/M) cos(Omega x + b),  rows of Omega ~ N(0, I/l^2),  b ~ U[0, 2 pi)
    k(x, x') ~ phi(x).phi(x'),  k the RBF kernel of length scale l
    w = Phi^T (Phi Phi^T + s2 I)^-1 y,  rows of Phi: phi(x_a)
    gradient(x) = d (w.phi(x)) / dx = -sqrt(2/M) Omega^T (w * sin(Omega x + b))

Rahimi and Recht 2007; Shu et al. 2023. The gradient is linear in w: that of a mean of weights is the mean of the
gradients. Omega and b are everyone's. `C` clients, `n` points a client, `d` parameters, `M` features; float64.

To fit, the cosines in Phi are rounded to multiples of 2^-p, p = 19 for M = 10,000, so fine that M products of two
such numbers fit into float64. Phi Phi^T has then no rounding error, and the same bits in whatever order and parts it
is summed, so that a fit may use what an earlier one has computed, or not have it (`Known`), and gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.core.streams import SERVER, Streams
from fedsim.nets import products
from fedsim.zeroth_order.surrogates.gaussian_process import NOISE, factorise, rescale, usable

BLOCK = 500
"""Features of which all cosines are in double precision at once: those of 500 points, 2 MB, stay in the cache."""


class Known(Protocol):
    """What was computed for a client, until it is taken; it may be lost. `fedsim.engine.scratch.Scratch` is one."""

    def take(self, client: int) -> Any | None:
        """What is kept of the client, which is from now on the caller's; or None."""
        ...

    def put(self, client: int, value: Any, nbytes: int) -> None:
        """Keep it, if there is room."""
        ...


@dataclass(frozen=True)
class RandomFeatures:
    """Features that are shared by everyone; made by `draw`. frequencies: Omega [M, d]. phases: b [M]."""

    frequencies: Tensor
    phases: Tensor

    def features(self, x: Tensor) -> Tensor:
        """The features phi at x [..., d]: [..., M]."""
        return self._angles(x).cos_().mul_(self._amplitude())

    def fit(
        self,
        points: Tensor,
        values: Tensor,
        counts: Tensor,
        *,
        noise: float = NOISE,
        known: Known | None = None,
        clients: Sequence[int] = (),
    ) -> Tensor:
        """Fit weights to each client's points [C, n, d] and values [C, n]: [C, M], in units of the values.

        counts: int64 [C]; rows beyond a client's count are padding, whatever they hold; pairs that are not finite are
        dropped. The values are scaled to [0, 1] first; the weights are 0 where values are equal or fewer than two.
        noise: s2, above 0, for the scaled values; where the factorisation fails it grows as a Gaussian process's does.
        known: where to find and leave the cosines of the `clients` [C], by which a point that comes again costs n^2
        instead of M (d + n). One client after the other: O(C n M (d + n)), and n M / 2 numbers of memory for all,
        or for each that is known.
        """
        kept = usable(points, values, counts)
        targets, _, scale = rescale(values, kept)
        weights = torch.zeros((len(points), len(self.phases)), dtype=torch.float64, device=points.device)
        for row in range(len(points)):
            own = kept[row].nonzero().flatten()
            found = known.take(clients[row]) if known is not None else None
            table = found if isinstance(found, _Cosines) and found.of(self, points.shape[1]) else None
            table = table or _Cosines(self, points.shape[1])
            if len(own):
                weights[row] = table.weights(points[row, own].to(torch.float64), targets[row, own], noise) * scale[row]
            if known is not None:
                known.put(clients[row], table, table.nbytes)
        return weights

    def gradient(self, weights: Tensor, x: Tensor) -> Tensor:
        """The surrogate's gradient at x [C, d] under weights [C, M], or [M] for all: [C, d]."""
        slopes = self._angles(x).sin_().mul_(weights).mul_(-self._amplitude())
        return products.mm(slopes, self.frequencies)

    def rounded(self, x: Tensor) -> Tensor:
        """The cosines at x [n, d] as they are fitted, multiples of 2^-p: [n, M]; sqrt(M/2) phi otherwise."""
        # So large a number has no smaller digits than 2^-p: what is added to it is rounded there.
        large = 1.5 * 2.0 ** (52 - self._places())
        return self._angles(x).cos_().add_(large).sub_(large)

    def _angles(self, x: Tensor) -> Tensor:
        rows = x.to(torch.float64).reshape(-1, x.shape[-1])
        return products.mm(rows, self.frequencies.T).add_(self.phases).view(*x.shape[:-1], len(self.phases))

    def _amplitude(self) -> float:
        return math.sqrt(2.0 / len(self.phases))

    def _places(self) -> int:
        """p: a sum of M products of multiples of 2^-p up to 1 needs 53 bits at most, and one of them float32's 24."""
        return min(23, (53 - (len(self.phases) - 1).bit_length()) // 2)


class _Cosines:
    """The rounded cosines of up to n points of one client, and the products of any two: computed once for each point.

    A point keeps its row as long as it is in every fit.
    """

    def __init__(self, basis: RandomFeatures, capacity: int) -> None:
        device = basis.phases.device
        self._basis = basis
        self._row_of: dict[bytes, int] = {}
        self._cosines = torch.zeros((capacity, len(basis.phases)), dtype=torch.float32, device=device)
        self._products = torch.zeros((capacity, capacity), dtype=torch.float64, device=device)

    def of(self, basis: RandomFeatures, capacity: int) -> bool:
        """Whether it is of these features and as large."""
        return self._basis is basis and len(self._cosines) == capacity

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self._cosines.nbytes + self._products.nbytes

    def weights(self, points: Tensor, targets: Tensor, noise: float) -> Tensor:
        """The weights fitted to points [m, d] and targets [m]: [M]."""
        rows = self._rows(points)
        chosen = torch.tensor(rows, device=points.device)
        covariance = self._products[chosen[:, None], chosen].mul_(2.0 / self._cosines.shape[1])
        everyone = torch.ones((1, len(rows)), dtype=torch.bool, device=points.device)
        factor, _ = factorise(covariance.unsqueeze(0), everyone, noise)
        solved = torch.cholesky_solve(targets.unsqueeze(1), factor[0])
        total = torch.zeros_like(self._basis.phases)
        # In the points' order and not the table's, which depends on what was known.
        for row, share in zip(rows, solved[:, 0].tolist(), strict=True):
            total.add_(self._cosines[row], alpha=share)
        return total.mul_(self._basis._amplitude())

    def _rows(self, points: Tensor) -> list[int]:
        """The rows of points [m, d], of which those that are new take the place of those that are not among them."""
        keys = [one.tobytes() for one in points.cpu().numpy()]
        wanted = dict(zip(keys, range(len(keys)), strict=True))
        self._row_of = {key: row for key, row in self._row_of.items() if key in wanted}
        taken = set(self._row_of.values())
        free = [row for row in range(len(self._cosines)) if row not in taken]
        fresh = {key: place for key, place in wanted.items() if key not in self._row_of}
        self._row_of |= zip(fresh, free, strict=False)
        if fresh:
            self._compute(points[list(fresh.values())], torch.tensor(free[: len(fresh)], device=points.device))
        return [self._row_of[key] for key in keys]

    def _compute(self, points: Tensor, rows: Tensor) -> None:
        """Fill in the rows of these points."""
        cosines = self._basis.rounded(points)
        self._cosines[rows] = cosines.float()
        known = self._cosines[: 1 + max(self._row_of.values())]
        products = torch.zeros((len(cosines), len(known)), dtype=torch.float64, device=cosines.device)
        # Exact, so in any parts. New memory for each would take longer than what is computed with it.
        wide = torch.empty((len(known), BLOCK), dtype=torch.float64, device=cosines.device)
        for some, own in zip(torch.split(known, BLOCK, dim=1), torch.split(cosines, BLOCK, dim=1), strict=True):
            products.addmm_(own, wide[:, : some.shape[1]].copy_(some).T)
        self._products[rows, : len(known)] = products
        self._products[: len(known), rows] = products.T


def draw(
    streams: Streams, number: int, dimension: int, *, length_scale: float = 1.0, device: torch.device | str = "cpu"
) -> RandomFeatures:
    """Draw `number` features, M, of the RBF kernel in d dimensions, as the server: the same from the same streams."""
    owner = torch.full((1,), SERVER, device=device)
    normal = streams.normal("feature-frequencies", owner, (number, dimension), dtype=torch.float64)
    uniform = streams.uniform("feature-phases", owner, (number,), dtype=torch.float64)
    return RandomFeatures(normal[0] / length_scale, uniform[0] * (2.0 * math.pi))
