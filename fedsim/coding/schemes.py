"""Who works on what, round after round, so that every job's sum of gradients is known in time.

A job is one gradient: the sum over all data. Job t begins in round t, and is to be known at the end of round t + T.
Where T > 0 the model of job t is another one than those of the T jobs before it, as if T + 1 models were trained in
turn. The data are cut into chunks; a task is a combination of the gradients of some chunks of one job, and its result
is one vector. A scheme hands out tasks, is told who came in time, and says of which results the sum of a job is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsim.coding.codes import Numbers, decode, drawn, held
from fedsim.coding.stragglers import Mask, bursty
from fedsim.core.errors import InputError

Sent = Mapping["Task", float]


@dataclass(frozen=True)
class Task:
    """What a worker is to send of a job: the sum over chunks [k] of factors [k] times the gradient of each."""

    job: int
    worker: int
    chunks: tuple[int, ...]
    factors: tuple[float, ...]


class Jobs(ABC):
    """The jobs of a scheme on their way."""

    @abstractmethod
    def tasks(self, number: int) -> list[list[Task]]:
        """What each worker is to do in a round, from 0; asked once a round, in their order."""

    @abstractmethod
    def arrived(self, number: int, late: Mask) -> None:
        """Learn who was late in a round, bool [n]: of them nothing has come."""

    @abstractmethod
    def total(self, job: int) -> Sent | None:
        """The results, and the factor of each, that add up to the job's gradient; None: it cannot be known yet."""


class Scheme(ABC):
    """A way to share work. workers: n. delay: T. load: the share of the data that each worker goes over in a round.

    sizes: the share of the data in each chunk, [K].
    """

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many share the work."""

    @property
    @abstractmethod
    def delay(self) -> int:
        """In how many rounds after its own a job is known."""

    @property
    @abstractmethod
    def load(self) -> float:
        """The share of the data, in a round in which no slot is idle."""

    @property
    @abstractmethod
    def sizes(self) -> Numbers:
        """They add up to 1."""

    @abstractmethod
    def conforms(self, earlier: Sequence[Mask], now: Mask) -> bool:
        """Whether these stragglers of a round, bool [n], after those of the rounds before, leave all jobs in time."""

    @abstractmethod
    def start(self, jobs: int) -> Jobs:
        """So many jobs, before the first round."""


@dataclass(frozen=True, eq=False)
class GradientCoding(Scheme):
    """GC(n, s): every worker sends one combination of s + 1 of n chunks; any n - s results give the sum. T = 0.

    code: B [n, n], see `codes`. Tandon et al. 2017.
    """

    code: Numbers
    stragglers: int

    @classmethod
    def of(cls, workers: int, stragglers: int, random: np.random.Generator) -> GradientCoding:
        """With the cyclic code. InputError: there is nobody left to answer."""
        return cls(drawn(workers, stragglers, random), stragglers)

    @property
    def workers(self) -> int:
        """How many rows the code has."""
        return len(self.code)

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
        return np.full(self.workers, 1 / self.workers)

    def conforms(self, earlier: Sequence[Mask], now: Mask) -> bool:  # noqa: ARG002
        """Whether at most s are late."""
        return int(now.sum()) <= self.stragglers

    def start(self, jobs: int) -> Jobs:
        """Every job is worked on in its own round, and again in none."""
        return _Repeated(self, jobs, 0)

    def task(self, job: int, worker: int) -> Task:
        """A row of the code."""
        chunks = np.flatnonzero(self.code[worker])
        return Task(job, worker, tuple(chunks.tolist()), tuple(self.code[worker, chunks].tolist()))


class Uncoded(GradientCoding):
    """Everybody has a chunk of its own, and all are waited for: GC(n, 0)."""

    @classmethod
    def among(cls, workers: int) -> Uncoded:
        """Of so many workers. InputError: there are none."""
        held(workers, 0)
        return cls(np.eye(workers), 0)


class _Repeated(Jobs):
    """Results of one code's rows, in the round of a job and, of what is missing then, `later` rounds after it."""

    def __init__(self, scheme: GradientCoding, jobs: int, later: int) -> None:
        self._scheme, self._jobs, self._later = scheme, jobs, later
        self._here = np.zeros((jobs, scheme.workers), dtype=bool)
        self._given = np.zeros(scheme.workers, dtype=np.int64)

    def tasks(self, number: int) -> list[list[Task]]:
        """Job `number`; of job `number - later` as many of the missing results as it needs, by the first of them."""
        scheme, now = self._scheme, np.full(self._scheme.workers, number)
        before = number - self._later
        if self._later and 0 <= before < self._jobs:
            missing = np.flatnonzero(~self._here[before])
            now[missing[: max(0, len(missing) - scheme.stragglers)]] = before
        self._given = now
        return [[scheme.task(job, worker)] if job < self._jobs else [] for worker, job in enumerate(now.tolist())]

    def arrived(self, number: int, late: Mask) -> None:  # noqa: ARG002
        """Note what has come."""
        came = np.flatnonzero(~late & (self._given < self._jobs))
        self._here[self._given[came], came] = True

    def total(self, job: int) -> Sent | None:
        """By the code, from whoever is there."""
        factors = decode(self._scheme.code, self._here[job])
        if factors is None:
            return None
        return {self._scheme.task(job, worker): float(factors[worker]) for worker in np.flatnonzero(factors).tolist()}


@dataclass(frozen=True, eq=False)
class SelectiveRepeat(GradientCoding):
    """SR-SGC(n, B, W, lambda): GC whose missing results, as many as are needed, are worked on again B rounds later.

    s = ceil(B lambda / (W - 1 + B)) and T = B. Where v > s results of job r - B are missing in round r, v - s of those
    workers work on it instead of job r. B divides W - 1. Krishnan et al. 2023, section 3.1.
    """

    burst: int
    window: int
    most: int

    @classmethod
    def designed(cls, workers: int, burst: int, window: int, most: int, random: np.random.Generator) -> SelectiveRepeat:
        """For bursts as of `stragglers.bursty`. InputError: there is no such code."""
        _hold(workers, burst, window, most)
        if (window - 1) % burst:
            raise InputError("window", window, f"selective repeat needs bursts, {burst}, that divide window - 1")
        stragglers = -(-burst * most // (window - 1 + burst))
        return cls(drawn(workers, stragglers, random), stragglers, burst, window, most)

    @property
    def delay(self) -> int:
        """B."""
        return self.burst

    def conforms(self, earlier: Sequence[Mask], now: Mask) -> bool:
        """Whether the bursts are those that it is designed for."""
        return bursty(earlier, now, self.burst, self.window, self.most)

    def start(self, jobs: int) -> Jobs:
        """Jobs whose missing results come B rounds later."""
        return _Repeated(self, jobs, self.burst)


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
    burst: int
    window: int
    most: int
    codes: tuple[Numbers, ...]

    @classmethod
    def designed(cls, workers: int, burst: int, window: int, most: int, random: np.random.Generator) -> Multiplexed:
        """For bursts as of `stragglers.bursty`. InputError: there is no such code."""
        _hold(workers, burst, window, most)
        if window < 2:
            raise InputError("window", window, "multiplexing needs at least 2 rounds")
        groups = burst if most < workers else 0
        return cls(workers, burst, window, most, tuple(drawn(workers, most, random) for _ in range(groups)))

    @property
    def workers(self) -> int:
        """As many as it is designed for."""
        return self.count

    @property
    def delay(self) -> int:
        """W - 2 + B."""
        return self.slots - 1

    @property
    def slots(self) -> int:
        """Tasks of each worker in a round, W - 1 + B: one of each job that is on its way."""
        return self.window - 1 + self.burst

    @property
    def load(self) -> float:
        """Of all slots together."""
        if not self.codes:
            return self.slots / (self.workers * (self.window - 1))
        coded = self.most + 1
        return coded * self.slots / (self.workers * (self.burst + (self.window - 1) * coded))

    @cached_property
    def sizes(self) -> Numbers:
        """Of n (W - 1) chunks of D1, then n for each group of D2."""
        alone = np.full(self.workers * (self.window - 1), self.load / self.slots)
        coded = np.full(self.workers * len(self.codes), self.load / self.slots / (self.most + 1))
        return np.concatenate((alone, coded))

    def conforms(self, earlier: Sequence[Mask], now: Mask) -> bool:
        """Whether the bursts are those that it is designed for."""
        return bursty(earlier, now, self.burst, self.window, self.most)

    def start(self, jobs: int) -> Jobs:
        """Jobs on their diagonals."""
        return _Diagonal(self, jobs)

    def alone(self, job: int, worker: int, place: int) -> Task:
        """One of the chunks that only this worker has."""
        return Task(job, worker, (worker * (self.window - 1) + place,), (1.0,))

    def coded(self, job: int, worker: int, group: int) -> Task:
        """The worker's row of a group's code."""
        first, row = self.workers * (self.window - 1 + group), self.codes[group][worker]
        chunks = np.flatnonzero(row)
        return Task(job, worker, tuple((first + chunks).tolist()), tuple(row[chunks].tolist()))


class _Diagonal(Jobs):
    """What has come: alone, of the chunks that each worker has for itself [J, n, W - 1]; coded, of the groups."""

    def __init__(self, scheme: Multiplexed, jobs: int) -> None:
        self._scheme, self._jobs = scheme, jobs
        self._alone = np.zeros((jobs, scheme.workers, scheme.window - 1), dtype=bool)
        self._coded = np.zeros((jobs, scheme.workers, len(scheme.codes)), dtype=bool)
        self._given: list[list[tuple[int, int]]] = []

    def tasks(self, number: int) -> list[list[Task]]:
        """One of each job that is on its way."""
        on_the_way = [(number - slot, slot) for slot in range(self._scheme.slots) if 0 <= number - slot < self._jobs]
        self._given = [
            [(job, place) for job, slot in on_the_way if (place := self._place(job, worker, slot)) is not None]
            for worker in range(self._scheme.workers)
        ]
        return [[self._task(job, worker, place) for job, place in own] for worker, own in enumerate(self._given)]

    def _place(self, job: int, worker: int, slot: int) -> int | None:
        """The number of a chunk of its own, or, after these, of a group; None: there is nothing left to do."""
        own = self._scheme.window - 1
        if slot < own:
            return slot
        lost = np.flatnonzero(~self._alone[job, worker])
        if len(lost):
            return int(lost[0])
        return slot if slot - own < len(self._scheme.codes) else None

    def _task(self, job: int, worker: int, place: int) -> Task:
        own = self._scheme.window - 1
        if place < own:
            return self._scheme.alone(job, worker, place)
        return self._scheme.coded(job, worker, place - own)

    def arrived(self, number: int, late: Mask) -> None:  # noqa: ARG002
        """Note what has come."""
        own = self._scheme.window - 1
        for worker in np.flatnonzero(~late).tolist():
            for job, place in self._given[worker]:
                if place < own:
                    self._alone[job, worker, place] = True
                else:
                    self._coded[job, worker, place - own] = True

    def total(self, job: int) -> Sent | None:
        """All chunks of D1, and each group of D2 by its code."""
        scheme, found = self._scheme, dict[Task, float]()
        if not self._alone[job].all():
            return None
        for worker in range(scheme.workers):
            found |= {scheme.alone(job, worker, place): 1.0 for place in range(scheme.window - 1)}
        for group, code in enumerate(scheme.codes):
            factors = decode(code, self._coded[job, :, group])
            if factors is None:
                return None
            for worker in np.flatnonzero(factors).tolist():
                found[scheme.coded(job, worker, group)] = float(factors[worker])
        return found


def _hold(workers: int, burst: int, window: int, most: int) -> None:
    """InputError: these are no bursts of so many workers."""
    if not 0 <= most <= workers:
        raise InputError("most", most, f"of {workers} workers 0 to {workers} may be late")
    if burst < 1:
        raise InputError("burst", burst, "a burst takes at least 1 round")
    if window <= burst:
        raise InputError("window", window, f"a window is longer than a burst: more than {burst}")


def known(scheme: Scheme, sent: Sent, gradients: Numbers) -> NDArray[np.float64]:
    """A job's gradient [d] from results. gradients: of the chunks, [K, d], of which workers make their results."""
    combined = np.zeros(len(scheme.sizes))
    for task, factor in sent.items():
        combined[list(task.chunks)] += factor * np.array(task.factors)
    return combined @ gradients
