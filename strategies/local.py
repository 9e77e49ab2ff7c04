"""Local training alone: each client has a model of its own, and nothing crosses; what others are held against.

v_i <- v_i - lr grad f_i(v_i)
Here every v_i begins as the problem does, and goes on where its client left it. 0 bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from fedsim.server import All, Metrics, Order, ProblemView, Replies, ServerState, Strategy, Window, observed, options


@options
class Local(Strategy):
    """Needs the client `local`."""

    down: ClassVar[frozenset[str]] = frozenset()
    up: ClassVar[frozenset[str]] = frozenset()
    aggregates: ClassVar[bool] = False
    for_all: ClassVar[bool] = False

    def init(self, problem: ProblemView) -> ServerState:
        """What all models begin with, which stays."""
        return ServerState(problem.initial(), trained=problem.trained)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Have the chosen clients train; wait for everybody."""
        return Order("train", chosen, {}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Count the round."""
        return replace(state, round=state.round + 1), observed(replies), True
