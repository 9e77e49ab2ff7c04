"""The loop: ask the strategy, move the engine to the window's close, tell the strategy.

state = strategy.init(problem)
repeat: orders, window = strategy.ask(state, chosen); engine.submit(orders); replies = engine.collect(window);
        state, metrics, round_done = strategy.tell(state, replies)

A synchronous round is the simplest case: one window that closes when all have answered. A round may also be several
windows, the later ones for those who have answered the one before; and who has not answered may work on. The global
model is judged after so many rounds, or at so many virtual seconds; between two judgements of an asynchronous run
nothing is kept but counters, so that its memory does not grow with the number of windows.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.configuration.evaluation import Evaluation, Stopping
from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import DivergedError, FedsimError, InputError, StalledError, naming
from fedsim.core.graph import storable
from fedsim.core.streams import SERVER, Streams
from fedsim.engine.base import Engine
from fedsim.exchange.actions import REPORT_UTILITY, SCORE, SCORE_EXAMPLES, UTILITY
from fedsim.exchange.messages import Order, Replies, Size, joined
from fedsim.exchange.transforms import Chain, Sender
from fedsim.exchange.windows import All, First, Window
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.base import Problem
from fedsim.server.selection.base import Selector, SelectorState, Turn
from fedsim.server.strategy import ServerState, Strategy

Row = dict[str, Any]
"""What one completed round, or the time since the last row, came to, by the names of metrics.jsonl."""
TURNS = 2**31
"""Numbers from here on name draws by order where rounds do not tell orders apart."""
RESTS = 100_000
"""How often in a row something is waited for in vain before a run is given up."""


@dataclass(frozen=True)
class Setup:
    """What a simulation is made of. rounds, duration (virtual seconds): where it ends; None: not there.

    steady: whether all clients that are sent orders answer them, as far as their devices go.
    """

    problem: Problem
    strategy: Strategy
    selector: Selector
    engine: Engine
    streams: Streams
    rounds: int | None
    duration: float | None
    evaluation: Evaluation
    stopping: Stopping | None
    order_transforms: Chain
    steady: bool = True


@storable("server")
class _Server(NamedTuple):
    """What the server knows. sending: state of the orders' transforms. asked: how often it has sent orders."""

    state: ServerState
    selector: SelectorState
    sending: dict[str, Tensor]
    asked: int = 0


@storable("interval")
@dataclass
class _Interval:
    """What the strategy has observed since the last row: metrics, averaged over rounds by their number of replies."""

    rounds: int = 0
    last: Mapping[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float], replies: int) -> None:
        """Take in a round."""
        self.rounds += 1
        self.last = metrics
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + replies * value
            self.weights[name] = self.weights.get(name, 0.0) + replies

    def metrics(self) -> dict[str, float]:
        """The averages; of a single round its own metrics as they are."""
        if self.rounds == 1:
            return dict(self.last)
        return {name: total / self.weights[name] for name, total in self.sums.items() if self.weights[name]}


class _TimeOverError(Exception):
    """The run is over while a window is open."""


class Simulation:
    """A run as a value: iterate for its rows; `snapshot` and `restore` between two of them.

    params: the global model [d] that the last row is about. between: called before each round, when the rows of those
    before have been taken and nothing is under way: the moment for a checkpoint. whole: no round is under way.
    """

    def __init__(self, parts: Setup) -> None:
        self.parts = parts
        self.between: Callable[[], None] | None = None
        self.whole = True
        state = _planned(parts)
        self.params = state.params
        self.stopped: str | None = None
        sending = {
            name: torch.zeros((1, *shape), dtype=state.params.dtype, device=state.params.device)
            for name, shape in parts.order_transforms.state(Size.of(state.params)).items()
        }
        self._server = _Server(state, parts.selector.start(parts.problem.sizes), sending)
        self._at_work = parts.selector.of(len(parts.problem.sizes))
        self._clients = parts.problem.evaluates_clients(parts.evaluation.clients)
        self._trial = parts.evaluation.trial(parts.streams)
        self._end = None if parts.duration is None else ticks(parts.duration)
        every = parts.evaluation.every_seconds
        self._grid = None if every is None else ticks(every)
        self._watched: list[float] = []
        self._rows: deque[tuple[Row, Tensor]] = deque()
        self._interval = _Interval()
        self._crossed = replace(parts.engine.ledger)
        self._looks = 0
        self._judged: tuple[int, dict[str, float]] = (-1, {})
        self._attacked = -1
        self._in_vain = self._failed = 0
        self._over = False
        self._ending: BaseException | None = None
        self._made = 0
        self._earlier, self._began = 0.0, time.perf_counter()

    @property
    def state(self) -> ServerState:
        """The strategy's state after the last completed round."""
        return self._server.state

    @property
    def round(self) -> int:
        """How many rounds are completed."""
        return self._server.state.round

    @property
    def told(self) -> int:
        """How many rows have been handed out."""
        return self._made - len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        self._began = time.perf_counter()
        while self._rows or not self._ended():
            row = self._next()
            if row is not None:
                yield row
        if self._ending is not None:
            raise self._ending

    def step(self) -> Row:
        """Go on to the next row: complete a round, or as many as an evaluation takes."""
        row = self._next()
        if row is None:
            raise FedsimError("the run is over")
        return row

    def snapshot(self, *, copy: bool = True) -> dict[str, Any]:
        """Everything that a restored simulation needs to go on as if nothing had happened.

        copy: False shares what is in it with the run, for those who are done with it before the run goes on.
        """
        found = {name: getattr(self, name) for name in _KEPT}
        found |= {"engine": self.parts.engine.snapshot(), "wall": self._wall}
        return deepcopy(found) if copy else found  # in one copy, so that flights go on sharing their orders and results

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go back to a snapshot."""
        self.parts.engine.restore(saved["engine"])
        for name, value in deepcopy({name: saved[name] for name in _KEPT}).items():
            setattr(self, name, value)
        self._earlier, self._began, self.whole = saved["wall"], time.perf_counter(), True

    @property
    def _wall(self) -> float:
        """Seconds that the run has taken so far, those before a snapshot included."""
        return self._earlier + time.perf_counter() - self._began

    def _next(self) -> Row | None:
        with one_core_an_operation():
            while not self._rows and not self._ended():
                if self.between is not None:
                    self.between()
                try:
                    self.complete_round()
                except _TimeOverError:
                    self._over = True
                except StalledError as error:
                    self._ending = error
                    self._put_by(self._evaluate(last=True))
                except (DivergedError, KeyboardInterrupt) as error:
                    if not self._rows:
                        raise
                    self._ending = error  # after the rows that were put by while a window was open
        if not self._rows:
            return None
        row, self.params = self._rows.popleft()
        return row

    def _ended(self) -> bool:
        rounds = self.parts.rounds
        ended = self._over or self.stopped is not None or self._ending is not None
        return ended or (rounds is not None and self.round >= rounds)

    def complete_round(self) -> None:
        """Complete one round, and put by the rows that became due.

        What the server knows changes at the end, so that an interruption leaves that of the round before.
        """
        parts, engine, self.whole = self.parts, self.parts.engine, False
        server, count, failed, done, keeps = self._server, 0, 0, False, False
        number, metrics = self.round + 1, dict[str, float]()
        answered: Tensor | None = None
        while not done:
            if answered is None:
                server, chosen = self._choose(server)
            else:
                chosen = answered[torch.from_numpy(engine.free().mask)[answered]]
            server, orders, window = self._send(server, chosen, further=answered is not None)
            server, replies = self._collect(server, orders, window)
            answered, keeps = replies.clients, orders.late == "keep"
            count, failed = count + len(replies) * orders.counts, failed + len(replies.failed)
            selector = parts.selector.observe(server.selector, replies) if orders.counts else server.selector
            try:
                state, observed, done = parts.strategy.tell(server.state, replies)
            except InputError as error:  # too few replies for a robust aggregator
                if parts.steady or _would_do(replies, len(replies.failed) - replies.spoiled):
                    why = f", {failed} updates not finite" if failed else f", with {count} replies"
                    raise DivergedError(f"round {number}{why}: {error}") from error
                engine.trace.skipped += 1
                nobody = torch.zeros(len(replies), dtype=torch.bool)
                state, observed, done = parts.strategy.tell(server.state, replies.where(nobody))
            server = _Server(state, selector, server.sending, server.asked)
            metrics.update(observed)
        _hold_finite(number, server.state.params, metrics)
        self._server, self._in_vain = server, 0
        self._interval.add(metrics, count)
        every, settled = parts.evaluation.rounds, engine.settled()
        self._over = (settled and self._time_is_over()) or self._spent()
        if self._grid is not None and settled and self._look() == engine.now:
            self._glance()
        elif number == parts.rounds or (every and number % every == 0) or self._over:
            self._put_by(self._evaluate(last=number == parts.rounds or self._over))
        elif self._grid is None and not keeps:
            self._put_by({})
        self.whole = True

    def _choose(self, server: _Server) -> tuple[_Server, Tensor]:
        """Whom to start now; waits while nobody is at work or free."""
        engine, selector = self.parts.engine, self.parts.selector
        while True:
            free, missing = engine.free(), self._at_work - engine.in_flight
            if free.count and missing > 0:
                break
            if engine.in_flight:
                return server, torch.zeros(0, dtype=torch.int64)
            if not engine.rest(self._look()):
                raise StalledError(f"no client will ever be free again (virtual time {seconds(engine.now):g} s)")
            self._glance()
            self._wasted()
        turn = Turn(self.parts.streams, server.state.round, free, min(missing, free.count))
        candidates = selector.candidates(server.selector, turn)
        scores = None
        if candidates is not None:
            server, scores = self._score(server, candidates)
        chosen, state = selector.select(server.selector, turn, scores)
        if scores is not None:  # while they were waited for, some may have failed or fallen asleep
            chosen = chosen[torch.from_numpy(engine.free().mask)[chosen]]
        return _Server(server.state, state, server.sending, server.asked), chosen

    def _score(self, server: _Server, candidates: Tensor) -> tuple[_Server, Tensor]:
        """The mean losses of these clients under the current model, float64 [m]; NaN where none came."""
        payload, examples = {"params": server.state.params}, self.parts.selector.score_examples
        config = {} if examples is None else {SCORE_EXAMPLES: examples}
        # Named apart from the training of the same round, for failures and durations are drawn by that name.
        asked = Order(SCORE, candidates, payload, config, server.state.round, turn=TURNS + server.asked, counts=False)
        server, orders = self._submit(server, asked)
        _, replies = self._await(server, orders, All())
        scores = torch.full((len(candidates),), torch.nan, dtype=torch.float64)
        if len(replies):
            scores[torch.searchsorted(candidates, replies.clients)] = replies.payload["loss"][:, 0].double().cpu()
        return server, scores

    def _send(
        self, server: _Server, chosen: Tensor, *, again: bool = False, further: bool = False
    ) -> tuple[_Server, Order, Window]:
        """Send what the strategy asks. again: from a version sent before. further: a later window of the round."""
        orders, window = self.parts.strategy.ask(server.state, chosen)
        if UTILITY in self.parts.selector.reports and not further:
            orders = replace(orders, config={**orders.config, REPORT_UTILITY: True})
        if again or further or (isinstance(window, First) and window.refill):
            # A client may be sent the same version twice, and must not draw the same numbers again.
            orders = replace(orders, turn=TURNS + server.asked, counts=not further)
        server, orders = self._submit(server, orders)
        return server, orders, window

    def _submit(self, server: _Server, orders: Order) -> tuple[_Server, Order]:
        """Send orders as their transforms leave them."""
        sending, chain = server.sending, self.parts.order_transforms
        if chain.transforms:
            hold_transformable(chain, orders, self.parts.strategy)
            owner = torch.tensor([SERVER], device=server.state.params.device)
            rows = {name: vector.unsqueeze(0) for name, vector in orders.payload.items()}
            crossed = chain.apply(rows, Sender(owner, self.parts.streams, orders.draws, sending))
            payload = {name: rows[0] for name, rows in crossed.payload.items()}
            orders, sending = replace(orders, payload=payload, encoded=int(crossed.nbytes)), crossed.state
        self.parts.engine.submit(orders)
        return _Server(server.state, server.selector, sending, server.asked + 1), orders

    def _collect(self, server: _Server, orders: Order, window: Window) -> tuple[_Server, Replies]:
        """The window's replies; with `refill`, clients start again while it is open."""
        if not (isinstance(window, First) and window.refill):
            return self._await(server, orders, window)
        parts: list[Replies] = []
        engine, last = self.parts.engine, None
        if window.deadline is not None:
            last = engine.now + ticks(window.deadline)
        while (missing := window.count - sum(map(len, parts))) > 0:
            left = None if last is None else seconds(last - engine.now)
            server, replies = self._await(server, orders, First(1, left))
            parts.append(replies)
            if last is not None and engine.now >= last and engine.settled():
                break
            if not len(replies):
                self._wasted()
            if missing > len(replies):
                server = self._top_up(server)
        return server, joined(parts)

    def _await(self, server: _Server, orders: Order, window: Window) -> tuple[_Server, Replies]:
        """The window's replies; meanwhile the model is judged when it is time to."""
        engine = self.parts.engine
        while True:
            replies = engine.collect(window, server.state.round, self._look())
            if replies is not None:
                if len(replies):
                    self._in_vain = 0
                if orders.counts:
                    bearable = 1 if orders.late == "cancel" else self._at_work
                    self._hold_alive(len(replies), len(replies.failed) - replies.spoiled, bearable)
                return server, replies
            stuck = isinstance(window, First) and orders.late == "keep" and engine.in_flight < window.count
            if not self._glance() or stuck:
                self._wasted()
            if stuck:
                server = self._top_up(server)

    def _top_up(self, server: _Server) -> _Server:
        """Start clients in a window that is open, from the model that it opened with."""
        server, chosen = self._choose(server)
        return self._send(server, chosen, again=True)[0] if len(chosen) else server

    def _look(self) -> int | None:
        """When to judge the model next, whatever happens: on the grid of virtual time, or at the end."""
        end, grid = self._end, self._grid
        if grid is None:
            return end
        return (self._looks + 1) * grid if end is None else min(end, (self._looks + 1) * grid)

    def _glance(self) -> bool:
        """Judge the model if it is time to."""
        look, grid = self._look(), self._grid
        if look is None or self.parts.engine.now < look:
            return False
        last = self._time_is_over() or self._over or self.round == self.parts.rounds
        judged = self._judged[0] == self.round and not self._attacks_are_due(last)
        if grid is not None or not judged or self._crossed != self.parts.engine.ledger:
            self._put_by(self._evaluate(last=last))
        if grid is not None and look == (self._looks + 1) * grid:
            self._looks += 1
        if self._time_is_over() or self.stopped is not None:
            raise _TimeOverError
        return True

    def _spent(self) -> bool:
        """Whether the evaluations that clients may make are made; says so."""
        stopping, asked = self.parts.stopping, self.parts.engine.ledger.queries
        if stopping is None or stopping.queries is None or asked < stopping.queries:
            return False
        self.stopped = self.stopped or f"{asked:,} queries were made"
        return True

    def _time_is_over(self) -> bool:
        return self._end is not None and self.parts.engine.now >= self._end

    def _evaluate(self, *, last: bool) -> dict[str, float]:
        """What the global model comes to; judged once where it has not changed. last: nothing follows."""
        problem, params = self.parts.problem, self.state.params
        judged, found = self._judged
        if judged != self.round:
            found = self._heeded(problem.evaluate(params, clients=self._clients, on=self.parts.evaluation.on))
            self._judged = (self.round, found)
        if self._trial is not None and self._attacks_are_due(last or self.stopped is not None):
            found = found | self._heeded(problem.attacked(params, self._trial))
            self._judged, self._attacked = (self.round, found), self.round
        return found

    def _attacks_are_due(self, last: bool) -> bool:
        if self._trial is None or self._attacked == self.round:
            return False
        return last or self.parts.evaluation.attacks_after(self.round)

    def _heeded(self, found: dict[str, float]) -> dict[str, float]:
        """End the run where a measure says so."""
        stopping = self.parts.stopping
        for name, value in found.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"{name} is {value} after round {self.round}; lower the rate, or look at what it is made of"
                )
        if stopping is not None and stopping.watches and stopping.metric in found and self.stopped is None:
            self._watched.append(found[stopping.metric])
            self.stopped = stopping.reached(self._watched)
        return found

    def _put_by(self, found: Mapping[str, float]) -> None:
        """A row of what has happened since the last one."""
        engine = self.parts.engine
        crossed, self._crossed = engine.ledger.since(self._crossed), replace(engine.ledger)
        row: Row = {
            "round": self.round,
            "time": seconds(engine.now),
            "wall": self._wall,
            "staleness": crossed.pop("staleness") / max(crossed["clients"], 1),
            **crossed,
            **self._interval.metrics(),
            **found,
        }
        self._interval = _Interval()
        self._rows.append((row, self.state.params))
        self._made += 1

    def _wasted(self) -> None:
        """Count that time went by and nothing came of it."""
        self._in_vain += 1
        if self._in_vain > RESTS:
            now = seconds(self.parts.engine.now)
            raise StalledError(f"nothing has come of waiting {RESTS} times in a row (virtual time {now:g} s)")

    def _hold_alive(self, count: int, failed: int, bearable: int) -> None:
        """End a run in which so many updates one after the other were not finite."""
        self._failed = 0 if count else self._failed + failed
        if self._failed >= bearable:
            number = self.round + 1
            raise DivergedError(f"none of the {self._failed} updates of round {number} is finite; lower client.lr")


def hold_transformable(chain: Chain, orders: Order, strategy: Strategy) -> None:
    """Refuse order transforms that do not go with such orders."""
    chain.check(orders.payload.keys(), strategy.sends)
    if chain.transforms and orders.encoded is not None:
        remedy = "this strategy counts itself what its orders take; leave them out"
        raise InputError(chain.option, ", ".join(sorted(orders.payload)), remedy)


def _planned(parts: Setup) -> ServerState:
    """The state to begin with, of a strategy that may draw, and may want to know how long its orders take."""
    state, plan = parts.strategy.init(parts.problem), getattr(parts.strategy, "plan", None)
    seeded = getattr(parts.strategy, "seeded", None)
    if seeded is not None:
        state = seeded(state, parts.streams)
    if plan is None:
        return state
    orders, _ = parts.strategy.ask(state, torch.arange(len(parts.problem.sizes)))
    with naming("strategy"):
        planned: ServerState = plan(state, parts.engine.declared(orders))
    return planned


_KEPT = (
    "params",
    "stopped",
    "_server",
    "_watched",
    "_rows",
    "_interval",
    "_crossed",
    "_looks",
    "_judged",
    "_attacked",
    "_in_vain",
    "_failed",
    "_over",
    "_ending",
    "_made",
)
"""What a snapshot holds beside the engine's."""


def _would_do(replies: Replies, more: int) -> bool:
    """Whether so many more replies would be enough for the aggregator."""
    try:
        replies.aggregator.check(len(replies) + more)
    except InputError:
        return False
    return True


def _hold_finite(number: int, params: Tensor, metrics: Mapping[str, float]) -> None:
    """End a run that cannot get better, with what to do about it."""
    if not math.isfinite(float(params.sum())):
        raise DivergedError(
            f"the global model is not finite after round {number}; lower client.lr or strategy.server_lr"
        )
    loss = metrics.get("train_loss", 0.0)
    if not math.isfinite(loss):
        raise DivergedError(f"train_loss is {loss} in round {number}; lower client.lr")
