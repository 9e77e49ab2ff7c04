"""The progress bar of a terminal: round, loss, accuracy (or gap, or value), clients a second, time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedsim.runner import Round

JUDGED = ("test_accuracy", "gap", "value")
"""Of what the global model is judged by, the first that was measured is shown."""


class Progress:
    """A callback that draws the bar on standard error and takes it away at the end.

    rounds, duration (virtual seconds): where the run ends; with both, time is shown.
    """

    def __init__(self, rounds: int | None, duration: float | None, label: str) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn() if duration is None else TextColumn("{task.completed:g}/{task.total:g} s"),
            TextColumn("{task.fields[measures]}"),
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
        judged = [name for name in JUDGED if name in row][:1]
        self._seen |= {name: row[name] for name in ("train_loss", *judged) if name in row}
        measures = [f"{name.rpartition('_')[2]} {value:#.4g}" for name, value in self._seen.items()]
        measures.append(f"{self._clients / max(row['wall'], 1e-9):,.0f} clients/s")
        self._bar.update(self._task, completed=row[self._counts], measures="  ".join(measures))
