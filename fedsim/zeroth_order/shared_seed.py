"""Methods in which scalars cross instead of vectors: everybody draws the directions, and adds up the same model.

    x <- x - lr * a_j * w_j,    j = 0, 1, ... in the order of a log that server and clients share

A client keeps a replica of x and replays the part of the log that it has not seen; the server keeps its own in the
same way. Directions come from seeds of eight bytes that crossed, and from nothing else. Of an order, which is one for
a whole cohort, a client that was away for r rounds uses, and is counted, the rows of these r rounds; what it joins with
is counted once. Replay is exact, so that replicas cannot drift and need no snapshots, hashes or synchronisation.
Nothing keeps x within a problem's box. Replicas have the same bits where directions have, on devices of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.core.philox import MASK
from fedsim.core.streams import Streams
from fedsim.zeroth_order.codec import OneByte, Sign
from fedsim.zeroth_order.directions import DRAWS, Keys, Sliceable, numbered, orthogonalised, part
from fedsim.zeroth_order.replay import replay_
from fedsim.zeroth_order.scalar_codes import Float32

SEED = 8
"""Bytes of a seed."""
MEMBER = 4
"""Bytes of a client's id in a list of who took part."""
LARGEST_SLOPE = 1000.0
"""What a slope counts for at most in the importance of its direction (Qin et al. 2024)."""
PUBLIC = Streams(0)
"""Of directions that are named by a seed of their own: a function that needs nothing else."""
Join = Literal["model", "replay"]
Rows = Mapping[str, Tensor]
"""Columns of a log, [L, ...] by name."""


@dataclass(frozen=True)
class Contributions:
    """J terms a_j w_j in their order.

    keys: names of the directions under `streams`. scalars: a_j, float64 [J], or of each of B parts of x, [J, B].
    rounds: whence they are, int64 [J].
    """

    streams: Streams
    keys: Keys
    scalars: Tensor
    rounds: Tensor

    def apply_(self, rows: Tensor, rate: float, kind: Sliceable, since: Tensor | None = None) -> Tensor:
        """Add -rate a_j w_j in place to x [d] or to rows [k, d]; return it.

        since: of each row the first round that it lacks, [k]; the terms of earlier rounds leave its bits alone.
        """
        blocks = self.scalars.unsqueeze(1) if self.scalars.dim() == 1 else self.scalars
        edges = edges_of(rows.shape[-1], blocks.shape[1])
        for scalars, begin, end in zip(blocks.unbind(1), edges, edges[1:], strict=False):
            if since is not None:
                scalars = torch.where(self.rounds.unsqueeze(1) >= since, scalars.unsqueeze(1), 0.0)
            view = rows[..., begin:end]
            replay_(view, self.streams, self.keys, scalars, rate=rate, kind=kind, begin=begin)
        return rows


def edges_of(dimension: int, blocks: int) -> list[int]:
    """Where each of B parts of d numbers begins, and where the last ends."""
    return [dimension * block // blocks for block in range(blocks + 1)]


def of_codes(seed: Tensor, log: Rows, codec: OneByte | Sign | Float32, aggregate: str) -> Contributions:
    """The terms of codes [L, G] that clients `owners` int64 [L] sent in `rounds` int64 [L]: a = value / S or / sqrt(S).

    S counts the scalars of the term's round, which the log holds whole. Scalar g of client c is about the direction of
    number c G + g in its round, so that one client with M samples draws what M clients with one each do.
    """
    rounds, owners, codes = log["rounds"], log["owners"], log["codes"]
    samples = codes.shape[1]
    _, place, counts = torch.unique(rounds, return_inverse=True, return_counts=True)
    sums = (counts[place] * samples).double()
    values = codec.decode(codes, torch.float64) / (sums if aggregate == "mean" else sums.sqrt()).unsqueeze(1)
    return Contributions(
        Streams(int(seed)),
        Keys("one-byte", owner=samples_of(owners, samples).flatten(), turn=rounds.repeat_interleave(samples)),
        values.flatten(),
        rounds.repeat_interleave(samples),
    )


def samples_of(owners: Tensor, samples: int) -> Tensor:
    """The numbers of the directions of clients int64 [k] in a round, int64 [k, G]."""
    return owners.unsqueeze(1) * samples + torch.arange(samples, device=owners.device)


def of_scalars(log: Rows) -> Contributions:
    """The terms of scalars [L, K P] along P directions of each of K seeds, int64 [L, K]: a = scalar / P."""
    rounds, seeds, scalars = log["rounds"], log["seeds"], log["scalars"]
    perturbations = scalars.shape[1] // seeds.shape[1]
    keys = seeded_keys(seeds.flatten(), perturbations)
    return Contributions(
        PUBLIC, keys, scalars.double().flatten() / perturbations, rounds.repeat_interleave(scalars.shape[1])
    )


def of_losses(seed: Tensor, log: Rows, shape: Population) -> Contributions:
    """The terms of a population's mean losses [L, n] in `rounds` int64 [L]."""
    rounds, scalars = log["rounds"], shape.scalars(log["losses"])
    count = scalars.shape[1]
    return Contributions(
        Streams(int(seed)), population_keys(rounds, count), scalars.flatten(), rounds.repeat_interleave(count)
    )


def of_coefficients(seed: Tensor, log: Rows, count: int) -> Contributions:
    """The terms of coefficients [L, n B] in `rounds` int64 [L], along n directions, of which each part has its own.

    They are what is added: a = -coefficient.
    """
    rounds, coefficients = log["rounds"], log["coefficients"]
    scalars = -coefficients.double().reshape(len(rounds) * count, coefficients.shape[1] // count)
    keys = population_keys(rounds, count, "evofed")
    return Contributions(Streams(int(seed)), keys, scalars, rounds.repeat_interleave(count))


def population_keys(rounds: Tensor, count: int, purpose: str = "fedes") -> Keys:
    """Names of the `count` directions of each of the rounds int64 [L], one round after the other."""
    draws = numbered(count, len(rounds), rounds.device)
    return Keys(purpose, turn=rounds.repeat_interleave(count), draw=draws)


@dataclass(frozen=True)
class Population:
    """How losses of n perturbed models weigh the perturbations.

    size: n. sigma: their radius. antithetic: the second half of them mirrors the first. ranks: centred ranks take the
    place of losses. orthogonal: directions are orthogonal to each other, d of them at a time.
    """

    size: int
    sigma: float
    antithetic: bool
    ranks: bool
    orthogonal: bool = False

    @property
    def directions(self) -> int:
        """How many directions are drawn."""
        return self.size // 2 if self.antithetic else self.size

    def drawn(self, kind: Sliceable, streams: Streams, keys: Keys, like: Tensor) -> Tensor:
        """The named directions, [J, d], for parameters [..., d]; orthogonal ones are asked for all at once."""
        vectors = part(kind, streams, keys, 0, like.shape[-1], dtype=like.dtype, device=like.device)
        return orthogonalised(vectors) if self.orthogonal else vectors

    def scalars(self, losses: Tensor) -> Tensor:
        """The factors s_j / (n sigma) of the directions, with mirrored ones combined: float64 [L, directions].

        losses: [L, n].
        """
        shaped = losses.double()
        if self.ranks:
            ordered = shaped.sort(dim=1).values
            low, high = (torch.searchsorted(ordered, shaped, right=right) for right in (False, True))
            # Equal losses share the mean of their ranks, so that where all are equal nothing moves.
            shaped = (low + high - 1).double() / 2.0 / (self.size - 1) - 0.5
        if self.antithetic:
            shaped = shaped[:, : self.directions] - shaped[:, self.directions :]
        return shaped / (self.size * self.sigma)


def seeded_keys(seeds: Tensor, draws: int = 1) -> Keys:
    """Names, under `PUBLIC`, of so many directions of each seed, int64 [K] from 0, one seed after the other."""
    each = numbered(draws, len(seeds), seeds.device)
    seeds = seeds.repeat_interleave(draws)
    return Keys("shared-seed", owner=seeds & MASK, turn=seeds >> 32, draw=each)


def pool_keys(seed: Tensor, places: Tensor) -> Keys:
    """Names, under `PUBLIC`, of the directions at `places` int64 [J], below 2^32, of the pool of one seed."""
    seed = seed.reshape(1).to(places.device)
    return Keys("pool", owner=seed & MASK, turn=seed >> 32, step=places // DRAWS, draw=places % DRAWS)


def rebuilt(start: Tensor, seed: Tensor, sums: Tensor, rate: float, kind: Sliceable) -> Tensor:
    """x_0 - rate sum_j a_j w_j, [d], of x_0 [d] and the coefficients a [K] of a pool; x_0 stays as it is."""
    places = sums.nonzero().squeeze(1)
    return replay_(start.clone(), PUBLIC, pool_keys(seed, places), sums[places], rate=rate, kind=kind)


def summed(places: Tensor, scalars: Tensor, pool: int) -> Tensor:
    """Sums [k, K] of pairs, `places` int64 [k, T] and scalars [k, T], each added up in the order of the steps."""
    sums, rows = scalars.new_zeros(len(scalars), pool), torch.arange(len(scalars), device=scalars.device)
    for place, scalar in zip(places.unbind(1), scalars.unbind(1), strict=True):
        sums[rows, place] += scalar
    return sums


def importance(sizes: Tensor, counts: Tensor) -> Tensor:
    """Probabilities [K] of a pool's directions: softmax of their mean |p|, scaled to lie between 0 and 1.

    sizes: sums of |p|, each at most `LARGEST_SLOPE`; counts: how many; both [K]. A direction that nobody has drawn
    counts as one whose p is 0.
    """
    mean = sizes / counts.clamp(min=1.0)
    low, high = mean.min(), mean.max()
    span = high - low
    return torch.softmax((mean - low) / torch.where(span > 0, span, 1.0), dim=0)
