"""How long a scheme takes on workers of whom some are slow for a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.coding.schemes import Scheme
from fedsim.coding.stragglers import Mask
from fedsim.core.errors import BrokenPromiseError


@dataclass(frozen=True)
class Cluster:
    """n workers' seconds for a round: (fixed + variable n load) times `slowdown` of those that are slow in it.

    patience: mu. The server looks when (1 + mu) times the fastest worker's seconds are over. If those who are late by
    then go with what the scheme is designed for it goes on without them, and else waits for all: so every job is known
    in time, whatever happens. (Krishnan et al. 2023, section 4.)
    """

    fixed: float = 1.0
    variable: float = 0.1
    slowdown: float = 5.0
    patience: float = 1.0


@dataclass(frozen=True, eq=False)
class Timed:
    """What jobs took. ends: the seconds at which each round was over, float64 [R].

    waited: rounds in which all were waited for, as too many were late. late: how many times workers were not waited
    for. results: how many vectors [d] came in time.
    """

    ends: NDArray[np.float64]
    waited: int
    late: int
    results: int

    @property
    def seconds(self) -> float:
        """Until all jobs are known."""
        return float(self.ends[-1])


def simulate(scheme: Scheme, cluster: Cluster, slow: Mask, jobs: int) -> Timed:
    """Carry out so many jobs. slow: who is in which round, bool [at least jobs + T, n].

    BrokenPromiseError: a job is not known in time.
    """
    came = scheme.nothing()
    earlier: list[Mask] = []
    taken: list[float] = []
    waited, results = 0, 0
    for number in range(jobs + scheme.delay):
        work = scheme.work(number, came).within(number, jobs)
        took = cluster.fixed + cluster.variable * scheme.workers * scheme.done(work)
        took *= np.where(slow[number], cluster.slowdown, 1.0)
        deadline = (1 + cluster.patience) * took.min()
        late = took > deadline
        if late.any() and not scheme.needs(earlier).allow(late):
            waited += 1
            late = np.zeros_like(late)
        taken.append(float(deadline if late.any() else took.max()))
        came = scheme.arrived(came, number, work, late)
        earlier.append(late)
        results += int((work.places[~late] >= 0).sum())
        due = number - scheme.delay
        row = due % (scheme.delay + 1)
        if due >= 0 and scheme.decode(came[row]) is None:
            raise BrokenPromiseError(f"{type(scheme).__name__}: job {due} is not known after round {number}")
        came[row] = False
    return Timed(np.cumsum(taken), waited, int(sum(mask.sum() for mask in earlier)), results)
