"""What the clients of a subject ask their problem for, window by window, beside what the ledger counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch

from fedsim.engine.cohort import Cohort
from fedsim.testing.rounds import engine_of, everybody, exchange, hear
from fedsim.testing.subject import Subject


@dataclass
class Asked:
    """The values that a window's clients asked for.

    counted, extra: as the ledger has them, and those of them that are no part of the method's published count.
    declared: before the work; None in the first round.
    """

    action: str = ""
    queries: int = 0
    counted: int = 0
    extra: int = 0
    declared: int | None = None


def questions(subject: Subject) -> list[Asked]:
    """What is asked in the windows of two rounds with everybody."""
    return _questions(subject.described, subject.values_only)


@cache
def _questions(described: str, values_only: bool) -> list[Asked]:
    simulation = Subject(json.loads(described), values_only=values_only).simulation()
    engine, state, clients = engine_of(simulation), simulation.state, everybody(simulation)
    windows = list[Asked]()
    while state.round < 2:
        window, before = Asked(), replace(engine.ledger)
        with _noticed(window):
            orders, replies = exchange(simulation, state, clients)
        crossed = engine.ledger.since(before)
        window.action, window.counted, window.extra = orders.action, crossed["queries"], crossed["extra_queries"]
        if state.round:
            window.declared = len(clients) * engine.executor.assign(orders).cost.queries
        windows.append(window)
        state, _, done = hear(simulation, state, replies)
        clients = everybody(simulation) if done else replies.clients
    return windows


@contextmanager
def _noticed(window: Asked) -> Iterator[None]:
    """Within this block, whatever a cohort is asked for is noted."""
    query, evaluate, differentiate = Cohort.query, Cohort.evaluate, Cohort.differentiate

    def noted_query(self: Cohort, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        window.queries += x.shape[0] * x.shape[1]
        return query(self, x, *args, **named)

    def noted_evaluate(self: Cohort, y: Any, batch: Any) -> torch.Tensor:
        window.queries += len(y)
        return evaluate(self, y, batch)

    def noted_derivatives(self: Cohort, x: torch.Tensor, v: torch.Tensor, batch: Any = None) -> Any:
        window.queries += v.shape[0] * v.shape[1]
        return differentiate(self, x, v, batch)

    with (
        patch.object(Cohort, "query", noted_query),
        patch.object(Cohort, "evaluate", noted_evaluate),
        patch.object(Cohort, "differentiate", noted_derivatives),
    ):
        yield
