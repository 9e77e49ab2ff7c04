"""Who works on what, round after round, so that every job's sum of gradients is known in time.

A job is one gradient: the sum over all data. Job t begins in round t, and is to be known at the end of round t + T.
Where T > 0 the model of job t is another one than those of the T jobs before it, as if T + 1 models were trained in
turn. A scheme says what each worker sends in a round, from what has come so far, and of what has come of a job its sum
is made with which factors. It remembers nothing itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsim.coding.codes import Normal, Numbers, decode, drawn, held
from fedsim.coding.stragglers import Bursts, Mask, Needs
from fedsim.core.errors import InputError

MOST = 2**28
"""Factors of combinations that a scheme may have: 2 GiB."""
IDLE = -1
"""The place of nothing."""


@dataclass(frozen=True, eq=False)
class Work:
    """What workers are to send in a round, slot by slot: combination `places` [n, k] of the job `ages` [n, k] before.

    Both int64. A place of -1 is an idle slot.
    """

    ages: NDArray[np.int64]
    places: NDArray[np.int64]

    def within(self, number: int, jobs: int | None = None) -> Work:
        """Without what is of jobs before the first, or after the last of so many, in round `number`."""
        job = number - self.ages
        there = job >= 0 if jobs is None else (job >= 0) & (job < jobs)
        return Work(self.ages, np.where(there, self.places, IDLE))


class Scheme(ABC):
    """A way to share work. Data are cut into K chunks, of whose gradients a worker sends combinations.

    workers: n. delay: T. places: P, how many combinations of each job are a worker's. slots: how many it sends in a
    round. load: the share of the data that a worker goes over in a round in which no slot is idle. sizes: the share of
    the data in each chunk, [K]; they add up to 1. combinations: [n, P, K].

    What has come of the last T + 1 jobs, `came`, is bool [T + 1, n, P], job t in row t modulo T + 1, which is false
    where the job begins.
    """

    @property
    @abstractmethod
    def delay(self) -> int:
        """See above."""

    @property
    def places(self) -> int:
        """See above."""
        return int(self.combinations.shape[1])

    @property
    def slots(self) -> int:
        """See above."""
        return 1

    @property
    @abstractmethod
    def load(self) -> float:
        """See above."""

    @property
    @abstractmethod
    def sizes(self) -> Numbers:
        """See above."""

    @property
    @abstractmethod
    def combinations(self) -> Numbers:
        """See above."""

    @property
    def workers(self) -> int:
        """See above."""
        return len(self.combinations)

    @cached_property
    def shares(self) -> Numbers:
        """The share of the data that each combination is of, [n, P]."""
        found: Numbers = (self.combinations != 0) @ self.sizes
        return found

    @cached_property
    def lists(self) -> tuple[NDArray[np.int64], Numbers]:
        """The chunks of each combination, and their factors, [n, P, w] both; -1 and 0 beyond the last."""
        there = self.combinations != 0
        wide = max(1, int(there.sum(axis=2).max()))
        chunks = np.argsort(~there, axis=2, kind="stable")[:, :, :wide]
        inside = np.take_along_axis(there, chunks, axis=2)
        factors = np.take_along_axis(self.combinations, chunks, axis=2)
        return np.where(inside, chunks, -1), np.where(inside, factors, 0.0)

    def done(self, work: Work) -> Numbers:
        """The share of the data that each worker goes over in a round, [n]."""
        each = np.take_along_axis(self.shares, np.maximum(work.places, 0), axis=1)
        found: Numbers = np.where(work.places >= 0, each, 0.0).sum(axis=1)
        return found

    def nothing(self) -> Mask:
        """What has come before the first round."""
        return np.zeros((self.delay + 1, self.workers, self.places), dtype=bool)

    def arrived(self, came: Mask, number: int, work: Work, late: Mask) -> Mask:
        """What has come after a round of which some are late, bool [n]: of them nothing has."""
        worker, slot = np.nonzero((work.places >= 0) & ~late[:, None])
        after = came.copy()
        after[(number - work.ages[worker, slot]) % (self.delay + 1), worker, work.places[worker, slot]] = True
        return after

    @abstractmethod
    def work(self, number: int, came: Mask) -> Work:
        """What is to be done in a round, from 0."""

    @abstractmethod
    def decode(self, came: Mask) -> Numbers | None:
        """The factors [n, P] with which what has come of a job, bool [n, P], makes its gradient; None: it does not."""

    @property
    def looks_back(self) -> int:
        """How many rounds before a round say who may be late in it."""
        return 0

    @abstractmethod
    def needs(self, earlier: Sequence[Mask]) -> Needs:
        """Who may be late in a round, that all jobs are known in time. earlier: who was in the rounds before it."""


@dataclass(frozen=True, eq=False)
class GradientCoding(Scheme):
    """GC(n, s): every worker sends one combination of s + 1 of n chunks; any n - s results give the sum. T = 0.

    code: B [n, n], see `codes`. Load (s + 1) / n. Tandon et al. 2017.
    """

    code: Numbers
    stragglers: int

    @classmethod
    def of(cls, workers: int, stragglers: int, normal: Normal) -> GradientCoding:
        """With the cyclic code. InputError: there is nobody left to answer."""
        return cls(drawn(workers, stragglers, normal), stragglers)

    @property
    def delay(self) -> int:
        """A job is known in its own round."""
        return 0

    @property
    def load(self) -> float:
        """(s + 1) / n."""
        return (self.stragglers + 1) / self.workers

    @property
    def sizes(self) -> Numbers:
        """All chunks are as large."""
        return np.full(len(self.code), 1 / len(self.code))

    @property
    def combinations(self) -> Numbers:
        """A row of the code."""
        return self.code[:, None]

    def work(self, number: int, came: Mask) -> Work:  # noqa: ARG002
        """The job of the round."""
        nothing = np.zeros((self.workers, 1), dtype=np.int64)
        return Work(nothing, nothing)

    def decode(self, came: Mask) -> Numbers | None:
        """By the code, from whoever is there."""
        factors = decode(self.code, came[:, 0])
        return None if factors is None else factors[:, None]

    def needs(self, earlier: Sequence[Mask]) -> Needs:  # noqa: ARG002
        """All but s, whoever they are."""
        nobody = np.zeros(self.workers, dtype=bool)
        return Needs(nobody, nobody, self.stragglers)


class Uncoded(GradientCoding):
    """Everybody has a chunk of its own, and all are waited for: GC(n, 0)."""

    @classmethod
    def among(cls, workers: int) -> Uncoded:
        """Of so many workers. InputError: there are none."""
        held(workers, 0)
        return cls(np.eye(workers), 0)


@dataclass(frozen=True, eq=False)
class SelectiveRepeat(GradientCoding):
    """SR-SGC(n, B, W, lambda): GC whose missing results, as many as are needed, are worked on again B rounds later.

    s = ceil(B lambda / (W - 1 + B)) and T = B. Where v > s results of job r - B are missing in round r, v - s of those
    workers work on it instead of job r. B divides W - 1. Krishnan et al. 2023, section 3.1.
    """

    bursts: Bursts

    @classmethod
    def designed(cls, workers: int, burst: int, window: int, most: int, normal: Normal) -> SelectiveRepeat:
        """For bursts as of `stragglers.Bursts`. InputError: there is no such code."""
        bursts = Bursts.held(workers, burst, window, most)
        if (window - 1) % burst:
            raise InputError("window", window, f"must be 1 more than a multiple of burst, which is {burst}")
        stragglers = -(-burst * most // (window - 1 + burst))
        return cls(drawn(workers, stragglers, normal), stragglers, bursts)

    @property
    def delay(self) -> int:
        """B."""
        return self.bursts.burst

    def work(self, number: int, came: Mask) -> Work:
        """Of the job B rounds before as many of the missing results as it needs, by the first of them; or the round's.

        Of a job before the first nothing is missing.
        """
        ages = np.zeros((self.workers, 1), dtype=np.int64)
        if number >= self.delay:
            missing = np.flatnonzero(~came[(number - self.delay) % (self.delay + 1), :, 0])
            ages[missing[: max(0, len(missing) - self.stragglers)]] = self.delay
        return Work(ages, np.zeros_like(ages))

    @property
    def looks_back(self) -> int:
        """W - 1."""
        return self.bursts.window - 1

    def needs(self, earlier: Sequence[Mask]) -> Needs:
        """Whoever must not be late in these bursts."""
        return self.bursts.needs(earlier, self.workers)


@dataclass(frozen=True, eq=False)
class Multiplexed(Scheme):
    """M-SGC(n, B, W, lambda): each job in small tasks on a diagonal over T + 1 = W - 1 + B rounds; T = W - 2 + B.

    The chunks D1, n (W - 1) of them, are had by one worker each, who sends their gradients in the first W - 1 rounds of
    the job, and those that were lost in the B rounds after. Who has lost none sends in these its results of the B
    groups D2 of n chunks, each group under a code (n, lambda) of its own.
    load = (lambda + 1)(W - 1 + B) / (n (B + (W - 1)(lambda + 1)))
    With lambda = n there is no D2, and load = (W - 1 + B) / (n (W - 1)). Krishnan et al. 2023, section 3.2.
    """

    count: int
    bursts: Bursts
    codes: tuple[Numbers, ...]

    @classmethod
    def designed(cls, workers: int, burst: int, window: int, most: int, normal: Normal) -> Multiplexed:
        """For bursts as of `stragglers.Bursts`. InputError: there is no such code."""
        bursts = Bursts.held(workers, burst, window, most)
        if window < 2:
            raise InputError("window", window, "multiplexing needs at least 2 rounds")
        if (workers * (window - 1 + burst)) ** 2 > MOST:
            remedy = f"{workers} workers have too many chunks in so many rounds; take shorter windows and bursts"
            raise InputError("window", window, remedy)
        groups = burst if most < workers else 0
        return cls(workers, bursts, tuple(drawn(workers, most, normal) for _ in range(groups)))

    @property
    def own(self) -> int:
        """W - 1, chunks that each worker has for itself."""
        return self.bursts.window - 1

    @property
    def delay(self) -> int:
        """W - 2 + B."""
        return self.slots - 1

    @property
    def slots(self) -> int:
        """W - 1 + B: one of each job that is on its way."""
        return self.own + self.bursts.burst

    @property
    def load(self) -> float:
        """Of all slots together."""
        if not self.codes:
            return self.slots / (self.count * self.own)
        coded = self.bursts.most + 1
        return coded * self.slots / (self.count * (self.bursts.burst + self.own * coded))

    @cached_property
    def sizes(self) -> Numbers:
        """Of n (W - 1) chunks of D1, then n for each group of D2."""
        alone = np.full(self.count * self.own, self.load / self.slots)
        coded = np.full(self.count * len(self.codes), self.load / self.slots / (self.bursts.most + 1))
        return np.concatenate((alone, coded))

    @cached_property
    def combinations(self) -> Numbers:
        """Chunks of one's own, and rows of the groups' codes."""
        alone = self.count * self.own
        found = np.zeros((self.count, self.own + len(self.codes), alone + self.count * len(self.codes)))
        found[:, : self.own, :alone] = np.eye(alone).reshape(self.count, self.own, alone)
        for group, code in enumerate(self.codes):
            first = alone + group * self.count
            found[:, self.own + group, first : first + self.count] = code
        return found

    def work(self, number: int, came: Mask) -> Work:
        """One of each job that is on its way: its chunks in turn, then what was lost of them, or a group."""
        ages = np.broadcast_to(np.arange(self.slots), (self.count, self.slots))
        places = np.empty_like(ages)
        for slot in range(self.slots):
            if slot < self.own:
                places[:, slot] = slot
                continue
            lost = ~came[(number - slot) % (self.delay + 1), :, : self.own]
            group = slot if slot < self.places else IDLE
            places[:, slot] = np.where(lost.any(axis=1), lost.argmax(axis=1), group)
        return Work(ages, places)

    def decode(self, came: Mask) -> Numbers | None:
        """All chunks of D1, and each group of D2 by its code."""
        if not came[:, : self.own].all():
            return None
        factors = np.ones((self.count, self.places))
        for group, code in enumerate(self.codes):
            found = decode(code, came[:, self.own + group])
            if found is None:
                return None
            factors[:, self.own + group] = found
        return factors

    @property
    def looks_back(self) -> int:
        """W - 1."""
        return self.bursts.window - 1

    def needs(self, earlier: Sequence[Mask]) -> Needs:
        """Whoever must not be late in these bursts."""
        return self.bursts.needs(earlier, self.count)


def known(scheme: Scheme, factors: Numbers, gradients: Numbers) -> Numbers:
    """A job's gradient [d] from results. gradients: of the chunks, [K, d], of which workers make their results."""
    found: Numbers = np.einsum("np,npk->k", factors, scheme.combinations) @ gradients
    return found
