"""The rows of a run under way, of which each is read once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedsim.core.documents import parse_json
from fedsim.core.errors import InputError
from fedsim.core.files import regular
from fedsim.core.measures import Asked, first, lower_is_better
from fedsim.running.history import Row, fault_of

STEP = 2**22
"""Bytes that are read at a time, in well below a second; what a longer file has beyond them is read the next time."""


class Tail:
    """The last row of a metrics.jsonl that grows, and the best values of the measures that are said first.

    best: by name; a measure of which no value was finite has none. A last line that is half written is left for the
    next time. is_behind: there is more than was read.
    """

    def __init__(self, path: Path, asked: Asked) -> None:
        self.path, self.asked = path, asked
        self._begin(-1)

    def _begin(self, number: int) -> None:
        self._number = number
        self._position = self._lines = 0
        self._names: dict[str, str] = {}
        self.is_behind = False
        self.last: Row = {}
        self.best: dict[str, float] = {}

    def read(self) -> None:
        """Take in what was written since the last time; all, where the file is another one or has become shorter.

        OSError: it cannot be read. InputError: a line is no row.
        """
        with open(self.path, "rb", opener=regular) as file:
            now = os.fstat(file.fileno())
            if now.st_ino != self._number or now.st_size < self._position:
                self._begin(now.st_ino)
            file.seek(self._position)
            content = file.read(STEP)
        end = content.rfind(b"\n") + 1
        if not end and len(content) == STEP:
            raise InputError("metrics", str(self.path), f"line {self._lines + 1} has more than {STEP:,} bytes")
        self._position += end
        self.is_behind = len(content) == STEP
        for line in content[:end].split(b"\n")[:-1]:
            self._lines += 1
            self._take(self._parsed(line))

    def _parsed(self, line: bytes) -> Row:
        try:
            row: Any = parse_json(line)
        except ValueError as error:
            raise InputError("metrics", str(self.path), f"line {self._lines} is not JSON") from error
        if fault := fault_of(row, self._names):
            raise InputError("metrics", str(self.path), f"line {self._lines} {fault}")
        return dict(row)

    def _take(self, row: Row) -> None:
        """Remember what a row has; of a measure that it has not, what an earlier one had."""
        for name in first(self.asked):
            value = row.get(name)
            if value is not None:
                sign = -1 if lower_is_better(name, self.asked) else 1
                self.best[name] = max(self.best.get(name, value), value, key=lambda found: sign * found)
        self.last |= row
