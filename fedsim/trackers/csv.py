"""A table for a spreadsheet: rows.csv in the run folder, a line a row, with all columns.

A row is in the file as soon as it has come. A column that first comes later is added, with the file written anew.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from fedsim.core.files import write_whole
from fedsim.core.options import options
from fedsim.trackers.base import Ending, Log, Row, TrackedRun, Tracker, hold_saved

ROWS = "rows.csv"


@options
class CSV(Tracker):
    """Cells are as in metrics.jsonl; empty where a row lacks the column, nan where a number was not finite."""

    delimiter: Literal[",", ";", "\t"] = ","
    """What stands between cells."""

    def check(self, saved: bool) -> None:
        """See `Tracker.check`: there must be a folder."""
        hold_saved(self, "kind", saved)

    def begin(self, run: TrackedRun) -> Log:
        """Begin the file, or begin it again with the rows that the run goes on from."""
        assert run.folder is not None  # see `check`
        return _Table(run.folder / ROWS, self.delimiter)


class _Table(Log):
    """The file. It is written whole where its columns change and at the end, and gets a line a row in between."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self._path, self._delimiter = path, delimiter
        self._columns: list[str] = []
        self._rows: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows; if they bring new columns, write the file anew."""
        self._rows += rows
        found = list(dict.fromkeys([*self._columns, *(name for row in rows for name in row)]))
        if found != self._columns:
            self._columns = found
            return self._write()
        with self._path.open("ab") as file:
            file.write(self._lines(rows))

    def end(self, ending: Ending) -> None:  # noqa: ARG002
        """Write the file whole, so that it is on the disk."""
        self._write()

    def _write(self) -> None:
        write_whole(self._path, self._lines([dict(zip(self._columns, self._columns, strict=True)), *self._rows]))

    def _lines(self, rows: Iterable[Any]) -> bytes:
        written = io.StringIO()
        table = csv.DictWriter(written, self._columns, restval="", delimiter=self._delimiter, lineterminator="\n")
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        return written.getvalue().encode()


def _cell(value: Any) -> Any:
    return "nan" if isinstance(value, float) and math.isnan(value) else value
