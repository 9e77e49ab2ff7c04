"""Rounds outside of the loop, window by window, in which something happens to what crosses; and what to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.engine.client import Client
from fedsim.engine.virtual import VirtualEngine
from fedsim.exchange.messages import Order, Replies, Update
from fedsim.exchange.windows import All
from fedsim.running.simulation import TURNS, Simulation
from fedsim.server.strategy import Metrics, ServerState

WINDOWS = 50
"""More than a round is made of."""
Heard = Callable[[int, Replies], Replies]
"""What the server hears of a window's replies; the window by its number."""


def engine_of(simulation: Simulation) -> VirtualEngine:
    """The engine of a simulation of this process."""
    engine = simulation.parts.engine
    assert isinstance(engine, VirtualEngine)
    return engine


def everybody(simulation: Simulation) -> Tensor:
    """All clients, int64 [N]."""
    return torch.arange(simulation.parts.problem.num_clients)


def exchange(
    simulation: Simulation, state: ServerState, clients: Tensor, window: All | None = None
) -> tuple[Order, Replies]:
    """One window with these clients, int64 [C]; by default it closes when all have answered."""
    parts = simulation.parts
    orders, _ = parts.strategy.ask(state, clients)
    if state.phase:
        orders = replace(orders, turn=TURNS + state.phase, counts=False)
    parts.engine.submit(orders)
    replies = parts.engine.collect(window or All(), state.round)
    assert replies is not None
    return orders, replies


def hear(simulation: Simulation, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
    """What the strategy makes of a window's replies, and, where the server trains the model itself, of a round."""
    strategy, bench = simulation.parts.strategy, simulation.parts.bench
    later, metrics, done = strategy.tell(state, replies)
    if done and bench is not None:
        later, more = strategy.refine(later, replies, bench)
        metrics = {**metrics, **more}
    return later, metrics, done


@dataclass(frozen=True)
class Completed:
    """A round that everybody was asked for. state: after it. replies: those of each window, as the server heard them.

    actions: of each window's orders.
    """

    state: ServerState
    replies: list[Replies]
    actions: list[str]


def go_round(
    simulation: Simulation,
    heard: Heard | None = None,
    before: Callable[[int], None] | None = None,
    window: All | None = None,
    state: ServerState | None = None,
) -> Completed:
    """A round with everybody. heard: what the server hears. before: called with a window's number before it opens.

    window: when the first one closes. state: to begin with, by default the first. AssertionError: it never ends.
    """
    state, clients = simulation.state if state is None else state, everybody(simulation)
    replies, actions = list[Replies](), list[str]()
    for number in range(WINDOWS):
        if before is not None:
            before(number)
        orders, found = exchange(simulation, state, clients, None if number else window)
        replies.append(found if heard is None else heard(number, found))
        actions.append(orders.action)
        state, _, done = hear(simulation, state, replies[-1])
        if done:
            return Completed(state, replies, actions)
        clients = replies[-1].clients
    raise AssertionError(f"round {state.round + 1} is not done after {WINDOWS} windows")


def without(client: int, window: int) -> Heard:
    """A client is not heard in a window."""
    return lambda number, replies: replies.where(replies.clients != client) if number == window else replies


def take(simulation: Simulation, ticks: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> None:
    """From now on, orders take clients [k] so many ticks [k]."""
    engine_of(simulation).fleet.durations = lambda clients, *_: ticks(clients)  # type: ignore[method-assign]


def fail(simulation: Simulation, *failing: int) -> None:
    """From now on, these clients' machines fail a tick after they have begun to work."""
    engine_of(simulation).fleet.failures = (  # type: ignore[method-assign]
        lambda clients, *_: np.where(np.isin(clients, failing), 1, -1)
    )


class Spoiled:
    """A client algorithm in which what one client tells is spoiled while `on`: it is `value`.

    part: of its update, `payload` or `metrics`. found: whether there was a number that can be so.
    """

    def __init__(self, simulation: Simulation, client: int, part: str, value: float) -> None:
        executor = engine_of(simulation).executor
        self.algorithm, executor.client = executor.client, cast("Client", self)
        self.client, self.part, self.value = client, part, value
        self.on = self.found = False

    def __getattr__(self, name: str) -> Any:
        own = getattr(self.algorithm, name)
        if not callable(own):
            return own

        def act(*args: Any, **named: Any) -> Any:
            answer = own(*args, **named)
            return self._spoil(args[0].clients, answer) if self.on and isinstance(answer, Update) else answer

        return act

    def _spoil(self, clients: Tensor, update: Update) -> Update:
        told = dict(getattr(update, self.part))
        name = next((name for name, rows in told.items() if rows.is_floating_point()), None)
        if name is None:
            return update
        self.found = True
        told[name] = told[name].clone()  # the client may remember it, and tells something else
        told[name][clients == self.client] = self.value
        return replace(update, **{self.part: told})


def copied(value: Any) -> Any:
    """A deep copy, of dataclasses as dictionaries, for `same`."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if dataclasses.is_dataclass(value):
        return {option.name: copied(getattr(value, option.name)) for option in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [copied(inner) for inner in value]
    return {name: copied(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def same(first: Any, second: Any) -> bool:
    """Whether two copies are equal to the last bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def differ(first: Tensor, second: Tensor) -> bool:
    """Whether two runs' parameters [d] differ by more than rounding."""
    return not torch.allclose(first, second, rtol=1e-6)
