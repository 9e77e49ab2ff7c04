"""What runs there are below a folder, looked at again and again: what has not changed is not read again.

Links are not followed: nothing outside the folder is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsim.core.errors import InputError
from fedsim.core.files import reason
from fedsim.core.measures import Asked, first
from fedsim.reports.watching.tail import Tail
from fedsim.running.stored import CONFIG, FILES, METRICS, StoredRun

HERE = "."
"""The place of the folder that is watched."""
Mark = tuple[int, int, int]
"""Of a file its number, its bytes and when it was written."""


@dataclass(frozen=True)
class Found:
    """A run that is there. place: where it lies below the folder that is watched. marks: of its files, by name.

    linked: one of its files that is a link; empty: none is.
    """

    path: Path
    place: str
    marks: Mapping[str, Mark]
    linked: str

    @property
    def key(self) -> str:
        """Its place as it stands in an address."""
        return key_of(self.place)

    @property
    def written(self) -> float:
        """When anything of it was written last, in seconds since 1970."""
        return max((moment for *_, moment in self.marks.values()), default=0) / 1e9

    @property
    def size(self) -> int:
        """Bytes of its rows."""
        return self.marks.get(METRICS, (0, 0, 0))[1]


@dataclass(frozen=True)
class Line:
    """A run as the list has it.

    done, goal: rounds, or virtual seconds where they decide when the run ends; None: not known. measure: what last and
    best are values of; empty: none was measured. fault: why it cannot be read; empty: it can.
    """

    found: Found
    status: str = ""
    done: float | None = None
    goal: float | None = None
    measure: str = ""
    last: float | None = None
    best: float | None = None
    fault: str = ""


def key_of(place: str) -> str:
    """A place as it stands in an address."""
    return quote(os.fsencode(place))


def runs_below(root: Path) -> list[Found]:
    """The runs at a folder and at most `DEPTH` below it, in the order of their places. OSError: it cannot be read.

    A folder below that cannot be read, or is gone before it is, holds none.
    """
    return list(_search(root, HERE, 6))


def _search(folder: Path, place: str, depth: int) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            inner = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        if place == HERE:
            raise
        return
    files = {entry.name: entry for entry in inner if entry.name in FILES}
    if any(name in files and files[name].is_file(follow_symlinks=False) for name in (CONFIG, METRICS)):
        linked = next((name for name, entry in files.items() if entry.is_symlink()), "")
        yield Found(folder, place, dict(_marks(files)), linked)
    elif depth:
        for entry in inner:
            if entry.is_dir(follow_symlinks=False):
                below = entry.name if place == HERE else f"{place}/{entry.name}"
                yield from _search(Path(entry.path), below, depth - 1)


def _marks(files: Mapping[str, os.DirEntry[str]]) -> Iterator[tuple[str, Mark]]:
    for name, entry in files.items():
        try:
            now = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # since the folder was listed
            continue
        yield name, (now.st_ino, now.st_size, now.st_mtime_ns)


class Shelf:
    """The runs below a folder, and what the list says of each. For one thread at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._readers: dict[str, _Reader] = {}

    def lines(self) -> list[Line]:
        """All runs as they are now. OSError: the folder cannot be read."""
        found = runs_below(self.root)
        self._readers = {one.place: self._readers.get(one.place) or _Reader() for one in found}
        return [self._readers[one.place].line(one) for one in found]


class _Reader:
    """Reads of a run what has changed."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._is_done = False  # nothing more is to be said before a file changes
        self._config: tuple[Mark | None, Mapping[str, Any], Asked] | None = None
        self._tail: Tail | None = None

    def line(self, found: Found) -> Line:
        """What is to be said of the run."""
        if self._line is None or not self._is_done or self._line.found != found:
            try:
                self._line, self._is_done = self._read(found)
            except InputError as error:
                self._line, self._is_done = Line(found, fault=f"{error.option}: {error.remedy}"), True
            except OSError as error:
                self._line, self._is_done = Line(found, fault=reason(error)), True
        return self._line

    def _read(self, found: Found) -> tuple[Line, bool]:
        """The line, and whether it stays. InputError, OSError: the run cannot be read."""
        if found.linked:
            return Line(found, fault=f"{found.linked} is a link, and none is followed"), True
        run = StoredRun(found.path)
        mark = found.marks.get(CONFIG)
        if self._config is None or self._config[0] != mark:
            self._config, self._tail = (mark, run.config(), run.asked()), None
        _, config, asked = self._config
        column, goal = _goal(config)
        summary = run.summary() if run.ended() is not None else None
        if summary is not None:
            self._tail = None
            done = summary.get("rounds" if column == "round" else column)
            measure = next((name for name in first(asked) if name in summary), "")
            values = (summary.get(measure), summary.get(f"best_{measure}"))
            return Line(found, summary["status"], done, goal, measure, *values), True
        if METRICS not in found.marks:
            return Line(found, run.status(), goal=goal), False
        self._tail = self._tail or Tail(found.path / METRICS, asked)
        self._tail.read()
        if self._tail.is_behind:
            return Line(found, run.status(), goal=goal), False
        last, best = self._tail.last, self._tail.best
        measure = next((name for name in first(asked) if name in last), "")
        return Line(found, run.status(), last.get(column), goal, measure, last.get(measure), best.get(measure)), False


def _goal(config: Mapping[str, Any]) -> tuple[str, float | None]:
    """What decides when a run ends, as rows call it, and how much of it there is to be."""
    for option, column in (("duration", "time"), ("rounds", "round")):
        if isinstance(config.get(option), int | float):
            return column, config[option]
    return "round", None
