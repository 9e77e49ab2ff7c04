"""Secure aggregation, simulated: the server learns the weighted sum of the clients' changes, and none of them.

A change becomes integers, each client's times its weight, in the ring Z_(2^b); what is sent is that plus masks which
add up to nothing once all are in:

    v_i = round((clip(x_i, -c, c) + c) / step), at random up or down,  step = 2 c / (2^q - 1)
    y_i = w_i v_i + PRG(b_i) + sum_(j > i) PRG(s_ij) - sum_(j < i) PRG(s_ij)  mod 2^b,  j: neighbours that shared
    mean = step (sum_i w_i v_i) / (sum_i w_i) - c

Four stages: keys (two public keys of each client go to its neighbours), shares (its seed b_i and its secret key, split
so that t of its k neighbours and itself can rebuild them), the masked vector, and unmasking: those who are still there
send their shares of b_i of who has answered, and of the secret key of who has shared and not answered, never both of
one client. Where a neighbourhood has fewer than t left the round is void.

Bonawitz et al. 2017, with clients and a server that keep to the protocol; neighbours on a ring, Bell et al. 2020. That
two clients agree on a key is taken for granted: their mask is a named draw. So are Shamir's shares, which are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, PositiveInt, Share, options
from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.aggregation import WeightedMean
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform, Vector
from fedsim.parallel.cores import spread

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]
KEY, SHARE, OVERHEAD, NAME = 32, 17, 28, 4
"""Bytes of a public key, of a share, of what encryption adds to a message, and of a client's number."""
WIDE = 32
"""Bits of a ring from which its numbers take words of 64 bits."""
MOST = 62
"""Bits of the largest ring."""
WIDTH = 2**14
"""Numbers of all vectors that are masked at a time, and stay in a core's memory: whole blocks of the generator."""


@options
class Secure(WeightedMean):
    """The weighted mean, of integers under masks: the server, and the strategy, see the sum alone.

    z = s sum_i w_i v_i / sum_i w_i - c,  v_i = floor((x_i + c) / s + u_i),  s = 2 c / (2^q - 1)
    x_i is cut to [-c, c] before, and u_i uniform in [0, 1). Bonawitz et al. 2017; Bell et al. 2020. Cost C d, and for
    masks C d k / 2.
    For strategies that read nothing else of replies, in rounds that wait for all, or until a deadline. Clients that
    fail, are late or are not finite have left after they shared.
    """

    clip: PositiveFloat
    """c: numbers of a change are cut to [-c, c]."""
    bits: Annotated[int, Field(ge=1, le=32)] = 16
    """q: a number becomes one of 2^q levels, the next below or above at random, so that its mean stays."""
    ring: Annotated[int, Field(ge=1, le=MOST)] | None = None
    """b: sums are modulo 2^b. Not given: the least with which none can wrap."""
    neighbours: PositiveInt | None = None
    """k: with how many others a client has masks and shares, an even number. Not given: with all."""
    threshold: PositiveInt | None = None
    """t: how many of the k + 1 who have shares of a client must be left. Not given: more than two thirds."""
    leave_before: Share = 0.0
    """The probability with which a client of a round leaves between its keys and its shares."""
    leave_after: Share = 0.0
    """The probability with which one leaves when its vector has arrived: it counts, and helps no more to unmask."""

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def step(self) -> float:
        """From one level to the next."""
        return 2.0 * self.clip / self.top

    def ring_for(self, weights: int) -> int:
        """b, for clients whose weights add up to so much at most. InputError: sums could wrap."""
        least = (self.top * weights).bit_length()
        if self.ring is not None and self.ring < least:
            remedy = f"weights add up to {weights}, times 2^{self.bits} - 1: take {least} or more, or fewer bits"
            raise InputError("aggregation.ring", self.ring, remedy)
        if least > MOST:
            remedy = f"weights add up to {weights}, and sums would take {least} bits, more than {MOST}; lower it"
            raise InputError("aggregation.bits", self.bits, remedy)
        return least if self.ring is None else self.ring

    def degree(self, clients: int) -> int:
        """K among so many."""
        return clients - 1 if self.neighbours is None else min(self.neighbours, clients - 1)

    def needed(self, clients: int) -> int:
        """T among so many."""
        # Two at least, so that nobody is left alone where few are free.
        return max(2, 2 * (self.degree(clients) + 1) // 3 + 1) if self.threshold is None else self.threshold

    def hold(self, cohort: int) -> None:
        """Refuse (InputError) a cohort of so many clients for which the options are not made."""
        if cohort < 2:
            raise InputError("aggregation.kind", "secure", "the sum of a single client hides nothing; select more")
        if self.neighbours is not None and self.neighbours >= cohort:
            remedy = f"of {cohort} clients each has {cohort - 1} others; lower it, or leave it out for all"
            raise InputError("aggregation.neighbours", self.neighbours, remedy)
        if self.neighbours is not None and self.neighbours % 2:
            raise InputError("aggregation.neighbours", self.neighbours, "half of them are on either side; make it even")
        holders, threshold = self.degree(cohort) + 1, self.needed(cohort)
        if threshold > holders:
            remedy = f"a client's shares are held by {holders}, itself included; take {holders} at most"
            raise InputError("aggregation.threshold", threshold, remedy)
        if threshold <= holders // 2:
            remedy = f"two halves of {holders} could be unmasked apart; take {holders // 2 + 1} or more"
            raise InputError("aggregation.threshold", threshold, remedy)

    def levels(self, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The levels of rows [C, d], int64, and how many of a row's numbers were cut, [C]. drawn: in [0, 1), [C, d]."""
        wide = rows.double()
        levels = torch.floor((wide.clamp(-self.clip, self.clip) + self.clip) / self.step + drawn).clamp_(max=self.top)
        return levels.to(torch.int64), (wide.abs() > self.clip).sum(dim=1)

    def mean(self, sums: NDArray[Any], weights: int) -> NDArray[np.float64]:
        """What weighted sums of levels [d] stand for, divided by the sum of weights."""
        found: NDArray[np.float64] = sums.astype(np.float64) / weights * self.step - self.clip
        return found


@options
class Sealed(Transform):
    """What a masked vector takes, with the weight that is summed beside it; the numbers are masked when all are in."""

    keeps_statistics: ClassVar[bool] = False

    ring: PositiveInt
    """Bits of a number."""
    weighed: bool
    """Whether the weight crosses, too."""

    def size(self, before: Size) -> Size:
        """As many numbers of the ring."""
        return Size(before.numbers, self.ring, self.ring * self.weighed)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        return vector.coded(vector.rows, self.size(vector.size))


@dataclass(frozen=True)
class Traffic:
    """Bytes that clients send and are sent in one stage, int64 [m] each."""

    up: Counts
    down: Counts


def graph(clients: Tensor, degree: int, streams: Streams, turn: int) -> Mask:
    """Who is whose neighbour, bool [m, m]: all of all, or k / 2 on either side of a ring in an order drawn anew."""
    count = len(clients)
    if degree >= count - 1:
        return ~np.eye(count, dtype=np.bool_)
    ring = streams.permutation("secure/ring", torch.tensor([SERVER]), count, turn=turn)[0].numpy()
    found = np.zeros((count, count), dtype=np.bool_)
    for away in range(1, degree // 2 + 1):
        found[ring, np.roll(ring, away)] = True
    return found | found.T


def keys(neighbours: Mask) -> Traffic:
    """Two public keys up; those of all neighbours down."""
    degree = neighbours.sum(axis=1)
    return Traffic(np.full_like(degree, 2 * KEY), degree * (2 * KEY + NAME))


def shares(neighbours: Mask, shared: Mask) -> Traffic:
    """Two shares for each neighbour up, encrypted; those of all neighbours that share down. shared: bool [m]."""
    each = 2 * SHARE + OVERHEAD + NAME
    return Traffic(neighbours.sum(axis=1) * each * shared, (neighbours & shared).sum(axis=1) * each * shared)


def unmasking(neighbours: Mask, shared: Mask) -> Traffic:
    """Which neighbours have answered down, a bit each; a share of each of them, and of oneself, up."""
    degree = (neighbours & shared).sum(axis=1)
    return Traffic((degree + 1) * SHARE * shared, -(-degree // 8) * shared)


def fewest(neighbours: Mask, shared: Mask, left: Mask) -> int:
    """Of those who have shared, how many holders of the shares of one are left at least; 0: nobody has shared.

    neighbours: bool [m, m]. shared, left: bool [m].
    """
    holders = (neighbours & left).sum(axis=1) + left
    return int(holders[shared].min()) if shared.any() else 0


@dataclass(frozen=True)
class Masks:
    """The masks of a round: PRG(b_i) and PRG(s_ij) as named draws. ring: b. clients: ids of all who shared, ascending.

    neighbours: bool [s, s]. answered: bool [s], of whom a masked vector is there.
    """

    streams: Streams
    turn: int
    ring: int
    clients: list[int]
    neighbours: Mask
    answered: Mask

    @property
    def word(self) -> type[np.unsignedinteger[Any]]:
        """What a number of the ring is kept in."""
        return np.uint32 if self.ring <= WIDE else np.uint64

    def masked(self, rows: NDArray[Any]) -> NDArray[Any]:
        """What the server receives: rows [k, n] of words, of those who have answered, with their masks; in place."""
        place = np.cumsum(self.answered) - 1
        pairs = self._pairs(self.answered[:, None] | self.answered)

        def mask(part: slice) -> None:
            own, words = rows[:, part], self._words(part)
            for row in np.flatnonzero(self.answered).tolist():
                own[place[row]] += words.own(self.clients[row])
            for first, second in pairs:
                common = words.common(self.clients[first], self.clients[second])
                if self.answered[first]:
                    own[place[first]] += common
                if self.answered[second]:
                    own[place[second]] -= common
            own &= self.last

        spread(mask, _parts(rows.shape[1]))
        return rows

    def unmasked(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The sum [n] of rows as `masked` leaves them, without their masks, made of what has been rebuilt."""
        total: NDArray[Any] = np.add.reduce(rows, axis=0, dtype=self.word)
        pairs = self._pairs(self.answered[:, None] != self.answered)

        def unmask(part: slice) -> None:
            own, words = total[part], self._words(part)
            for row in np.flatnonzero(self.answered).tolist():
                own -= words.own(self.clients[row])
            for first, second in pairs:
                common = words.common(self.clients[first], self.clients[second])
                if self.answered[first]:
                    own -= common
                else:
                    own += common
            own &= self.last

        spread(unmask, _parts(len(total)))
        return total

    @property
    def last(self) -> Any:
        """The largest number of the ring."""
        return self.word((1 << self.ring) - 1)

    def _pairs(self, wanted: Mask) -> list[tuple[int, int]]:
        """Neighbours i < j whose mask is wanted, bool [s, s]."""
        first, second = np.nonzero(np.triu(self.neighbours & wanted, 1))
        return list(zip(first.tolist(), second.tolist(), strict=True))

    def _words(self, part: slice) -> Words:
        return Words(self.streams.derive("secure/masks", turn=self.turn), self.word, part)


class Words:
    """The numbers in `part` of all masks of a round, which begins at a whole block of the generator: four of 64 bits.

    One generator is set to where each mask begins, in a quarter of the time that a new one takes.
    """

    def __init__(self, key: int, word: type[np.unsignedinteger[Any]], part: slice) -> None:
        self._word, self._numbers = word, part.stop - part.start
        size = np.dtype(word).itemsize
        self._block, self._count = part.start * size // 32, -(-self._numbers * size // 8)
        self._generator = np.random.Philox(key=key)
        self._state: Any = self._generator.state

    def own(self, client: int) -> NDArray[Any]:
        """PRG(b_i)."""
        return self._at(client, SERVER)

    def common(self, first: int, second: int) -> NDArray[Any]:
        """PRG(s_ij), i < j."""
        return self._at(first, second)

    def _at(self, first: int, second: int) -> NDArray[Any]:
        self._state["state"]["counter"] = np.array((self._block, first, second, 0), np.uint64)
        self._generator.state = self._state
        words: NDArray[Any] = self._generator.random_raw(self._count).view(self._word)
        return words[: self._numbers]


def _parts(count: int) -> list[slice]:
    """Slices of so many numbers."""
    return [slice(begin, min(begin + WIDTH, count)) for begin in range(0, count, WIDTH)]
