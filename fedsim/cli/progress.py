"""The progress bar of a terminal: round, loss, accuracy (or gap, value, measure), clients a second, time left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fedsim.cli.console import Console
from fedsim.cli.words import outcome_line
from fedsim.core.measures import CENTRAL

if TYPE_CHECKING:
    from fedsim.running.result import Round
    from fedsim.running.sweep import Outcome

JUDGED = ("test_accuracy", "validation_accuracy", "personal_accuracy", "gap", "value")
"""Of what the global model is judged by, the first that was measured is shown; measures that were asked for before."""


class Progress:
    """A callback that draws the bar on standard error and takes it away at the end.

    rounds, duration (virtual seconds): where the run ends; with both, time is shown. asked: the measures that the run
    is judged by beside loss and accuracy.
    """

    def __init__(self, rounds: int | None, duration: float | None, label: str, asked: Iterable[str] = ()) -> None:
        self._judged = (*(f"{whose}_{name}" for name in asked for whose in CENTRAL), *JUDGED)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn() if duration is None else TextColumn("{task.completed:g}/{task.total:g} s"),
            TextColumn("{task.fields[measures]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._counts = "round" if duration is None else "time"
        self._task = self._bar.add_task(label, total=rounds if duration is None else duration, measures="")
        self._clients = 0
        self._seen: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, round: Round) -> None:  # noqa: A002
        """Move the bar."""
        row = round.row
        self._clients += row["clients"]
        judged = [name for name in self._judged if name in row][:1]
        self._seen |= {name: row[name] for name in ("train_loss", *judged) if name in row}
        measures = [f"{name.partition('_')[2] or name} {value:#.4g}" for name, value in self._seen.items()]
        measures.append(f"{self._clients / max(row['wall'], 1e-9):,.0f} clients/s")
        self._bar.update(self._task, completed=row[self._counts], measures="  ".join(measures))


class SweepProgress:
    """Called with every outcome of a sweep: draws points done, running and failed and the time left, on standard error.

    Failures are said above the bar, which is taken away at the end.
    """

    def __init__(self, points: int, workers: int) -> None:
        self._points, self._workers = points, workers
        self._skipped, self._failed, self._done = 0, 0, 0
        self._bar = Bar(
            TextColumn("points"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            _TimeLeft(),
            console=Console(stderr=True, soft_wrap=True),
            transient=True,
        )
        self._began = time.monotonic()
        self._task = self._bar.add_task("", total=points, now="", ends=None)

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, outcome: Outcome) -> None:
        """Move the bar."""
        self._done += 1
        self._skipped += outcome.skipped
        if outcome.status == "failed":
            self._failed += 1
            self._bar.console.print(outcome_line(outcome))
        self._show()

    def _show(self) -> None:
        now, left, done = time.monotonic(), self._points - self._done, self._done - self._skipped
        # As long for each as for those that this sweep has run: those that it skipped took no time.
        ends = now + left * (now - self._began) / done if done else None
        said = f"{min(self._workers, left)} running, {self._failed} failed"
        self._bar.update(self._task, completed=self._done, now=said, ends=ends)


class _TimeLeft(ProgressColumn):
    """Hours, minutes and seconds until the time that the task's field `ends` has, on the monotonic clock."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        return Text("" if ends is None else f"{timedelta(seconds=max(0, round(ends - time.monotonic())))} left")
