"""Executing cohorts in worker processes: for clients whose Python would keep the others waiting for its lock.

Each process builds the experiment's problem and client once, then does what cohorts are ordered to; their state, their
orders and their replies cross through shared memory, and everything else is as without processes. A client's numbers do
not depend on who else is in its cohort, so they are those of `stacked`, to the bit.

What the server measures (evaluation, scores, utilities) is computed in the process that has started the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedsim.core.errors import FedsimError, InputError, warn
from fedsim.core.streams import Streams
from fedsim.engine.client import Client
from fedsim.engine.executor import Executor
from fedsim.engine.job import CohortResult, Job
from fedsim.exchange.messages import Update
from fedsim.nets.network import PlainNetwork
from fedsim.parallel.cores import one_core_an_operation
from fedsim.parallel.workers import Failed, Lost, Workers
from fedsim.problems.base import Problem


class ProcessExecutor(Executor):
    """Runs orders for any clients of a problem in processes, each of which has an `Executor` of its own.

    A cohort whose process dies is tried once more, then each of its clients by itself, so that only a client that ends
    its process twice is lost: its update counts as one that is not finite, and it starts again from what it was.
    """

    def __init__(self, problem: Problem, client: Client, streams: Streams, *, workers: Workers, **options: Any) -> None:
        super().__init__(problem, client, streams, **options)
        if problem.device.type != "cpu":
            raise InputError("engine.executor", "process", "its processes compute on the CPU; set engine.device = cpu")
        self.name, self.cores, self._workers = "process", workers.count, workers

    @property
    def chunk(self) -> int:
        """How many clients are stacked at most."""
        return 1 if isinstance(self.network, PlainNetwork) else super().chunk

    def close(self) -> None:
        """End the processes; who goes on has others."""
        self._workers.close()

    def _spreads(self, clients: int) -> bool:  # noqa: ARG002
        return self.cores > 1

    def _all_act(self, parts: Sequence[Job]) -> list[CohortResult]:
        if not any(map(len, parts)):  # no process is needed to say what nobody's reply looks like
            return super()._all_act(parts)
        outcomes = self._workers.map(_act, [(part, self.store.read(part.clients)) for part in parts])
        return [result for part, outcome in zip(parts, outcomes, strict=True) for result in self._taken(part, outcome)]

    def _taken(self, part: Job, outcome: Any) -> list[CohortResult]:
        """What came of a cohort, in one piece or more. Raises what its clients raised."""
        if isinstance(outcome, Lost):
            if len(part) > 1:
                return self._all_act([part[torch.tensor([row])] for row in range(len(part))])
            warn(f"client {int(part.clients)} {outcome.reason}, twice; its update is left out")
            return [self._lost(part)]
        if isinstance(outcome, partial):
            raise outcome()
        if isinstance(outcome, Failed):
            raise FedsimError(f"a client's work {outcome.reason}") from RuntimeError(getattr(outcome, "traceback", ""))
        return [outcome]

    def _lost(self, part: Job) -> CohortResult:
        nobody = part[torch.zeros(0, dtype=torch.int64)]
        with one_core_an_operation():
            nothing = self.act(nobody, self.store.read(nobody.clients))

        def rows(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.new_zeros((len(part), *value.shape[1:])) for name, value in named.items()}

        update = Update(rows(nothing.update.payload), rows(nothing.update.metrics))
        finite, nbytes = torch.zeros(len(part), dtype=torch.bool), torch.full_like(part.clients, part.encoded)
        queries = part.clients.new_zeros((len(part), 3))
        return CohortResult(part.clients, update, rows(nothing.state), finite, nbytes, queries)


def _act(executor: Executor, task: tuple[Job, Mapping[str, Tensor]]) -> Any:
    """What a process does; what it raises on purpose is sent as a call that makes it."""
    try:
        result, oracle = executor.act(*task), executor.problem.oracle
        return result if oracle is None else replace(result, said=oracle.complaints())
    except InputError as error:
        return partial(InputError, error.option, error.value, error.remedy)
    except FedsimError as error:
        return partial(type(error), str(error))
