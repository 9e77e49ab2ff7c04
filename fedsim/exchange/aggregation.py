"""Aggregators: from the replies of a cohort, one vector that stands for their centre.

An aggregator sees the replies as `rows` [C, d] and their `weights` [C], at least 0, and returns [d]. The
weights need not sum to one: a strategy's step is

    scale * (sum_i w_i) * centre(rows, w)

so that with `WeightedMean` it is scale * sum_i w_i x_i exactly as the strategy's formula says, and another
aggregator replaces only the centre while the step keeps its length. `WeightedMean`, `MultiKrum` and
`GeometricMedian` use the weights; the others count every row once, whatever its weight. If all weights are 0
the rows count equally.

Every aggregator gives the same bytes for any number of threads, and the same centre for any order of the rows
up to rounding and exact ties, which the lowest row wins. Rows must be finite: the caller leaves out a reply
that is not. A robust one refuses cohorts in which it would outvote nobody: before a run, by `check`, and in it,
where replies are lost, so that such a round is skipped. Work on the rows goes block by block over the coordinates,
so that the memory taken beside them does not grow with C x d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, PositiveFloat, PositiveInt, options
from fedsim.core.plugins import refuse_misspelt
from fedsim.parallel.cores import spread

BLOCK = 2**21
"""Numbers in one block of rows x coordinates: 16 MiB in double precision."""


FEWEST = 3
"""Replies of which a single one is outvoted by the others."""


class Aggregator(ABC):
    """The centre of some rows."""

    by_coordinates: ClassVar[bool] = False
    """Whether each coordinate is judged by itself, so that one which most replies leave at 0 stays there."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Aggregator)

    @abstractmethod
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Give the centre [d] of rows [C, d] under weights [C]; neither is changed. C is at least 1.

        It may be a view of the rows.
        """

    def check(self, cohort: int) -> None:  # noqa: B027
        """Raise `InputError` when a cohort of this many replies is too small; by default any will do."""


@options
class WeightedMean(Aggregator):
    """The weighted mean.

    z = sum_i w_i x_i / sum_i w_i
    Cost C d.
    """

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        if rows.shape[0] == 1 and 0.0 <= float(weights) < torch.inf:
            return rows[0]  # its share is 1: every step of asynchronous FedAvg comes here
        shares = _shares(rows, weights)
        return _by_coordinates(rows, lambda block: _weighted_sum(block, shares))


@options
class Median(Aggregator):
    """The median of each coordinate, unweighted; of an even number of rows, halfway between the middle two.

    z_j = median_i x_ij
    Yin et al. 2018. Cost C log C d. Needs C >= 3: of two rows it is the mean.
    """

    by_coordinates: ClassVar[bool] = True

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        _shares(rows, weights)
        self.check(len(rows))
        return _by_coordinates(rows, lambda block: _middle(_sorted(block)))

    def check(self, cohort: int) -> None:
        """Refuse fewer than 3 replies."""
        _outvoted("median", cohort)


@options
class TrimmedMean(Aggregator):
    """The mean of each coordinate without its max(1, int(beta C)) smallest and as many largest values, unweighted.

    z_j = (1/(C - 2b)) sum_(b < i <= C - b) y_i,  b = max(1, floor(beta C)),  y the values x_ij in ascending order
    Yin et al. 2018. Cost C log C d. Needs C >= 3.
    """

    by_coordinates: ClassVar[bool] = True

    beta: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """The share of the values that is cut on each side, one at least."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        _shares(rows, weights)
        self.check(len(rows))
        count = len(rows)
        cut = max(1, int(self.beta * count))
        return _by_coordinates(rows, lambda block: _mean(_sorted(block)[:, cut : count - cut]))

    def check(self, cohort: int) -> None:
        """Refuse fewer than 3 replies."""
        _outvoted("trimmed_mean", cohort)


@options
class Krum(Aggregator):
    """The row with the smallest sum of squared distances to its C - malicious - 2 nearest others.

    z = x_i,  i = argmin_i s_i,  s_i = sum_(j in N_i) |x_i - x_j|^2,  N_i the nearest others
    Blanchard et al. 2017. Cost C^2 d. Needs C >= 2 malicious + 3. Rows with equal sums (two that are
    each other's only neighbour always have) are told apart by the sum of their distances to all rows.
    """

    malicious: PositiveInt
    """How many rows may be anything."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        _shares(rows, weights)
        self.check(len(rows))
        return rows[_krum(rows, self.malicious, 1)[0]].clone()

    def check(self, cohort: int) -> None:
        """Refuse fewer than 2 malicious + 3 replies."""
        _enough("krum", self.malicious, 2 * self.malicious + 3, cohort)


@options
class MultiKrum(Aggregator):
    """The weighted mean of the `keep` rows that have the best Krum scores.

    z = sum_(i in K) w_i x_i / sum_(i in K) w_i,  K the rows with the smallest s_i of `krum`
    Blanchard et al. 2017, section 5, with the weights of the replies, as in Flower. Cost C^2 d. Needs
    C >= 2 malicious + 3 and keep <= C - malicious.
    """

    malicious: PositiveInt
    """How many rows may be anything."""
    keep: PositiveInt
    """How many rows are averaged, at most C - malicious."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        _shares(rows, weights)
        _enough("multi_krum", self.malicious, 2 * self.malicious + 3, len(rows))
        # Where replies have failed, fewer are left to keep. In row order, so that the sum does not depend on the ranks.
        keep = min(self.keep, len(rows) - self.malicious)
        kept = _krum(rows, self.malicious, keep).sort().values
        shares = _shares(rows[kept, :0], weights[kept])
        return _by_coordinates(rows, lambda block: _weighted_sum(block[kept], shares))

    def check(self, cohort: int) -> None:
        """Refuse fewer than 2 malicious + 3 replies, and to keep more than can be honest."""
        _enough("multi_krum", self.malicious, 2 * self.malicious + 3, cohort)
        if self.keep > cohort - self.malicious:
            remedy = f"of {cohort} replies with {self.malicious} malicious, at most"
            raise InputError("aggregation.keep", self.keep, f"{remedy} {cohort - self.malicious} can be kept")


@options
class Bulyan(Aggregator):
    """Krum's choice again and again, then per coordinate the mean of what lies closest to the median.

    z_j = (1/(m - 2 malicious)) sum_(i in M_j) x_ij,  m = C - 2 malicious rows picked
    M_j are those m - 2 malicious of the picked rows whose values are closest to the median of all m, unweighted. Krum
    picks a row and takes it out of the candidates, m times. When few candidates remain, a row's score counts at least
    its nearest one. El Mhamdi et al. 2018. Cost C^2 (C + d). Needs C >= 4 malicious + 3.
    """

    by_coordinates: ClassVar[bool] = True

    malicious: PositiveInt
    """How many rows may be anything."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        _shares(rows, weights)
        self.check(len(rows))
        picked = _iterated_krum(rows, self.malicious)
        close = len(picked) - 2 * self.malicious
        return _by_coordinates(rows, lambda block: _mean(_closest(_sorted(block[picked]), close)))

    def check(self, cohort: int) -> None:
        """Refuse fewer than 4 malicious + 3 replies."""
        _enough("bulyan", self.malicious, 4 * self.malicious + 3, cohort)


@options
class GeometricMedian(Aggregator):
    """The point z with the smallest sum_i w_i |z - x_i|, by the smoothed Weiszfeld iteration.

    z <- sum_i b_i x_i / sum_i b_i,  b_i = w_i / max(smoothing, |z - x_i|)
    It begins at the coordinates' medians and ends when z moves by at most `tolerance` times the weighted mean of
    |z - x_i|, or after `iterations` steps. Pillutla et al. 2022, algorithm 2. Cost C d an iteration, in double
    precision. Needs C >= 3: between two rows of equal weight every point is one.
    """

    smoothing: PositiveFloat = 1e-6
    """The least distance that a row counts with."""
    iterations: PositiveInt = 100
    """At most so many steps of the iteration."""
    tolerance: NonNegativeFloat = 1e-6
    """It ends when z moves by at most this times the weighted mean distance of the rows."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See `Aggregator`."""
        shares = _shares(rows, weights)
        self.check(len(rows))
        # A mean would start as far away as the outliers are, and overflow with them.
        centre = Median()(rows, weights).to(torch.float64)
        squared = torch.zeros_like(shares)
        for columns in _columns(rows):
            squared += _squares(rows[:, columns].to(torch.float64), centre[columns])
        distances = squared.sqrt_()
        for _ in range(self.iterations):
            pull = shares / distances.clamp(min=self.smoothing)
            distances, moved = _move(rows, pull / pull.sum(), centre)
            if moved <= self.tolerance * (shares * distances).sum():
                break
        return centre.to(rows.dtype)

    def check(self, cohort: int) -> None:
        """Refuse fewer than 3 replies."""
        _outvoted("geometric_median", cohort)


def halving_sum(values: Tensor, dim: int) -> Tensor:
    """Sum over `dim`, in an order that depends on nothing but its length; `values` is overwritten.

    The second half is added to the first until one is left. Only elementwise additions are used, so the bytes
    do not depend on threads, devices or the other dimensions, as those of `torch.sum` may.
    """
    count = values.shape[dim]
    first = values.movedim(dim, 0)
    # Through NumPy a small piece takes a fifth of the time; it is the same memory, and the same additions.
    on_host = values.device.type == "cpu"
    pieces: Any = first.numpy() if on_host else first
    while count > 1:
        half = (count + 1) // 2
        pieces[: count - half] += pieces[half:count]
        count = half
    return torch.from_numpy(pieces[0, ...]) if on_host else first[0]


def _shares(rows: Tensor, weights: Tensor) -> Tensor:
    """Turn weights into shares of their sum: float64 [C]; equal ones when all are 0."""
    if rows.ndim != 2 or weights.shape != rows.shape[:1] or not len(rows):
        raise ValueError(f"rows {list(rows.shape)} and weights {list(weights.shape)} are not [C, d] and [C]")
    wide = weights.to(torch.float64)
    if not bool(((wide >= 0) & (wide < torch.inf)).all()):
        raise ValueError("an aggregator's weights are finite and at least 0")
    total = halving_sum(wide.clone(), 0)
    return wide / total if total > 0 else torch.full_like(wide, 1 / len(wide))


def _columns(rows: Tensor) -> Iterator[slice]:
    width = max(1, BLOCK // len(rows))
    return (slice(start, start + width) for start in range(0, rows.shape[1], width))


def _by_coordinates(rows: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `rule`, a function of each coordinate alone, block by block, on all cores: [C, d] to [d]."""
    if rows.numel() <= BLOCK:
        return rule(rows)
    centre = rows.new_empty(rows.shape[1])

    def apply(columns: slice) -> None:
        centre[columns] = rule(rows[:, columns])

    spread(apply, [*_columns(rows)])
    return centre


def _weighted_sum(block: Tensor, shares: Tensor) -> Tensor:
    return halving_sum(block * shares.to(block.dtype).unsqueeze(1), 0)


def _mean(block: Tensor) -> Tensor:
    """Average each row of [b, C]; `block` is overwritten."""
    return halving_sum(block, 1) / block.shape[1]


def _sorted(block: Tensor) -> Tensor:
    """Each coordinate's values in ascending order: [C, b] to [b, C]."""
    across = block.T.contiguous()
    if across.device.type != "cpu":
        return across.sort(dim=1).values
    # On the CPU NumPy sorts short rows about fifteen times as fast as torch.
    return torch.from_numpy(np.sort(across.detach().numpy(), axis=1))


def _middle(ordered: Tensor) -> Tensor:
    count = ordered.shape[1]
    return 0.5 * ordered[:, (count - 1) // 2] + 0.5 * ordered[:, count // 2]


def _closest(ordered: Tensor, count: int) -> Tensor:
    """Pick the `count` values of each row of [b, C] closest to its median; of two as close, the lower."""
    away = (ordered - _middle(ordered).unsqueeze(1)).abs_()
    return ordered.gather(1, away.argsort(dim=1, stable=True)[:, :count])


def _outvoted(kind: str, cohort: int) -> None:
    """Refuse a cohort in which a single reply is no minority."""
    if cohort < FEWEST:
        remedy = f"needs at least {FEWEST} replies to outvote one, and the cohort has {cohort}; select more clients"
        raise InputError("aggregation.kind", kind, remedy)


def _enough(kind: str, malicious: int, needed: int, cohort: int) -> None:
    if cohort < needed:
        raise InputError(
            "aggregation.malicious",
            malicious,
            f"{kind} then needs at least {needed} replies, and the cohort has {cohort}; "
            "select more clients or lower it",
        )


def _distances(rows: Tensor) -> Tensor:
    """Squared distances between rows: float64 [C, C], -1 to oneself so that sorting puts it first.

    Differences are taken before they are squared: |x|^2 + |y|^2 - 2 x y would lose small distances between
    long rows.
    """
    count = len(rows)
    upper = torch.zeros(count * (count - 1) // 2, dtype=torch.float64, device=rows.device)
    for columns in _columns(rows):
        upper += torch.pdist(rows[:, columns].to(torch.float64)).square_()
    squared = torch.full((count, count), -1.0, dtype=torch.float64, device=rows.device)
    first, second = torch.triu_indices(count, count, offset=1, device=rows.device)
    squared[first, second] = upper
    squared[second, first] = upper
    return squared


def _ranked(near: Tensor, every: Tensor) -> Tensor:
    """Rows by ascending `near`; ties by `every`, then by index."""
    order = every.argsort(stable=True)
    return order[near[order].argsort(stable=True)]


def _krum(rows: Tensor, malicious: int, keep: int) -> Tensor:
    """Rank rows by Krum score and give the `keep` best, best first: int64 [keep]."""
    nearest = _distances(rows).sort(dim=1).values[:, 1:]
    near = nearest[:, : len(rows) - malicious - 2].sum(dim=1)
    return _ranked(near, nearest.sum(dim=1))[:keep]


def _iterated_krum(rows: Tensor, malicious: int) -> Tensor:
    """Krum's choices, each among the rows that are left: int64 [C - 2 malicious], ascending."""
    nearest, others = (ranked[:, 1:] for ranked in _distances(rows).sort(dim=1))
    left = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    left_others = left[others]
    for candidates in range(len(rows), 2 * malicious, -1):
        neighbours = max(1, candidates - malicious - 2)
        close = left_others & (left_others.cumsum(dim=1) <= neighbours)
        near = torch.where(close, nearest, 0.0).sum(dim=1).masked_fill_(~left, torch.inf)
        every = torch.where(left_others, nearest, 0.0).sum(dim=1).masked_fill_(~left, torch.inf)
        chosen = _ranked(near, every)[0]
        left[chosen] = False
        left_others &= others != chosen
    return (~left).nonzero().flatten()


def _move(rows: Tensor, shares: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Set `centre` [d] to sum_i shares_i x_i; give its distances to the rows [C] and how far it moved."""
    squared, moved = torch.zeros_like(shares), torch.zeros_like(shares[0])
    for columns in _columns(rows):
        block = rows[:, columns].to(torch.float64)
        new = _weighted_sum(block, shares)
        moved += halving_sum((new - centre[columns]).square_(), 0)
        centre[columns] = new
        squared += _squares(block, new)
    return squared.sqrt_(), moved.sqrt_()


def _squares(block: Tensor, point: Tensor) -> Tensor:
    return halving_sum((block - point).square_(), 1)
