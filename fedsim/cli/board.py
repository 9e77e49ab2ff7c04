"""Runs that go on at once, or one after the other, as a terminal shows them: a line each, and how long all will take.

How far they are is read in the ends of their tables of rounds, at most once a second.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.cli.live import Live, clock, gathered
from fedsim.cli.reckoner import Reckoner
from fedsim.cli.sparkline import Curve, sparkline
from fedsim.cli.words import STATUS, number_of, outcome_line
from fedsim.core.errors import one_line
from fedsim.core.files import regular
from fedsim.core.measures import first
from fedsim.running.stored import METRICS

if TYPE_CHECKING:
    from fedsim.running.sweep import Outcome, Point

PAUSE = 1.0
"""Seconds between two looks into the files."""
PART = 2**20
"""Bytes that are read of a file at once."""
NEEDED = ("round", "time", "wall")
"""Columns that a row has always."""
CURVE = 16
"""Letters of a curve."""
BAR = 12
"""Letters of a bar at the least, with what is between it and what is said."""
WIDTHS = (44, 56, 76)
"""From how many columns on the time left, the measure, and its curve are shown beside how far a run is."""


class Watched:
    """A run of which rows are read as they come."""

    def __init__(self, point: Point) -> None:
        made = point.experiment
        self.label = one_line("/".join(point.folder.parts[-2:]))
        self.duration = made.duration
        self.total = float((made.rounds or 0) if made.duration is None else made.duration)
        self.measures = first(made.evaluation.asked)
        self.reckoner = Reckoner(self.total)
        self.done, self.wall, self.heard = 0.0, 0.0, time.monotonic()
        self.seen: dict[str, float] = {}
        self.curves: dict[str, Curve] = {}
        self._path, self._at = point.folder / METRICS, 0

    @property
    def measure(self) -> str | None:
        """The measure that is shown."""
        return next((name for name in self.measures if name in self.curves), None)

    @property
    def left(self) -> float | None:
        """Seconds until its end."""
        return self.reckoner.left(time.monotonic() - self.heard)

    def look(self) -> None:
        """Read the rows that have come since."""
        for row in self._rows():
            self.heard = time.monotonic()
            self.done, self.wall = row["round" if self.duration is None else "time"], row["wall"]
            self.reckoner.add(self.done, self.wall, len(row))
            for name in self.measures:
                if row.get(name) is not None:
                    self.seen[name] = row[name]
                    self.curves.setdefault(name, Curve()).add(row[name])

    def _rows(self) -> Iterator[Mapping[str, float]]:
        """Whole rows that have not been read; what no run has written is left for who compares them to refuse."""
        try:
            with open(self._path, "rb", opener=regular) as file:
                if file.seek(0, 2) < self._at:  # it has gone back to a checkpoint
                    self._at = 0
                file.seek(self._at)
                lines = file.read(PART).splitlines(keepends=True)
        except OSError:  # it has not begun yet
            return
        for line in lines:
            if not line.endswith(b"\n"):
                return
            self._at += len(line)
            try:
                row = json.loads(line)
                whole = isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in NEEDED)
            except ValueError:
                whole = False
            if whole:
                yield row


class Board:
    """Called with every outcome: draws points done, running, failed and waiting, and the time left, on standard error.

    at_once: so many of the points that are not done are running, the first ones. Failures are said above what is drawn,
    which is taken away at the end.
    """

    def __init__(self, points: Sequence[Point], at_once: int) -> None:
        self._waiting = {point.folder: point for point in points}
        self._points, self._at_once = len(points), at_once
        self._found: Counter[str] = Counter()
        self._walls: dict[Path, list[float]] = {}
        """What points have taken that were run, by the folder of their combination."""
        self._running: dict[Path, Watched] = {}
        self._looked = -math.inf
        self._live, self._stack = Live(self), ExitStack()

    def __enter__(self) -> Board:
        self._live.console.file = self._stack.enter_context(gathered(self._say))
        self._stack.callback(self._live.stop)
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _say(self, line: str) -> None:
        """Say something above what is drawn."""
        self._live.console.print(Text(line))

    def __call__(self, outcome: Outcome) -> None:
        """Take an outcome."""
        folder = outcome.point.folder
        self._found[outcome.status] += 1
        del self._waiting[folder]
        self._running.pop(folder, None)
        if not outcome.skipped and "wall" in outcome.summary:
            self._walls.setdefault(folder.parent, []).append(outcome.summary["wall"])
        if outcome.status == "failed":
            self._say(outcome_line(outcome))

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < PAUSE:
            return
        self._looked = now
        for folder, point in islice(self._waiting.items(), self._at_once):
            if folder not in self._running:
                self._running[folder] = Watched(point)
            self._running[folder].look()

    @property
    def left(self) -> float | None:
        """Seconds until all are done; None: nobody can know yet.

        The rest of those that run, and for each that waits as long as others of its combination took, or else as all,
        shared out among those that run at once; and no less than what the longest needs.
        """
        rest = {folder: left for folder, run in self._running.items() if (left := run.left) is not None}
        whole = {folder: [*walls] for folder, walls in self._walls.items()}
        for folder, left in rest.items():
            run = self._running[folder]
            whole.setdefault(folder.parent, []).append(run.wall + left)
        if not whole:
            return None
        usual = statistics.mean(wall for walls in whole.values() for wall in walls)
        means = {group: statistics.mean(walls) for group, walls in whole.items()}
        each = [rest.get(folder, means.get(folder.parent, usual)) for folder in self._waiting]
        running = each[: self._at_once]
        return max(sum(each) / self._at_once, *running) if each else 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a line for all, and one for each that runs, as many as there is room for."""
        self._look()
        waiting, done = len(self._waiting), sum(self._found.values())
        running = min(waiting, self._at_once)
        bad = sum(number for status, number in self._found.items() if STATUS[status])
        said = [f"{done}/{self._points} done", *([f"{bad} failed"] if bad else []), f"{running} running"]
        said.append(f"{waiting - running} waiting")
        runs = list(self._running.values())
        far = done + sum(run.done / max(run.total, 1e-9) for run in runs)
        texts = (", ".join(said), clock(self.left))
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(ratio=1, no_wrap=True)
        if options.max_width >= BAR + sum(map(len, texts)):
            head.add_column(no_wrap=True)
            head.add_column(no_wrap=True, justify="right")
            head.add_row(ProgressBar(total=self._points, completed=far), *texts)
        else:
            head.add_row(Text(", ".join(reversed(texts)), overflow="ellipsis"))
        yield head
        room = max(options.size.height - 4, 1)
        shown = 1 + bisect(WIDTHS, options.max_width)
        body = Table.grid(padding=(0, 1), expand=True)
        body.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _ in range(shown):
            body.add_column(no_wrap=True, justify="right")
        for run in runs[:room]:
            label, *cells = _cells(run, options.encoding)
            body.add_row(label, *cells[:shown])
        if runs[:room]:
            yield body
        if runs[room:]:
            yield Text(f"and {len(runs) - room} more")


def _cells(run: Watched, encoding: str) -> tuple[Text, ...]:
    """What is said of a run: its name, how far it is, when it will be done, its measure, and that one's curve."""
    far = f"{run.done}/{run.total:g}" if run.duration is None else f"{run.done:.4g}/{run.total:g} s"
    measure = run.measure
    if not run.reckoner.rows:
        return Text(run.label), Text("starting")
    if measure is None:
        return Text(run.label), Text(far), Text(clock(run.left))
    value = f"{measure.partition('_')[2] or measure} {number_of(measure, run.seen[measure])}"
    curve = sparkline(run.curves[measure].values, CURVE, encoding)
    return Text(run.label), Text(far), Text(clock(run.left)), Text(value), Text(curve)
