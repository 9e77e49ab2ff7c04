"""A Gaussian process for each client of a stack, and the gradient of the function that it believes in.

With points x_a, values y_a, a kernel k and noise s2 a client's posterior, of mean 0 before any data, is

    alpha       = (K + s2 I)^-1 y,  K_ab = k(x_a, x_b)
    mean(x)     = sum_a alpha_a k(x, x_a)
    gradient(x) = d mean / dx = -sum_a alpha_a s_a(x) (x - x_a),  s_a the kernel's slope at |x - x_a|
    C(x)        = v I - J (K + s2 I)^-1 J^T,  column a of J: -s_a(x) (x - x_a),  v = `gradient_variance`

where C is the covariance of the gradient (Rasmussen and Williams 2006, section 9.4; Shu et al. 2023).
A client's values are scaled to [0, 1] first. All is computed in float64, whatever comes in: with points 0.01 apart
and s2 = 1e-6 single precision has no digit left. `C` clients, `n` points a client, `m` queries, `d` parameters.

The numbers of a client depend on its own points alone, to the last bit, at the same n and m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.zeroth_order.surrogates.kernels import Kernel

NOISE = 1e-6
LARGEST_NOISE = 1e-2
# So far apart that every kernel is exactly 0, and its square is still finite.
APART = 1e100
# Of points this close, relative to their size, it is asked whether they are the same; rounding is far below.
CLOSE = 1e-12
# Of a linear congruential generator modulo 2^64 (Knuth's).
FACTOR = 6364136223846793005


def length_scales(dimension: int) -> Tensor:
    """The length scales to choose from: 13, evenly spaced in the logarithm from 0.005 to 10 times sqrt(d).

    Points 0.01 apart in each coordinate are 0.01 sqrt(d) apart. The lower bound keeps the likelihood from
    choosing a scale on which they know nothing of each other, where the gradient vanishes.
    """
    return torch.logspace(math.log10(0.005), 1.0, 13, dtype=torch.float64) * math.sqrt(dimension)


@dataclass(frozen=True)
class GaussianProcess:
    """C fitted Gaussian processes; made by `fit`.

    center [C, d]: what was subtracted from the points. points [C, n, d]: 0 where dropped. kept: bool [C, n].
    lower, scale [C]: a client's least value, and its largest less that; 0, 0 without any.
    length_scale, noise [C]: the chosen ones, the noise in units of scale^2. factor [C, n, n]: lower, of K + s2 I.
    weights [C, n]: alpha times the scale.
    """

    kernel: Kernel
    center: Tensor
    points: Tensor
    kept: Tensor
    lower: Tensor
    scale: Tensor
    length_scale: Tensor
    noise: Tensor
    factor: Tensor
    weights: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """The posterior mean at x [C, m, d], in units of the values: [C, m]."""
        _, _, distances = self._compare(x)
        covariance = self.kernel.value(distances, self._scales())
        return self.lower.unsqueeze(1) + product(covariance, self.weights.unsqueeze(2)).squeeze(2)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient of the mean at x [C, m, d], in units of the values: [C, m, d].

        Exactly 0 for a client with fewer than two points or with equal values.
        """
        moved, _, distances = self._compare(x)
        pull = self.kernel.slope(distances, self._scales()) * self.weights.unsqueeze(1)
        return product(pull, self.points) - pull.sum(dim=2, keepdim=True) * moved

    def uncertainty(self, x: Tensor) -> Tensor:
        """The trace of C(x) at x [C, m, d] for values scaled to [0, 1]: [C, m]; from 0 to d v.

        d v - s^T ((K + s2 I)^-1 * G) s with G_ab = (x - x_a).(x - x_b), elementwise: O(n^2 + n d) a query.
        """
        moved, crossed, distances = self._compare(x)
        slopes = self.kernel.slope(distances, self._scales())
        inverse = torch.cholesky_inverse(self.factor)
        # G_ab = |x|^2 - x.x_a - x.x_b + x_a.x_b, so that no [C, m, n, d] is made.
        squares = (moved * moved).sum(dim=2, keepdim=True)
        outer = (squares - 2.0 * crossed) * product(slopes, inverse)
        inner = product(slopes, inverse * product(self.points, self.points.mT))
        prior = self.points.shape[2] * self.kernel.gradient_variance(self.length_scale).unsqueeze(1)
        known = ((outer + inner) * slopes).sum(dim=2)
        return torch.minimum((prior - known).clamp(min=0.0), prior)

    def covariance(self, x: Tensor) -> Tensor:
        """C(x) at one point x [C, d] for values scaled to [0, 1]: [C, d, d]."""
        _, _, distances = self._compare(x.unsqueeze(1))
        slopes = self.kernel.slope(distances, self._scales())
        jacobian = -slopes.mT * (x.to(torch.float64) - self.center).unsqueeze(1).sub(self.points)
        white = torch.linalg.solve_triangular(self.factor, jacobian, upper=False)
        prior = self.kernel.gradient_variance(self.length_scale)
        return torch.diag_embed(prior.unsqueeze(1).expand(x.shape)) - product(white.mT, white)

    def _compare(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries less the center [C, m, d]; their inner products with the points, and distances: [C, m, n]."""
        moved = x.to(torch.float64) - self.center.unsqueeze(1)
        crossed = product(moved, self.points.mT)
        squares = (moved * moved).sum(dim=2, keepdim=True) + (self.points * self.points).sum(dim=2).unsqueeze(1)
        distances = (squares - 2.0 * crossed).clamp_(min=0.0).sqrt_()
        return moved, crossed, distances.masked_fill_(~self.kept.unsqueeze(1), APART)

    def _scales(self) -> Tensor:
        return self.length_scale.reshape(-1, 1, 1)


def fit(
    kernel: Kernel,
    points: Tensor,
    values: Tensor,
    counts: Tensor,
    *,
    noise: float = NOISE,
    scales: Tensor | None = None,
    profiled: bool = False,
) -> GaussianProcess:
    """Fit a Gaussian process to each client's points [C, n, d] and values [C, n].

    counts: int64 [C]; rows beyond a client's count are padding, whatever they hold. Dropped as well are pairs that are
    not finite, and of equal points all but the latest. A dropped row has 1 on the diagonal of K and 0 beside it.
    noise: s2, above 0, for values scaled to [0, 1]; a client for which the factorisation fails has it ten times
    larger, until it succeeds or s2 is 1e-2.
    profiled: choose the length scale as if the kernel, of variance 1, were times whatever number makes the values the
    most likely at that scale; mean and gradient are the same with any. scales: float64 [L], the length scales to choose
    from by the largest marginal likelihood; by default `length_scales(d)`. O(C L n^3 + C n^2 d), and a few times C n^2
    numbers of memory; one wait for the device.
    """
    grid = length_scales(points.shape[2]) if scales is None else scales
    kept = usable(points, values, counts)
    center, moved = _centered(points, kept)
    squares = (moved * moved).sum(dim=2)
    sizes = squares.unsqueeze(2) + squares.unsqueeze(1)
    squared = (sizes - 2.0 * product(moved, moved.mT)).clamp_(min=0.0)
    kept &= ~_repeated(points, kept, squared <= CLOSE * sizes)
    distances = squared.sqrt_().masked_fill_(~(kept.unsqueeze(2) & kept.unsqueeze(1)), APART)
    distances.diagonal(dim1=1, dim2=2).zero_()
    targets, lower, scale = rescale(values, kept)
    many = kept.sum(dim=1) if profiled else None

    # One scale at a time: its matrices stay in the processor's cache, which halves the time, and leave the memory.
    choice, found, failures = grid.tolist(), list[Tensor](), list[Tensor]()
    for one in choice:
        factor, failed = _factor(kernel.value(distances, one), kept, noise)
        found.append(_evidence(factor, targets, many))
        failures.append(failed)
    evidence = torch.stack(found)
    # The one number for which the host waits: with all factors made, none more is asked for where none has failed.
    again = [place for place, some in enumerate(torch.stack(failures).any(dim=1).tolist()) if some]
    for place in again:
        factor, _ = factorise(kernel.value(distances, choice[place]), kept, noise)
        evidence[place] = _evidence(factor, targets, many)
    # Made where they are needed: a tensor that is sent there would be waited for.
    length_scale = torch.stack([targets.new_full((), one) for one in choice])[evidence.argmax(dim=0)]
    covariance = kernel.value(distances, length_scale.reshape(-1, 1, 1))
    if again:
        factor, used = factorise(covariance, kept, noise)
    else:
        factor, used = _factor(covariance, kept, noise)[0], torch.full_like(length_scale, noise)
    weights = torch.cholesky_solve(targets.unsqueeze(2), factor).squeeze(2) * scale.unsqueeze(1)
    return GaussianProcess(
        kernel=kernel,
        center=center,
        points=moved.masked_fill_(~kept.unsqueeze(2), 0.0),
        kept=kept,
        lower=lower,
        scale=scale,
        length_scale=length_scale,
        noise=used,
        factor=factor,
        weights=weights,
    )


def nearest(points: Tensor, counts: Tensor, center: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Pick each client's `number` stored points nearest to its center, in the order in which they are stored.

    points [C, H, d], of which a client has the first counts [C]; center [C, d]. Of points equally far the earlier
    are taken. Give their places, int64 [C, min(number, H)], with padding last, and how many of them are not padding,
    int64 [C].
    """
    wide = points.to(torch.float64), center.to(torch.float64).unsqueeze(1)
    distances = torch.cdist(*wide, compute_mode="donot_use_mm_for_euclid_dist").squeeze(2)
    # What is not finite is as far as padding, and before it.
    far = ~(distances < torch.inf) | (_places(points) >= counts.unsqueeze(1))
    order = distances.masked_fill_(far, torch.inf).argsort(dim=1, stable=True)
    return order[:, :number].sort(dim=1).values, counts.clamp(max=number)


def usable(points: Tensor, values: Tensor, counts: Tensor) -> Tensor:
    """Which pairs are a client's own and finite: bool [C, n]."""
    return (_places(points) < counts.unsqueeze(1)) & values.isfinite() & points.isfinite().all(dim=2)


def rescale(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale a client's kept values to [0, 1]: float64 [C, n], 0 where dropped or all equal; the least; the range."""
    wide = values.to(torch.float64)
    none = ~kept.any(dim=1)
    lower = wide.masked_fill(~kept, torch.inf).amin(dim=1).masked_fill_(none, 0.0)
    scale = wide.masked_fill(~kept, -torch.inf).amax(dim=1).masked_fill_(none, 0.0) - lower
    divisor = scale.masked_fill(scale == 0.0, 1.0)
    targets = (wide - lower.unsqueeze(1)) / divisor.unsqueeze(1)
    return targets.masked_fill_(~kept, 0.0), lower, scale


def factorise(covariance: Tensor, kept: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Give the Cholesky factor of K + s2 I, [C, n, n], s2 on kept rows only, and the s2 of each client, [C].

    K [C, n, n] is overwritten. Where it fails, s2 grows tenfold up to 1e-2; where that fails the factor is NaN.
    """
    noises = torch.full_like(covariance[:, 0, 0], noise)
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    before, own = diagonal.clone(), kept.to(torch.float64)
    factor, failed = _factor(covariance, kept, noise)
    while bool(failed.any()):
        if noise >= LARGEST_NOISE:
            factor[failed != 0] = torch.nan
            break
        noise = min(10.0 * noise, LARGEST_NOISE)
        rows = failed.nonzero().squeeze(1)
        noises[rows] = noise
        diagonal[rows] = before[rows] + noise * own[rows]
        factor[rows], failed[rows] = torch.linalg.cholesky_ex(covariance[rows])
    return factor, noises


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply [C, m, n] by [C, n, k]; each client's in the same way, whoever is beside it.

    A single row or column of a single client would be summed in another order than those of several.
    """
    rows, columns = left.shape[1], right.shape[2]
    left = left.expand(-1, 2, -1) if rows == 1 else left
    right = right.expand(-1, -1, 2) if columns == 1 else right
    return torch.bmm(left, right)[:, :rows, :columns]


def _factor(covariance: Tensor, kept: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of K + s2 I, [C, n, n], and where it failed, not 0 in [C]; K is overwritten."""
    covariance.diagonal(dim1=1, dim2=2).add_(noise * kept.to(torch.float64))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return factor, failed


def _evidence(factor: Tensor, targets: Tensor, many: Tensor | None = None) -> Tensor:
    """The logarithm of the marginal likelihood less its constant [C], from the Cholesky factor L of K + s2 I.

    -(y' (K + s2 I)^-1 y) / 2 - log det L. many: of so many values each client has, int64 [C], that of s^2 (K + s2 I) at
    its best s^2, y' (K + s2 I)^-1 y / n, and then -n/2 (log s^2 + 1) - log det L.
    """
    white = torch.linalg.solve_triangular(factor, targets.unsqueeze(2), upper=False).squeeze(2)
    logarithms = factor.diagonal(dim1=1, dim2=2).log()
    if many is None:
        evidence = (-0.5 * white * white - logarithms).sum(dim=1)
    else:
        scale = (white * white).sum(dim=1) / many
        evidence = -0.5 * many * (scale.log() + 1.0) - logarithms.sum(dim=1)
    return torch.where(evidence.isnan(), -torch.inf, evidence)


def _centered(points: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of the box around the kept points, [C, d], and the points less that, 0 where dropped.

    |a|^2 + |b|^2 - 2 a.b loses what |a|^2 is larger than |a - b|^2. Least and largest have no order of summation.
    """
    dropped = ~kept.unsqueeze(2)
    wide = points.to(torch.float64)
    least = wide.masked_fill(dropped, torch.inf).amin(dim=1)
    largest = wide.masked_fill(dropped, -torch.inf).amax(dim=1)
    center = (0.5 * (least + largest)).masked_fill_(~kept.any(dim=1, keepdim=True), 0.0)
    return center, (wide - center.unsqueeze(1)).masked_fill_(dropped, 0.0)


def _repeated(points: Tensor, kept: Tensor, close: Tensor) -> Tensor:
    """Which kept points come again later, exactly: bool [C, n]; close: bool [C, n, n], the pairs to look at."""
    keys = _keys(points)
    same = close & (keys.unsqueeze(2) == keys.unsqueeze(1)) & kept.unsqueeze(2) & kept.unsqueeze(1)
    return same.triu_(diagonal=1).any(dim=2)


def _keys(points: Tensor) -> Tensor:
    """A number for each point, int64 [C, n]: equal points have the same, and of others one in 2^64 pairs.

    A polynomial of the coordinates' bits, modulo 2^64, so that no two points are looked at coordinate by coordinate.
    """
    bits = (points.to(torch.float64) + 0.0).view(torch.int64)  # of -0 those of 0
    powers = torch.full((points.shape[2],), FACTOR, device=points.device).cumprod(dim=0)
    return (bits * powers).sum(dim=2)


def _places(points: Tensor) -> Tensor:
    return torch.arange(points.shape[1], device=points.device)
