"""The loop: ask the strategy, move the engine to the window's close, tell the strategy.

state = strategy.init(problem)
repeat: orders, window = strategy.ask(state, chosen); engine.submit(orders); replies = engine.collect(window);
        state, metrics, round_done = strategy.tell(state, replies)

A synchronous round is the simplest case: one window that closes when all have answered. A round may also be several
windows, the later ones for those who have answered the one before; and who has not answered may work on. Meanwhile a
`Judge` says when the global model is judged, and makes the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import DivergedError, FedsimError, InputError, StalledError, naming
from fedsim.core.graph import storable
from fedsim.core.streams import SERVER
from fedsim.exchange.actions import REPORT_UTILITY, SCORE, SCORE_EXAMPLES, UTILITY
from fedsim.exchange.messages import Order, Replies, Size, joined
from fedsim.exchange.transforms import Chain, Sender
from fedsim.exchange.windows import All, First, Window
from fedsim.parallel.cores import one_core_an_operation
from fedsim.parallel.memory import keep_freed_memory
from fedsim.privacy.release import Kept
from fedsim.running import promises
from fedsim.running.history import Row
from fedsim.running.hopeless import Patience, hold_finite
from fedsim.running.judging import Judge, RunOverError, WallClock
from fedsim.running.pace import Pace
from fedsim.running.setup import Setup
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.strategy import Metrics, ServerState, Strategy

TURNS = 2**31
"""Turns from here on are of one order each, where rounds do not tell orders apart."""


@storable("server")
class Server(NamedTuple):
    """What the server knows. sending: state of the orders' transforms. asked: how often it has sent orders.

    private: what is remembered for privacy.
    """

    state: ServerState
    selector: SelectorState
    sending: dict[str, Tensor]
    asked: int = 0
    private: Kept = {}  # noqa: RUF012  # never written to


@dataclass
class UnderWay:
    """A round between its beginning and its end.

    server: what it knows by now. before: how patient the run was when the round began.
    orders, window: what was sent last, and when it is looked again. answered: who has answered the last window; None:
    there was none. count, failed: replies so far, and updates that were not finite. keeps: clients work on. skipped:
    the replies of the last window were too few.
    """

    server: Server
    before: Patience
    orders: Order = field(init=False)
    window: Window = field(init=False)
    answered: Tensor | None = None
    count: int = 0
    failed: int = 0
    keeps: bool = False
    skipped: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    done: bool = False


class Simulation:
    """A run as a value: iterate for its rows; `snapshot` and `restore` between two of them.

    params: the global model [d] that the last row is about. pace: how often the model is judged. between: called before
    each round, when the rows of those before have been taken and nothing is under way: the moment for a checkpoint.
    whole: no round is under way.
    """

    def __init__(self, parts: Setup) -> None:
        keep_freed_memory()
        self.parts = parts
        self.between: Callable[[], None] | None = None
        self.whole = True
        state = _planned(parts)
        self.params = state.params
        sending = {
            name: torch.zeros((1, *shape), dtype=state.params.dtype, device=state.params.device)
            for name, shape in parts.order_transforms.state(Size.of(state.params)).items()
        }
        remembered = promises.selector_state(parts.selector, parts.selector.start(parts.problem.sizes), "start")
        private = {} if parts.privacy is None else parts.privacy.begin(state.params)
        self._server = Server(state, remembered, sending, private=private)
        self._at_work = promises.at_once(parts.selector, len(parts.problem.sizes))
        self._wall = WallClock()
        self.pace = Pace(parts.evaluation)
        self._judge = Judge(parts, self._wall, self._server.private)
        self._patience = Patience()
        self._first = state.params if parts.strategy.for_all else None
        self._remedy = "lower client.lr"
        if parts.problem.oracle is not None:
            self._remedy += ", if there is one, or see whether the functions give NaN or infinity"
        self._ending: BaseException | None = None

    def judge_at(self, decided: Pace) -> None:
        """Have the model judged as often as was decided, before the run has begun."""
        self.pace, self.parts = decided, replace(self.parts, evaluation=decided.evaluation)
        self._judge = Judge(self.parts, self._wall, self._server.private)

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
        return self._judge.taken

    @property
    def stopped(self) -> str | None:
        """Why the run ends early; None: it does not."""
        return self._judge.stopped

    @property
    def counts(self) -> dict[str, int]:
        """Orders to single clients so far, and replies that were used."""
        return {"orders": self._patience.sent, "used": self._patience.used}

    @property
    def privacy(self) -> dict[str, Any]:
        """What the run has spent of privacy, and by which account; nothing where none is kept."""
        guard = self.parts.privacy
        return {} if guard is None else guard.summary(self._server.private, self.round)

    @property
    def vain(self) -> tuple[str, str] | None:
        """The status and the reason of a run that has ended without having moved the model; None: it has moved it."""
        patience, at_work = self._patience, self.parts.engine.in_flight
        if patience.used == 0 and patience.sent > at_work:
            return "stalled", patience.fruitless(at_work)
        return ("finished", patience.unmoved()) if patience.still >= 0 else None

    def __iter__(self) -> Iterator[Row]:
        self._wall.go_on()
        while self._judge.has_rows or not self._ended():
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
        saved = {
            "server": self._server,
            "params": self.params,
            "judge": self._judge.snapshot(),
            "patience": self._patience,
            "ending": self._ending,
            "wall": self._wall.seconds,
            "engine": self.parts.engine.snapshot(),
        }
        return deepcopy(saved) if copy else saved  # in one copy, so that flights go on sharing their orders and results

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go back to a snapshot, which stays as it is."""
        self.parts.engine.restore(saved["engine"])
        own = deepcopy({name: saved[name] for name in ("server", "params", "judge", "patience", "ending")})
        self._server, self.params, self._ending = own["server"], own["params"], own["ending"]
        self._patience = own["patience"]
        self._judge.restore(own["judge"])
        self._judge.private = self._server.private
        self._wall.start(saved["wall"])
        self.whole = True

    def _next(self) -> Row | None:
        judge = self._judge
        with one_core_an_operation():
            while not judge.has_rows and not self._ended():
                if self.between is not None:
                    self.between()
                try:
                    self.complete_round()
                except RunOverError:
                    judge.end()
                except StalledError as error:
                    self._ending = error
                    judge.after_stall(self.state)
                except (DivergedError, KeyboardInterrupt) as error:
                    if not judge.has_rows:
                        raise
                    self._ending = error  # after the rows that became due while a window was open
        if not judge.has_rows:
            return None
        row, self.params = judge.take()
        return row

    def _ended(self) -> bool:
        return self._ending is not None or self._judge.ends(self.round)

    def complete_round(self) -> None:
        """Complete one round; rows that became due wait for `step` or the iteration.

        What the server knows changes at the end, so that an interruption leaves that of the round before.
        """
        current = self.begin()
        while not current.done:
            self.ask(current)
            self.tell(current)
        self.complete(current)

    def begin(self) -> UnderWay:
        """Begin a round: `ask` and `tell` go from window to window, until it is done, and `complete` ends it."""
        self.whole = False
        return UnderWay(self._server, replace(self._patience))

    def ask(self, current: UnderWay) -> Order:
        """Choose clients for the round's next window and send them what the strategy asks: the order as it crosses."""
        server, answered = current.server, current.answered
        if answered is None:
            server, chosen = self._choose(server)
        else:
            chosen = answered[torch.from_numpy(self.parts.engine.free().mask)[answered]]
        current.server, current.orders, current.window = self._send(server, chosen, further=answered is not None)
        return current.orders

    def tell(self, current: UnderWay) -> None:
        """Wait for the close of the window that `ask` has opened, and tell the selector and the strategy what came."""
        parts, orders, window = self.parts, current.orders, current.window
        server, replies = self._collect(current.server, orders, window)
        current.answered, current.keeps = replies.clients, orders.late == "keep"
        current.count += len(replies) * orders.counts
        current.failed += len(replies.failed)
        current.skipped = False
        selector = server.selector
        if parts.secured is not None:
            summed = parts.secured.summed(replies)
            replies = replace(replies, payload={}, metrics={})
        if orders.counts:
            learnt = parts.selector.observe(selector, replies)
            selector = promises.selector_state(parts.selector, learnt, "observe", selector)
        private = server.private
        if parts.secured is not None:
            replies = summed.replies
            current.metrics.update(summed.metrics)
            if summed.why is not None:
                self._skip(current, summed.why)
        if parts.privacy is not None:
            replies, private, shown = parts.privacy.release(private, replies)
            current.metrics.update(shown)
        try:
            state, observed, current.done = self._tell(server.state, replies)
        except InputError as error:  # too few replies for a robust aggregator
            if _would_do(replies, 0):
                raise  # or something else
            everybody = parts.steady and isinstance(window, All)  # as many will answer the next time
            if everybody or _would_do(replies, len(replies.failed) - replies.spoiled):
                why = f", {current.failed} updates not finite" if current.failed else f", with {current.count} replies"
                raise DivergedError(f"round {self.round + 1}{why}: {error}") from error
            self._skip(current, str(error))
            nobody = torch.zeros(len(replies), dtype=torch.bool)
            state, observed, current.done = self._tell(server.state, replies.where(nobody))
        current.server = server._replace(state=state, selector=selector, private=private)
        current.metrics.update(observed)

    def _skip(self, current: UnderWay, why: str) -> None:
        """Count a window of whose replies none is used."""
        current.skipped = True
        self.parts.engine.trace.skipped += 1
        self._patience.skips(current.before, current.count, current.failed, why)

    def complete(self, current: UnderWay) -> None:
        """End a round that is done: what the server knows is from now on what it has learnt in it."""
        engine, metrics = self.parts.engine, current.metrics
        if self.parts.problem.may_fail:
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        hold_finite(self.round + 1, current.server.state.params, metrics, self._remedy)
        self._server, self._patience.waits = current.server, 0
        self._judge.private = current.server.private
        self._patience.saw(self.state.params, self._first)
        self._patience.hold_fruitful(engine.in_flight, self._at_work)
        self._judge.after_round(self.state, metrics, current.count, keeps=current.keeps)
        self.whole = True

    def _tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """What a strategy makes of a window's replies, and at the end of a round of the model by itself."""
        strategy, bench, version = self.parts.strategy, self.parts.bench, state.params._version
        given = strategy.tell(state, replies)
        promises.hold_unchanged(strategy, "tell", state.params, version)
        later, metrics, done = promises.told(strategy, given, state)
        if not done or bench is None:
            return later, metrics, done
        version = later.params._version
        refined = strategy.refine(later, replies, bench)
        promises.hold_unchanged(strategy, "refine", later.params, version)
        later, more = promises.refined(strategy, refined, later)
        return later, {**metrics, **more}, done

    def _choose(self, server: Server) -> tuple[Server, Tensor]:
        """Whom to start now; waits while nobody is at work or free."""
        engine, selector = self.parts.engine, self.parts.selector
        while True:
            free, missing = engine.free(), self._at_work - engine.in_flight
            if free.count and missing > 0:
                break
            if engine.in_flight:
                return server, torch.zeros(0, dtype=torch.int64)
            if not engine.rest(self._judge.due):
                raise StalledError(f"no client will ever be free again (virtual time {seconds(engine.now):g} s)")
            self._judge.judge_if_due(self.state)
            self._wait_in_vain()
        turn = Turn(self.parts.streams, server.state.round, free, min(missing, free.count))
        candidates = promises.candidates(selector, selector.candidates(server.selector, turn), free)
        scores = None
        if candidates is not None:
            server, scores = self._score(server, candidates)
        given = selector.select(dict(server.selector), turn, scores)
        chosen, state = promises.selected(selector, given, free, turn.wanted, server.selector)
        if scores is not None:  # while they were waited for, some may have failed or fallen asleep
            chosen = chosen[torch.from_numpy(engine.free().mask)[chosen]]
        return server._replace(selector=state), chosen

    def _score(self, server: Server, candidates: Tensor) -> tuple[Server, Tensor]:
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
        self, server: Server, chosen: Tensor, *, again: bool = False, further: bool = False
    ) -> tuple[Server, Order, Window]:
        """Send what the strategy asks. again: from a version sent before. further: a later window of the round."""
        version = server.state.params._version
        given = self.parts.strategy.ask(server.state, chosen)
        promises.hold_unchanged(self.parts.strategy, "ask", server.state.params, version)
        orders, window = promises.asked(self.parts.strategy, given, server.state, chosen)
        if UTILITY in self.parts.selector.reports and not further:
            orders = replace(orders, config={**orders.config, REPORT_UTILITY: True})
        if again or further or (isinstance(window, First) and window.refill):
            # A client may be sent the same version twice, and must not draw the same numbers again.
            orders = replace(orders, turn=TURNS + server.asked, counts=not further)
        server, orders = self._submit(server, orders)
        return server, orders, window

    def _submit(self, server: Server, orders: Order) -> tuple[Server, Order]:
        """Send orders as their transforms leave them."""
        sending, chain = server.sending, self.parts.order_transforms
        if chain.transforms:
            hold_transformable(chain, orders, self.parts.strategy)
            owner = torch.tensor([SERVER], device=server.state.params.device)
            rows = {name: vector.unsqueeze(0) for name, vector in orders.payload.items()}
            crossed = chain.apply(rows, Sender(owner, self.parts.streams, orders.turn, sending))
            payload = {name: rows[0] for name, rows in crossed.payload.items()}
            orders, sending = replace(orders, payload=payload, encoded=int(crossed.nbytes)), crossed.state
        if self.parts.secured is None:
            self.parts.engine.submit(orders)
        else:
            orders = self.parts.secured.submit(orders)
        self._patience.sent += len(orders.clients) * orders.counts
        guard, private = self.parts.privacy, server.private
        if guard is not None:
            private = guard.ordered(private, orders)
        return server._replace(sending=sending, asked=server.asked + 1, private=private), orders

    def _collect(self, server: Server, orders: Order, window: Window) -> tuple[Server, Replies]:
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
                self._wait_in_vain()
            if missing > len(replies):
                server = self._top_up(server)
        return server, joined(parts)

    def _await(self, server: Server, orders: Order, window: Window) -> tuple[Server, Replies]:
        """The window's replies; meanwhile the model is judged when it is time to."""
        engine = self.parts.engine
        while True:
            replies = engine.collect(window, server.state.round, self._judge.due)
            if replies is not None:
                if len(replies):
                    self._patience.waits = 0
                if orders.counts:
                    bearable = 1 if orders.late == "cancel" else self._at_work
                    failed = len(replies.failed) - replies.spoiled
                    self._patience.replied(self.round + 1, len(replies), failed, bearable, self._remedy)
                    self._patience.took(len(replies), len(replies.failed), engine.in_flight)
                return server, replies
            stuck = isinstance(window, First) and orders.late == "keep" and engine.in_flight < window.count
            if not self._judge.judge_if_due(self.state) or stuck:
                self._wait_in_vain()
            if stuck:
                server = self._top_up(server)

    def _wait_in_vain(self) -> None:
        """Count that time went by and nothing came of it. StalledError: too often, or of too many orders."""
        engine = self.parts.engine
        self._patience.waited_in_vain(engine.now)
        self._patience.hold_fruitful(engine.in_flight, self._at_work)

    def _top_up(self, server: Server) -> Server:
        """Start clients in a window that is open, from the model that it opened with."""
        server, chosen = self._choose(server)
        return self._send(server, chosen, again=True)[0] if len(chosen) else server


def hold_transformable(chain: Chain, orders: Order, strategy: Strategy) -> None:
    """Refuse order transforms that do not go with such orders."""
    chain.check(orders.payload.keys(), strategy.down)
    if chain.transforms and orders.encoded is not None:
        remedy = "this strategy counts itself what its orders take; leave them out"
        raise InputError(chain.option, ", ".join(sorted(orders.payload)), remedy)


def _planned(parts: Setup) -> ServerState:
    """The state to begin with, of a strategy that may draw, and may want to know how long its orders take."""
    strategy = parts.strategy
    state = promises.begun(strategy, strategy.init(parts.problem), parts.problem, "init")
    state = promises.begun(strategy, strategy.seeded(state, parts.streams), parts.problem, "seeded")
    everybody = torch.arange(len(parts.problem.sizes))
    orders, _ = promises.asked(strategy, strategy.ask(state, everybody), state, everybody)
    with naming("strategy"):
        planned = strategy.plan(state, parts.engine.declared(orders))
    return promises.begun(strategy, planned, parts.problem, "plan")


def _would_do(replies: Replies, more: int) -> bool:
    """Whether so many more replies would be enough for the aggregator."""
    try:
        replies.aggregator.check(len(replies) + more)
    except InputError:
        return False
    return True
