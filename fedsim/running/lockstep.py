"""The same experiment under several seeds, executed as one: the clients of all runs that wait are one cohort.

Client c of run s, of S runs of N clients each, is client s N + c of the joint executor. It has the function, the draws
and the memory of its own, so every number is that of a single run, and only the time differs: the work on small tensors
is mostly the calls, and there are as many of them for ten runs as for one.

Each run is driven in a thread of its own, of which one is awake at a time: until its run has orders to be executed.
When all wait, what can be stacked is executed together and they go on, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError, FedsimError, InputError
from fedsim.core.streams import Index, Streams
from fedsim.engine.executor import Executor
from fedsim.engine.job import Job, JobResult
from fedsim.engine.scratch import Scratch
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.black_box import BlackBox

Made = TypeVar("Made")
UNBOUNDED = 2**62
"""Bytes: the state of each run is held to its limit by that run's own executor."""


@dataclass(frozen=True)
class JointStreams(Streams):
    """The draws of several runs: those of joint client s N + c are those of client c under `seeds[s]`.

    num_clients: N. Draws that belong to no client, of which each run has its own, are a BrokenPromiseError.
    """

    seed: int = field(default=-1, init=False)
    seeds: tuple[int, ...]
    num_clients: int

    def derive(self, purpose: str, *, turn: int = 0, step: int = 0) -> int:  # noqa: ARG002
        """Refuse: there is no one seed."""
        raise BrokenPromiseError(f"a cohort drew {purpose} for the whole run; several runs cannot be executed together")

    def keyed(self, name: str, owners: Tensor) -> tuple[Tensor, Index, Index]:
        """See `Streams.keyed`: the clients' own ids, and the keys of their runs."""
        run = owners // self.num_clients
        if owners.numel() and int(run.max()) >= len(self.seeds):
            self.derive(name)
        low, high = _words_of_keys(self.seeds, self.within + name, owners.device)
        return owners - run * self.num_clients, low[run], high[run]


@lru_cache(maxsize=1024)
def _words_of_keys(seeds: tuple[int, ...], name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two words of each seed's key, int64 [S] each."""
    nobody = torch.zeros(0, dtype=torch.int64)
    low, high = torch.tensor([Streams(seed).keyed(name, nobody)[1:] for seed in seeds], device=device).T
    return low.contiguous(), high.contiguous()


class JointProblem(BlackBox):
    """The functions of several runs' black boxes, which may differ in nothing else but where they start."""

    def __init__(self, each: Sequence[BlackBox]) -> None:
        first = each[0]
        for name in ("num_clients", "dimension", "bounds", "noise", "on_error", "device", "dtype"):
            values = {getattr(one, name) for one in each}
            if len(values) > 1:
                raise InputError("problem", type(first).__name__, f"its {name} follows the seed; run the seeds apart")
        self.each = tuple(each)
        super().__init__(
            first.functions.join([one.functions for one in each[1:]]),
            dimension=first.dimension,
            bounds=first.bounds,
            noise=first.noise,
            on_error=first.on_error,
            device=first.device,
            dtype=first.dtype,
        )

    def truth(self, clients: Tensor, x: Tensor) -> Tensor | None:
        """See `BlackBox.truth`: of each client's own run."""
        size, runs = self.each[0].num_clients, list(_runs(clients // self.each[0].num_clients))
        longest = max((rows.stop - rows.start for _, rows in runs), default=0)
        points = x.new_zeros(len(runs), longest, x.shape[1])
        for own, (_, rows) in zip(points, runs, strict=True):
            own[: rows.stop - rows.start] = x[rows]
        everyone = torch.arange(size, device=x.device)
        asked = torch.cat([run * size + everyone for run, _ in runs] or [everyone[:0]])
        found = self.gradients(asked, points.repeat_interleave(size, dim=0))
        if found is None or not runs:
            return found
        means = [own.mean(dim=0) for own in torch.split(found, size)]
        return torch.cat([mean[: rows.stop - rows.start] for mean, (_, rows) in zip(means, runs, strict=True)])


def _runs(owners: Tensor) -> Iterator[tuple[int, slice]]:
    """The runs that follow each other in int64 [C], and the rows of each."""
    values, counts = torch.unique_consecutive(owners, return_counts=True)
    begin = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        yield value, slice(begin, begin + count)
        begin += count


class Member(Executor):
    """The executor of one of several runs, which has its orders executed together with the others'.

    lockstep: of all runs; number: which this is. The rest as `Executor`. Clients of which a cohort must have one order
    (see `Executor.mixes`) are executed here.
    """

    def __init__(self, *given: Any, lockstep: Lockstep, number: int, **options: Any) -> None:
        super().__init__(*given, **options)
        self._lockstep, self._number = lockstep, number
        lockstep.join(number, self)

    def execute(self, job: Job) -> JobResult:
        """Wait until all runs wait, and have clients do what they are ordered to."""
        if not self.mixes(job.orders[0]):
            return super().execute(job)
        return self._lockstep.execute(self._number, job)

    def alike(self, job: Job) -> Hashable:
        """What jobs of different runs must have in common to be executed together."""
        orders = job.orders[0]
        payload = tuple(sorted((name, tuple(value.shape)) for name, value in orders.payload.items()))
        return self.stackable(orders), payload, tuple(sorted(job.cost.reply.items()))


class Lockstep:
    """Drives runs together. Each makes a `Member` of it before it has anything to execute."""

    def __init__(self, runs: int) -> None:
        self._members: dict[int, Member] = {}
        self._seats: list[_Seat[Any]] = []
        self._runs = runs
        self._joint: Executor | None = None

    def join(self, number: int, member: Member) -> None:
        """Take in the executor of a run."""
        self._members[number] = member

    def execute(self, number: int, job: Job) -> JobResult:
        """Have a run wait until its orders have been executed."""
        return self._seats[number].wait_for(job)

    def drive(self, jobs: Sequence[Callable[[], Made]]) -> list[Made]:
        """Call every job, each of which runs one run: what they return.

        What one of them raises ends all others, and is raised; so does an interruption, which is an end like others
        where all jobs take it as one. They see the same error; where it may be of one run alone, a FedsimError.
        """
        seats = [_Seat(job) for job in jobs]
        self._seats = list(seats)
        with one_core_an_operation():
            try:
                for seat in seats:
                    seat.begin()
                while waiting := [seat for seat in seats if not seat.ended]:
                    for seat, work in zip(waiting, self._execute(waiting), strict=True):
                        seat.wake(work)
            except BaseException as error:
                for seat in seats:
                    seat.end(_told(error))
                if not (isinstance(error, KeyboardInterrupt) and all(seat.made for seat in seats)):
                    raise
        return [made for seat in seats for made in seat.made]

    def _execute(self, waiting: Sequence[_Seat[Any]]) -> list[JobResult]:
        """Execute what these wait for, as much of it together as can be."""
        groups: dict[Hashable, list[tuple[int, Job]]] = {}
        for number, seat in enumerate(self._seats):
            if seat.pending is not None:
                alike = self._members[number].alike(seat.pending)
                groups.setdefault(alike, []).append((number, seat.pending))
        works: dict[int, JobResult] = {}
        for group in groups.values():
            works |= self._together(group)
        return [works[self._seats.index(seat)] for seat in waiting]

    def _together(self, group: Sequence[tuple[int, Job]]) -> dict[int, JobResult]:
        """Execute the jobs of some runs as one."""
        if self._joint is None:
            self._joint = _executor([self._members[number] for number in range(self._runs)])
        size = self._members[0].problem.num_clients
        parts = [part for _, part in group]
        before = accumulate((len(part.orders) for part in parts), initial=0)
        origins = [first + _origin(part) for first, part in zip(before, parts, strict=False)]
        first = parts[0]
        union = Job(
            orders=tuple(orders for part in parts for orders in part.orders),
            origin=torch.cat(origins),
            clients=torch.cat([part.clients + number * size for number, part in group]),
            cost=replace(first.cost, steps=torch.cat([part.cost.steps for part in parts]), effort=None),
            encoded=first.encoded,
        )
        work, found, begin = self._joint.execute(union), dict[int, JobResult](), 0
        for number, part in group:
            said = {client % size: text for client, text in work.said.items() if client // size == number}
            found[number] = replace(_rows(work, slice(begin, begin + len(part))), said=said)
            begin += len(part)
        return found


class _Seat(Generic[Made]):
    """A thread that is awake only while the one that drives it waits for it.

    made: what its job has returned, once it has. pending: what it waits for.
    """

    def __init__(self, job: Callable[[], Made]) -> None:
        self.made: list[Made] = []
        self.pending: Job | None = None
        self.ended = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, args=(job,), daemon=True)
        self._inbox: SimpleQueue[JobResult | BaseException] = SimpleQueue()
        self._paused: SimpleQueue[None] = SimpleQueue()

    def _work(self, job: Callable[[], Made]) -> None:
        try:
            self.made.append(job())
        except BaseException as error:  # raised in the thread that drives
            self._error = error
        self.ended = True
        self._paused.put(None)

    def wait_for(self, job: Job) -> JobResult:
        """In the thread itself: sleep until this has been executed."""
        self.pending = job
        self._paused.put(None)
        answer = self._inbox.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def begin(self) -> None:
        """Start, and wait until it sleeps or has ended; raises what it raised."""
        self._thread.start()
        self._settle()

    def wake(self, answer: JobResult | BaseException) -> None:
        """Go on with what was waited for, or by raising an error, until it sleeps again or has ended."""
        self.pending = None
        self._inbox.put(answer)
        self._settle()

    def end(self, error: BaseException) -> None:
        """Have it end with an error, if it has not ended."""
        if self._thread.ident is None:
            self.ended = True
        while not self.ended:
            with suppress(BaseException):  # what it raises has been said, or is what it was told
                if self.pending is None:
                    self._settle()
                else:
                    self.wake(error)

    def _settle(self) -> None:
        while not self.ended and self.pending is None:
            with suppress(Empty):  # an interruption may have taken the word away
                self._paused.get(timeout=1.0)
        if self._error is not None:
            raise self._error


def _executor(members: Sequence[Member]) -> Executor:
    """The executor of all runs' clients, which has their memory, too."""
    first = members[0]
    problem = JointProblem([_black_box(member) for member in members])
    executor = Executor(
        problem,
        first.client,
        JointStreams(tuple(member.streams.seed for member in members), first.problem.num_clients),
        choice="loop" if first.name == "loop" else "stacked",
        transforms=first.transforms.transforms,
        memory=first.memory,
        state_memory=UNBOUNDED,
    )
    executor.scratch, executor.cores = Scratch(first.memory * len(members)), first.cores
    return executor


def _black_box(member: Member) -> BlackBox:
    if not isinstance(member.problem, BlackBox):
        raise InputError("problem", type(member.problem).__name__, "only runs on black boxes are executed together")
    return member.problem


def _origin(part: Job) -> Tensor:
    return torch.zeros_like(part.clients) if part.origin is None else part.origin


def _rows(work: JobResult, rows: slice) -> JobResult:
    """Some rows of what a job came to; copies, which begin in memory where any tensor does."""
    payload, metrics = (
        {name: value[rows].clone() for name, value in named.items()} for named in (work.payload, work.metrics)
    )
    finite, nbytes, queries = (held[rows].clone() for held in (work.finite, work.nbytes, work.queries))
    return JobResult(payload, metrics, finite, nbytes, queries)


def _told(error: BaseException) -> BaseException:
    """What runs are told when one of them, or their common work, has ended with an error."""
    if isinstance(error, InputError):
        return InputError(error.option, error.value, error.remedy)
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt()
    told = FedsimError(f"ended with the others of its stack ({type(error).__name__}: {error})")
    told.__cause__ = error
    return told
