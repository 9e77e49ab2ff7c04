"""The loop: ask the strategy, move the engine to the window's close, tell the strategy.

state = strategy.init(problem)
repeat: orders, window = strategy.ask(state, chosen); engine.submit(orders); replies = engine.collect(window);
        state, metrics, round_done = strategy.tell(state, replies)

A synchronous round is the simplest case: one window that closes when all have answered. A round may also be several
windows; rows of metrics, evaluation and early stopping count completed rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fedsim.engine.cores import one_core_an_operation
from fedsim.engine.ledger import Ledger
from fedsim.errors import DivergedError, InputError
from fedsim.exchange import Orders, Replies, Window
from fedsim.options import Count, Whole, options
from fedsim.selection import Selector
from fedsim.strategy import ProblemView, ServerState, Strategy
from fedsim.streams import SERVER, Streams
from fedsim.transforms import Chain

Row = dict[str, Any]
"""What one completed round came to, by the names of metrics.jsonl."""


class Problem(ProblemView, Protocol):
    """What the loop asks of a problem."""

    sizes: Tensor

    def evaluate(self, params: Tensor, *, clients: bool) -> dict[str, float]:
        """Measure the global model."""
        ...

    def evaluates_clients(self, wanted: bool | str) -> bool:
        """Whether `evaluate` is to measure clients too."""
        ...


class Engine(Protocol):
    """Where orders are executed, and what time it is."""

    time: float
    ledger: Ledger

    @property
    def busy(self) -> frozenset[int]:
        """Clients at work."""
        ...

    def submit(self, orders: Orders) -> None:
        """Send orders."""
        ...

    def collect(self, window: Window) -> Replies:
        """Wait for the window's close and return its replies."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Everything that a restored engine needs."""
        ...

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot."""
        ...

    def describe(self) -> dict[str, Any]:
        """How orders are executed, for the run's config.toml."""
        ...


@options
class Evaluation:
    """When the global model is judged, and on what.

    every: evaluate after so many rounds, and after the last; 0 only then. clients: accuracy of each client's own
    examples, "auto" where it costs little (see `Supervised.evaluates_clients`).
    """

    every: Whole = 1
    clients: bool | Literal["auto"] = "auto"


@options
class Stopping:
    """Stop early: when `metric` has reached `target`, or has not improved for `patience` evaluations.

    Losses improve downwards, everything else upwards.
    """

    metric: str = "test_accuracy"
    target: float | None = None
    patience: Count | None = None

    def __post_init__(self) -> None:
        if self.target is None and self.patience is None:
            raise InputError("target", "(nothing)", "give target, patience or both")

    def reached(self, values: list[float]) -> str | None:
        """Why to stop after these evaluations, or None."""
        sign = -1.0 if "loss" in self.metric else 1.0
        scores = [sign * value for value in values]
        if self.target is not None and scores[-1] >= sign * self.target:
            return f"{self.metric} reached {values[-1]:.4g}"
        if self.patience is not None and len(scores) - 1 - scores.index(max(scores)) >= self.patience:
            return f"{self.metric} has not improved for {self.patience} evaluations"
        return None


@dataclass(frozen=True)
class Parts:
    """What a simulation is made of."""

    problem: Problem
    strategy: Strategy
    selector: Selector
    engine: Engine
    streams: Streams
    rounds: int
    evaluation: Evaluation
    stopping: Stopping | None
    order_transforms: Chain


class Simulation:
    """A run as a value: iterate for one row a completed round; `snapshot` and `restore` at any point between rounds."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.state: ServerState = parts.strategy.init(parts.problem)
        self.selector_state = parts.selector.start(parts.problem.sizes)
        self.round = 0
        self.stopped: str | None = None
        self._watched: list[float] = []
        self._sending = {
            name: torch.zeros((1, *shape), dtype=self.state.params.dtype, device=self.state.params.device)
            for name, shape in parts.order_transforms.init(self.state.params.numel()).items()
        }
        self._clients = parts.problem.evaluates_clients(parts.evaluation.clients)
        self._began = time.perf_counter()

    def __iter__(self) -> Iterator[Row]:
        self._began = time.perf_counter()
        while self.round < self.parts.rounds and self.stopped is None:
            with one_core_an_operation():
                row = self.step()
            yield row

    def step(self) -> Row:
        """Complete one round and say what it came to.

        Model and round change together at the end, so that an interruption leaves those of the round before.
        """
        parts, engine = self.parts, self.parts.engine
        before = replace(engine.ledger)
        done = False
        metrics: dict[str, float] = {}
        state, selector_state, sending = self.state, self.selector_state, self._sending
        while not done:
            chosen, selector_state = parts.selector.select(
                selector_state, parts.streams, self.round, len(parts.problem.sizes), engine.busy
            )
            orders, window = parts.strategy.ask(state, chosen)
            orders, sending = self._transformed(orders, sending)
            engine.submit(orders)
            replies = engine.collect(window)
            selector_state = parts.selector.observe(selector_state, replies)
            try:
                state, observed, done = parts.strategy.tell(state, replies)
            except InputError as error:  # too few replies for a robust aggregator
                raise DivergedError(
                    f"round {self.round + 1}, {len(replies.failed)} updates not finite: {error}"
                ) from error
            metrics.update(observed)
        number = self.round + 1
        crossed = engine.ledger.since(before)
        _hold_finite(number, state.params, crossed, metrics)
        found = self._evaluate(number, state.params) if self._due(number) else {}
        row: Row = {
            "round": number,
            "time": engine.time,
            "wall": time.perf_counter() - self._began,
            "clients": crossed["clients"],
            "failed": crossed["failed"],
            "bytes_up": crossed["bytes_up"],
            "bytes_down": crossed["bytes_down"],
            "queries": crossed["queries"],
            **metrics,
            **found,
        }
        self.state, self.selector_state, self._sending, self.round = state, selector_state, sending, number
        return row

    def snapshot(self) -> dict[str, Any]:
        """Everything that a restored simulation needs to go on as if nothing had happened."""
        return {
            "state": deepcopy(self.state),
            "selector": deepcopy(self.selector_state),
            "engine": self.parts.engine.snapshot(),
            "round": self.round,
            "stopped": self.stopped,
            "watched": list(self._watched),
            "sending": deepcopy(self._sending),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go back to a snapshot."""
        self.state, self.selector_state = deepcopy(saved["state"]), deepcopy(saved["selector"])
        self.parts.engine.restore(saved["engine"])
        self.round, self.stopped, self._watched = saved["round"], saved["stopped"], list(saved["watched"])
        self._sending = deepcopy(saved["sending"])

    def _transformed(self, orders: Orders, state: dict[str, Tensor]) -> tuple[Orders, dict[str, Tensor]]:
        """An order as the transforms of orders leave it, and their state, which the server keeps."""
        chain = self.parts.order_transforms
        if not chain.transforms:
            return orders, state
        if set(orders.payload) != {"params"}:
            raise InputError("order_transforms", ", ".join(orders.payload), "these orders carry more than the model")
        params = orders.payload["params"]
        server = torch.tensor([SERVER], device=params.device)
        rows, state = chain.apply(params.unsqueeze(0), state, server, self.parts.streams, orders.round)
        return replace(orders, payload={"params": rows[0]}, encoded=chain.nbytes(params)), state

    def _due(self, number: int) -> bool:
        every = self.parts.evaluation.every
        return number == self.parts.rounds or (every > 0 and number % every == 0)

    def _evaluate(self, number: int, params: Tensor) -> dict[str, float]:
        found = self.parts.problem.evaluate(params, clients=self._clients)
        for name, value in found.items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} is {value} after round {number}; lower client.lr")
        stopping = self.parts.stopping
        if stopping is not None:
            self._watched.append(found[stopping.metric])
            self.stopped = stopping.reached(self._watched)
        return found


def _hold_finite(number: int, params: Tensor, crossed: Mapping[str, int], metrics: Mapping[str, float]) -> None:
    """End a run that cannot get better, with what to do about it."""
    if crossed["failed"] and crossed["failed"] == crossed["clients"]:
        raise DivergedError(f"none of the {crossed['failed']} updates of round {number} is finite; lower client.lr")
    if not bool(torch.isfinite(params.sum())):
        raise DivergedError(
            f"the global model is not finite after round {number}; lower client.lr or strategy.server_lr"
        )
    loss = metrics.get("train_loss", 0.0)
    if not math.isfinite(loss):
        raise DivergedError(f"train_loss is {loss} in round {number}; lower client.lr")
