"""When and how the global model is judged, and the rows that come of it.

After so many rounds, or at so many virtual seconds, whatever round that falls into, and once at the end. Between two
judgements of an asynchronous run nothing is kept but counters, so that its memory does not grow with the number of
windows. What measures come to, what clients have asked and what time it is can end a run early.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor

from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import DivergedError
from fedsim.core.graph import storable
from fedsim.engine.ledger import Ledger
from fedsim.privacy.release import Kept
from fedsim.problems.supervised import Supervised
from fedsim.running.history import Row
from fedsim.running.personal import personal_measures
from fedsim.running.setup import Setup
from fedsim.server.strategy import ServerState


class RunOverError(Exception):
    """The run is over while a window is open."""


class WallClock:
    """Seconds on the wall that a run has taken, those before a snapshot included."""

    def __init__(self) -> None:
        self.start()

    def start(self, earlier: float = 0.0) -> None:
        """Count from now on, beside so many seconds that have gone by before."""
        self._earlier, self._began = earlier, time.perf_counter()

    def go_on(self) -> None:
        """Leave out the time since it was started."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return self._earlier + time.perf_counter() - self._began


@storable("interval")
@dataclass
class Interval:
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


@storable("judged")
@dataclass
class Judged:
    """How far the judging of a run has come.

    ledger: as it was at the last row. rows: those that nobody has taken yet, each with the model [d] it is about. made:
    rows in all. interval: since the last row. marks: of the grid of virtual time that are behind. round, measures: what
    was measured last, and of which round's model. attacked: of which round the last attacked model was. watched: the
    values so far of the metric that may end the run. stopped: why it ends early; None: it does not. over: whether its
    time is up, or its queries are spent.
    """

    ledger: Ledger
    rows: deque[tuple[Row, Tensor]] = field(default_factory=deque)
    made: int = 0
    interval: Interval = field(default_factory=Interval)
    marks: int = 0
    round: int = -1
    measures: dict[str, float] = field(default_factory=dict)
    attacked: int = -1
    watched: list[float] = field(default_factory=list)
    stopped: str | None = None
    over: bool = False


class Judge:
    """Judges the global model of one run when it is time to.

    so_far: all that it remembers. private: what the server remembers for privacy, after the last completed round.
    """

    def __init__(self, setup: Setup, wall: WallClock, private: Kept) -> None:
        self._setup, self._wall, self.private = setup, wall, private
        evaluation = setup.evaluation
        self._clients = setup.whose.clients(setup.problem, evaluation)
        self._trial = evaluation.trial(setup.streams)
        self._end = None if setup.duration is None else ticks(setup.duration)
        self._grid = None if evaluation.every_seconds is None else ticks(evaluation.every_seconds)
        self.so_far = Judged(replace(setup.engine.ledger))

    def snapshot(self) -> Judged:
        """All that it remembers, to be restored; it goes on changing with the run."""
        return self.so_far

    def restore(self, saved: Judged) -> None:
        """Go back to a snapshot, which is this judge's own from now on."""
        self.so_far = saved

    @property
    def stopped(self) -> str | None:
        """Why the run ends early; None: it does not."""
        return self.so_far.stopped

    @property
    def has_rows(self) -> bool:
        """Whether there is a row that nobody has taken yet."""
        return bool(self.so_far.rows)

    @property
    def taken(self) -> int:
        """How many rows have been taken."""
        return self.so_far.made - len(self.so_far.rows)

    def take(self) -> tuple[Row, Tensor]:
        """The next row, and the global model [d] that it is about."""
        return self.so_far.rows.popleft()

    @property
    def due(self) -> int | None:
        """The tick at which the model is judged next, whatever happens: on the grid of virtual time, or at the end."""
        if self._grid is None:
            return self._end
        mark = (self.so_far.marks + 1) * self._grid
        return mark if self._end is None else min(self._end, mark)

    def ends(self, number: int) -> bool:
        """Whether the run is over after this round."""
        rounds = self._setup.rounds
        return self.so_far.over or self.stopped is not None or (rounds is not None and number >= rounds)

    def end(self) -> None:
        """Say that the run is over."""
        self.so_far.over = True

    def judge_if_due(self, state: ServerState) -> bool:
        """Judge the model if it is time to, and say whether it was. RunOverError: the run is over, too."""
        due, grid, now = self.due, self._grid, self._setup.engine.now
        if due is None or now < due:
            return False
        last = self._time_is_up() or self.so_far.over or state.round == self._setup.rounds
        known = self.so_far.round == state.round and not self._is_attacked_now(state.round, last)
        if grid is not None or not known or self.so_far.ledger != self._setup.engine.ledger:
            self._add_row(state, self._measured(state, last=last))
        if grid is not None and due == (self.so_far.marks + 1) * grid:
            self.so_far.marks += 1
        if self._time_is_up() or self.stopped is not None:
            raise RunOverError
        return True

    def after_round(self, state: ServerState, metrics: Mapping[str, float], replies: int, *, keeps: bool) -> None:
        """Take in a completed round, and add the row that is due.

        metrics, replies: what the strategy has observed, and of how many replies. keeps: whether clients work on when
        a round is completed; such a run has rows only of what is judged. RunOverError: as `judge_if_due`.
        """
        self.so_far.interval.add(metrics, replies)
        every, settled = self._setup.evaluation.rounds, self._setup.engine.settled()
        over = (settled and self._time_is_up()) or self._queries_are_spent() or self._privacy_is_spent(state.round)
        self.so_far.over = over
        last = state.round == self._setup.rounds or over
        if self._grid is not None and settled and self.due == self._setup.engine.now:
            self.judge_if_due(state)
        elif last or (every and state.round % every == 0):
            self._add_row(state, self._measured(state, last=last))
        elif self._grid is None and not keeps:
            self._add_row(state, {})

    def after_stall(self, state: ServerState) -> None:
        """Judge the last model of a run in which nothing will ever happen again."""
        self._add_row(state, self._measured(state, last=True))

    def _time_is_up(self) -> bool:
        return self._end is not None and self._setup.engine.now >= self._end

    def _queries_are_spent(self) -> bool:
        """Whether the evaluations that clients may ask for are made; says so."""
        stopping, asked = self._setup.stopping, self._setup.engine.ledger.queries
        if stopping is None or stopping.queries is None or asked < stopping.queries:
            return False
        self.so_far.stopped = self.stopped or f"{asked:,} queries were made"
        return True

    def _privacy_is_spent(self, rounds: int) -> bool:
        """Whether another round would go beyond the budget of epsilon; says so."""
        guard = self._setup.privacy
        why = None if guard is None else guard.over(self.private, rounds)
        if why is not None:
            self.so_far.stopped = self.stopped or why
        return why is not None

    def _measured(self, state: ServerState, *, last: bool) -> dict[str, float]:
        """What the global model comes to; measured once where it has not changed. last: nothing follows."""
        problem, judged, params = self._setup.problem, self.so_far, state.params
        if judged.round != state.round:
            found = self._evaluated(state)
            said = {} if problem.oracle is None else problem.oracle.complaints()
            for client in sorted(said):
                self._setup.engine.trace.complained(f"client {client}, of the judged model: {said[client]}")
            self._watch(state.round, found)
            judged.round, judged.measures = state.round, found
        # What has just been measured may end the run, whose last model is attacked.
        if self._trial is not None and self._is_attacked_now(state.round, last or self.stopped is not None):
            found = problem.attacked(params, self._trial)
            self._watch(state.round, found)
            judged.attacked, judged.measures = state.round, judged.measures | found
        return judged.measures

    def _evaluated(self, state: ServerState) -> dict[str, float]:
        """What the model comes to, and the clients' own where they have some."""
        setup, wanted, whose, found = self._setup, self._setup.evaluation, self._setup.whose, dict[str, float]()
        clients, on, metrics = self._clients, wanted.on, wanted.measures
        if whose.everybodys and not whose.own:
            found |= setup.problem.evaluate(state.params, clients=clients, on=on, metrics=metrics)
        if not (whose.own or whose.newcomers):
            return found
        problem = cast("Supervised", setup.problem)  # which alone know owners
        if whose.everybodys and whose.own:
            found |= problem.evaluate(state.params, clients=clients, on=on, metrics=metrics, fully=True)
        if clients or whose.newcomers:
            found |= personal_measures(setup.engine, problem, setup.strategy, state, wanted, whose, setup.tuning)
        return found

    def _is_attacked_now(self, number: int, last: bool) -> bool:
        if self._trial is None or self.so_far.attacked == number:
            return False
        return last or self._setup.evaluation.attacks_after(number)

    def _watch(self, number: int, measures: Mapping[str, float]) -> None:
        """See whether a measure ends the run. DivergedError: one is not finite, where evaluations do not fail."""
        for name, value in measures.items():
            if not math.isfinite(value) and not self._setup.problem.may_fail:
                raise DivergedError(
                    f"{name} is {value} after round {number}; lower the rate, or look at what it is made of"
                )
        stopping, judged = self._setup.stopping, self.so_far
        if stopping is not None and stopping.watches and stopping.metric in measures and judged.stopped is None:
            found = measures[stopping.metric]
            if math.isfinite(found):
                judged.watched.append(found)
                judged.stopped = stopping.reached(judged.watched, self._setup.evaluation.asked)

    def _add_row(self, state: ServerState, measures: Mapping[str, float]) -> None:
        """A row of what has happened since the last one."""
        engine, judged = self._setup.engine, self.so_far
        crossed: dict[str, Any] = engine.ledger.since(judged.ledger)
        if not crossed["failed_queries"]:
            del crossed["failed_queries"]
        judged.ledger = replace(engine.ledger)
        row: Row = {
            "round": state.round,
            "time": seconds(engine.now),
            "wall": self._wall.seconds,
            "staleness": crossed.pop("staleness") / max(crossed["clients"], 1),
            **crossed,
            **judged.interval.metrics(),
            **measures,
            **({} if (guard := self._setup.privacy) is None else guard.columns(self.private, state.round)),
        }
        judged.interval = Interval()
        judged.rows.append((row, state.params))
        judged.made += 1
