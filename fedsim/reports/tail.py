"""The rows of a run that goes on: each is read once, and none is kept but the last and the best."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedsim.core.documents import parse_json
from fedsim.core.errors import InputError
from fedsim.core.files import reason, regular
from fedsim.core.measures import NOTHING, Asked, is_measure, lower_is_better
from fedsim.running.history import Row, fault_of

STEP = 2**22
"""Bytes that are read at a time, in well below a second."""


class SoFar:
    """What rows have come to.

    last: of each column the value in the last row that has it. best: of each measure the first best of its finite
    values, and its round. asked: which way measures improve that the run was asked for.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.last: Row = {}
        self.best: dict[str, tuple[float, int | None]] = {}
        self._signs: dict[str, int] = {}

    def take(self, row: Row) -> None:
        """Take in the next row."""
        for name, value in row.items():
            sign = self._sign(name)
            if sign and value is not None and (name not in self.best or sign * value > sign * self.best[name][0]):
                self.best[name] = (value, row.get("round"))
        self.last |= row

    def _sign(self, name: str) -> int:
        """1: more is better; -1: less is; 0: it is no measure."""
        if name not in self._signs:
            way = -1 if lower_is_better(name, self.asked) else 1
            self._signs[name] = way if is_measure(name, self.asked) else 0
        return self._signs[name]


class Tail:
    """A metrics.jsonl that grows. is_behind: there is more than was read.

    A last line that is no JSON is taken for half written, and left for the next time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_behind = False
        self._begin(-1, NOTHING)

    def _begin(self, number: int, asked: Asked) -> None:
        self._number = number
        self._position = self._lines = 0
        self._names: dict[str, str] = {}
        self.so_far = SoFar(asked)

    def read(self, asked: Asked) -> bool:
        """Take in what was written since the last time, but no more than `STEP`, and say whether there is more.

        asked: which way measures improve that the run was asked for. All is read anew where that or the file is another
        one, or the file has become shorter. InputError: it cannot be read, or a line is no row.
        """
        try:
            with open(self.path, "rb", opener=regular) as file:
                now = os.fstat(file.fileno())
                if (now.st_ino, asked) != (self._number, self.so_far.asked) or now.st_size < self._position:
                    self._begin(now.st_ino, asked)
                file.seek(self._position)
                content = file.read(STEP)
        except FileNotFoundError:
            self._begin(-1, asked)
            self.is_behind = False
            return False
        except OSError as error:
            raise InputError("metrics", str(self.path), f"cannot be read: {reason(error)}") from error
        *lines, rest = content.split(b"\n")
        self.is_behind = len(content) == STEP
        if self.is_behind and not lines:
            raise InputError("metrics", str(self.path), f"line {self._lines + 1} has more than {STEP:,} bytes")
        for place, line in enumerate(lines):
            try:
                row: Any = parse_json(line)
            except ValueError as error:
                if place == len(lines) - 1 and not rest:
                    return False
                raise InputError("metrics", str(self.path), f"line {self._lines + 1} is not JSON") from error
            if fault := fault_of(row, self._names):
                raise InputError("metrics", str(self.path), f"line {self._lines + 1} {fault}")
            self._lines += 1
            self._position += len(line) + 1
            self.so_far.take(row)
        return self.is_behind
