"""Client-level privacy: of a round's changes one leaves the server, their clipped and noised sum.

    Delta = (sum_i Delta_i min(1, C / |Delta_i|) + N(0, z^2 C^2)) / cohort

with the expected cohort, which is no secret, whoever has answered; McMahan et al. 2018. Nobody weighs more than others.
A change is clipped as it enters the sum, after all that was done to it on its way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.aggregation import BLOCK, halving_sum
from fedsim.exchange.messages import Replies
from fedsim.nets.stack import Layout
from fedsim.privacy.banded import Matrix
from fedsim.privacy.options import Adaptive, Clipping, Privacy

NOISE = "privacy"
"""The name under which noise is drawn, and under which the server remembers that of rounds before."""
CLIP = "clip"
"""The name under which the server remembers a bound that moves."""
Kept = dict[str, Tensor]


@dataclass(frozen=True)
class Release:
    """How the sum of a round is made. options: of the experiment. multiplier: z. cohort: how many clients are expected.

    layout: of the model. factor: C of banded noise, [T, T]; None: noise is independent.
    """

    options: Privacy
    multiplier: float
    cohort: float
    layout: Layout
    streams: Streams
    factor: Matrix | None = None

    def begin(self, like: Tensor) -> Kept:
        """What the server remembers for it at first. like: the model [d]."""
        kept: Kept = {}
        if self.options.adaptive is not None and self.options.clip is not None:
            kept[CLIP] = torch.tensor(self.options.clip, dtype=torch.float64)
        if self.options.bands is not None:
            kept[NOISE] = like.new_zeros(self.options.bands - 1, len(like))
        return kept

    def __call__(self, kept: Kept, replies: Replies) -> tuple[Replies, Kept, dict[str, float]]:
        """The replies of a round as one of nobody's, what is remembered, and what was observed.

        Where clients add the noise and too few have come, it is none.
        """
        count, options, turn = len(replies), self.options, replies.round
        if options.least is not None and count < options.least:
            return replies.where(torch.zeros(count, dtype=torch.bool)), kept, {}
        rows = replies.payload["delta"]
        clip = float(kept[CLIP]) if CLIP in kept else options.clip
        observed: dict[str, float] = {}
        if clip is not None:
            rows, unclipped = clipped(rows, bounds_of(options.clipping, self.layout, clip), self._widths)
            observed = {"clip": clip}
            if count:
                observed["unclipped"] = unclipped / count
            kept = {**kept, **self._moved(clip, unclipped, count, turn)}
        deviation = self._deviation * (clip or 0.0)
        if options.least is not None and deviation:
            rows = _noised(rows, deviation / math.sqrt(options.least), replies.clients, self.streams, turn)
            deviation = 0.0
        total = replies.combine(replies.weights("uniform"), scale=count / self.cohort, rows=rows)
        if deviation:
            noise, kept = self._noise(kept, total, turn)
            total = total + noise * (deviation / self.cohort)
        return replies.as_one(total), kept, observed

    @property
    def _widths(self) -> list[int]:
        return [self.layout.dimension] if self.options.clipping == "flat" else self.layout.sizes

    @property
    def _deviation(self) -> float:
        """The noise on the sum of changes, in units of the bound; some of z goes into the count of unclipped ones.

        z^-2 = deviation^-2 + (2 count_noise)^-2, since what is counted is +-1/2 of each client.
        """
        adaptive = self.options.adaptive
        if adaptive is None or not self.multiplier:
            return self.multiplier
        return 1.0 / math.sqrt(self.multiplier**-2 - (2.0 * count_noise(adaptive, self.cohort)) ** -2)

    def _moved(self, clip: float, unclipped: int, count: int, turn: int) -> Kept:
        """The bound of the next round, where it moves. unclipped: of so many.

        Of each client 1[norm <= C] - 1/2 is counted, half as much as 1 and so with half the noise, and 1/2 is added to
        the mean: where all who are expected have come that is the share of those unclipped.
        """
        adaptive = self.options.adaptive
        if adaptive is None:
            return {}
        drawn = self.streams.normal(f"{NOISE}/count", torch.tensor([SERVER]), turn=turn, dtype=torch.float64)
        noise = count_noise(adaptive, self.cohort) if self.multiplier else 0.0
        share = (unclipped - count / 2.0 + noise * float(drawn)) / self.cohort + 0.5
        return {CLIP: torch.tensor(clip * math.exp(-adaptive.rate * (share - adaptive.quantile)), dtype=torch.float64)}

    def _noise(self, kept: Kept, like: Tensor, turn: int) -> tuple[Tensor, Kept]:
        """Noise of a round of standard deviation 1, [d], or its row of C^-1 Z; and the rows that later ones need.

        y_t = (z_t - sum_{0 < j < b} C[t, t - j] y_{t-j}) / C[t, t]
        """
        owner = torch.tensor([SERVER], device=like.device)
        drawn = self.streams.normal(NOISE, owner, like.shape, turn=turn, dtype=like.dtype)[0]
        if self.factor is None:
            return drawn, kept
        before, row = kept[NOISE], self.factor[turn]
        for back in range(1, min(len(before), turn) + 1):
            drawn = drawn - row[turn - back] * before[back - 1]
        drawn = drawn / row[turn]
        return drawn, {**kept, NOISE: torch.cat((drawn.unsqueeze(0), before))[: len(before)]}


def bounds_of(clipping: Clipping, layout: Layout, clip: float) -> list[float]:
    """The bound of each part that is clipped by itself: of the whole, or of each tensor of the model."""
    if clipping == "flat":
        return [clip]
    sizes = layout.sizes
    if clipping == "layers":
        return [clip / math.sqrt(len(sizes))] * len(sizes)
    return [clip * math.sqrt(size / layout.dimension) for size in sizes]


def count_noise(adaptive: Adaptive, cohort: float) -> float:
    """The standard deviation of the noise on the count of unclipped clients."""
    return cohort / 20.0 if adaptive.count_noise is None else adaptive.count_noise


def clipped(rows: Tensor, bounds: list[float], widths: list[int]) -> tuple[Tensor, int]:
    """Rows [k, d] with each part of so many numbers no longer than its bound; how many rows were not too long anywhere.

    Norms are taken in double precision, where no square overflows.
    """
    found, kept = rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    first = 0
    for bound, width in zip(bounds, widths, strict=True):
        part = slice(first, first + width)
        norms = _norms(rows[:, part])
        long = norms > bound
        if bool(long.any()):
            found = found.clone() if found is rows else found
            factors = bound / norms[long]
            found[long, part] = rows[long, part] * factors.unsqueeze(1).to(rows.dtype)
        kept &= ~long
        first += width
    return found, int(kept.sum())


def _norms(rows: Tensor) -> Tensor:
    """The norm of each row, float64 [k]."""
    height = max(1, BLOCK // max(1, rows.shape[1]))
    squares = rows.new_zeros(len(rows), dtype=torch.float64)
    for first in range(0, len(rows), height):
        part = slice(first, first + height)
        squares[part] = halving_sum(rows[part].to(torch.float64).square(), 1)
    return squares.sqrt()


def _noised(rows: Tensor, deviation: float, clients: Tensor, streams: Streams, turn: int) -> Tensor:
    """Rows [k, d] with noise of each client's own."""
    found, height = torch.empty_like(rows), max(1, BLOCK // max(1, rows.shape[1]))
    for first in range(0, len(rows), height):
        part = slice(first, first + height)
        owners = clients[part].to(rows.device)
        drawn = streams.normal(NOISE, owners, rows.shape[1:], turn=turn, dtype=rows.dtype)
        found[part] = rows[part] + deviation * drawn
    return found


def spent_columns(epsilon: float, delta: float) -> Mapping[str, float]:
    """What a row says of privacy; nothing where there is no guarantee."""
    return {"epsilon": epsilon, "delta": delta} if math.isfinite(epsilon) else {}
