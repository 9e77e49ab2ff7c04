"""Bringing a run to its trackers, each in a thread of its own: none of them can end, delay or change the run.

A tracker that raises anything is said once and left out. One that has not taken all when the run has waited for its
`patience` at the end is said, too, and not waited for: it goes on in its thread as long as the process does. As what
hangs may hang where the process ends, too, the commands do not wait for that either (`is_stuck`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread

from fedsim.core.errors import named_line, warn
from fedsim.trackers.base import Ending, Row, TrackedRun, Tracker
from fedsim.trackers.secrets import masked

STUCK: list[Courier] = []
"""Those that were not waited for any longer."""


class Courier:
    """Brings the rows of a run to one tracker. name: what it is called in a warning."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun) -> None:
        self._name, self._tracker, self._run = name, tracker, run
        self._waiting: SimpleQueue[Row | Ending] = SimpleQueue()
        self._done = Event()
        self._left_out = False
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def bring(self, told: Row | Ending) -> None:
        """Have a row or the end taken, at some time."""
        if not self._left_out:
            self._waiting.put(told)

    def wait(self, since: float) -> None:
        """Wait until all is taken, for the tracker's patience from a moment on; an interruption ends that, too."""
        patience = self._tracker.patience
        try:
            done = self._done.wait(max(since + patience - time.monotonic(), 0.0))
            why = "" if done else f"not done after {patience:g} s"
        except KeyboardInterrupt:
            why = "interrupted"
        if why:
            STUCK.append(self)
            warn(f"tracker {self._name} is not waited for: {why}")

    @property
    def at_work(self) -> bool:
        """Whether its thread has not come to its end."""
        return self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._take_all()
        except BaseException as error:  # the thread ends here, and nothing that a library raises may end more
            self._left_out = True
            if self not in STUCK:
                warn(f"tracker {self._name} is left out: {masked(named_line(error))}")
        finally:
            self._done.set()

    def _take_all(self) -> None:
        log = self._tracker.begin(self._run)
        rows: Sequence[Row] = [dict(row) for row in self._run.rows]
        number, ending = 0, None
        while True:
            fresh = rows[max(log.had - number, 0) :]
            number += len(rows)
            if fresh:
                log.add(fresh)
            if ending is not None:
                return log.end(ending)
            rows, ending = self._next()

    def _next(self) -> tuple[list[Row], Ending | None]:
        """All that waits, once something does: rows, and the end if that is among it."""
        rows: list[Row] = []
        told = self._waiting.get()
        while True:
            if isinstance(told, Ending):
                return rows, told
            rows.append(told)
            try:
                told = self._waiting.get_nowait()
            except Empty:
                return rows, None


class Couriers:
    """Brings a run to all its trackers. trackers: by what they are called in a warning."""

    def __init__(self, trackers: Mapping[str, Tracker], run: TrackedRun) -> None:
        self._each = [Courier(name, tracker, run) for name, tracker in trackers.items()]

    def row(self, row: Row) -> None:
        """Tell of a row; a number that is not finite is NaN."""
        for courier in self._each:
            courier.bring({name: value if math.isfinite(value) else math.nan for name, value in row.items()})

    def end(self, ending: Ending) -> None:
        """Tell how the run has ended, and wait for each tracker, for its patience."""
        for courier in self._each:
            courier.bring(ending)
        since = time.monotonic()
        for courier in self._each:
            courier.wait(since)


def is_stuck() -> bool:
    """Whether a tracker that was not waited for is still at work: a process may hang where it ends."""
    return any(courier.at_work for courier in STUCK)
