"""Trackers that are broken, each for the checks that `test_broken_parts` names beside it."""

from __future__ import annotations

import csv
from pathlib import Path

from fedsim.core.options import options
from fedsim.running.stored import MODEL
from fedsim.trackers import CSV, Ending, Log, TrackedRun


def rows(folder: Path) -> list[dict[str, float]]:
    """What these have of the run in a folder."""
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


@options
class SpoilsTheModel(CSV):
    def begin(self, run: TrackedRun) -> Log:
        log, model = super().begin(run), Path(run.folder or "") / MODEL
        end = log.end

        def spoil(ending: Ending) -> None:
            end(ending)
            model.write_bytes(b"")

        log.end = spoil  # type: ignore[method-assign]
        return log


@options
class TellsTwice(CSV):
    def begin(self, run: TrackedRun) -> Log:
        log = super().begin(run)
        add = log.add
        log.add = lambda told: (add(told), add(told))  # type: ignore[method-assign, assignment, func-returns-value]
        return log
