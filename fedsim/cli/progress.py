"""A run as a terminal shows it: round, loss and accuracy (or gap, value, measure) with curves, clients/s, time left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.cli.live import Live, clock
from fedsim.cli.reckoner import Reckoner
from fedsim.cli.sparkline import Curve, sparkline
from fedsim.core.errors import one_line
from fedsim.core.measures import CENTRAL

if TYPE_CHECKING:
    from fedsim.running.result import Round

JUDGED = ("test_accuracy", "validation_accuracy", "personal_accuracy", "gap", "value")
"""Of what the global model is judged by, the first that was measured is shown; measures that were asked for before."""
LABEL = 24
"""Letters of a name that are shown."""
WIDEST, NARROWEST = 40, 4
"""Letters of a curve."""


class Progress:
    """A callback that draws the run on standard error, and takes that away at the end.

    rounds, duration (virtual seconds): where the run ends; with both, time is shown. asked: the measures that the run
    is judged by beside loss and accuracy.
    """

    def __init__(self, rounds: int | None, duration: float | None, label: str, asked: Iterable[str] = ()) -> None:
        self._label, self._duration = label, duration
        self._judged = (*(f"{whose}_{name}" for name in asked for whose in CENTRAL), *JUDGED)
        self._total = rounds if duration is None else duration
        self._reckoner = Reckoner(float(self._total or 0))
        self._done, self._heard, self._speed = 0, time.monotonic(), 0.0
        self._clients, self._began = 0, 0.0
        self._seen: dict[str, float] = {}
        self._curves: dict[str, Curve] = {}
        self._live = Live(self)

    def __enter__(self) -> Progress:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __call__(self, round: Round) -> None:  # noqa: A002
        """Take a row."""
        row = round.row
        judged = [name for name in self._judged if name in row][:1]
        for name in ("train_loss", *judged):
            if name in row:
                self._seen[name] = row[name]
                self._curves.setdefault(name, Curve()).add(row[name])
        self._done = row["round" if self._duration is None else "time"]
        self._clients += row["clients"]
        self._speed = self._clients / max(row["wall"] - self._began, 1e-9)
        if not self._reckoner.rows:  # which is the first of this process, and compiles
            self._clients, self._began = 0, row["wall"]
        self._reckoner.add(self._done, row["wall"], len(row))
        self._heard = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw two lines."""
        of = f"{self._done}/{self._total}" if self._duration is None else f"{self._done:g}/{self._total:g} s"
        head = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            head.add_column(no_wrap=True, ratio=ratio)
        left = self._reckoner.left(time.monotonic() - self._heard)
        bar = ProgressBar(total=self._total, completed=self._done)
        head.add_row(one_line(self._label)[:LABEL], bar, of, clock(left))
        yield head
        said = [f"{name.partition('_')[2] or name} {value:#.4g}" for name, value in self._seen.items()]
        speed = f"{self._speed:,.0f} clients/s" if self._reckoner.rows else "starting"
        taken = sum(len(text) + 3 for text in (*said, speed))
        width = min((options.max_width - taken) // max(len(said), 1), WIDEST)
        cells = [
            f"{text} {sparkline(self._curves[name].values, width, options.encoding)}" if width >= NARROWEST else text
            for name, text in zip(self._seen, said, strict=True)
        ]
        yield Text("  ".join([*cells, speed]), no_wrap=True, overflow="ellipsis")
