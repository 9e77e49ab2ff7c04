"""What runs there are below a folder, looked at again and again: what has not changed is not read again.

Links are not followed: nothing outside the folder is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fedsim.reports.listing import DAMAGED, Listed, read, runs_below
from fedsim.reports.tail import Tail
from fedsim.running.endings import ENDED
from fedsim.running.stored import CONFIG, FILES, METRICS, StoredRun
from fedsim.running.study import STUDY

Mark = tuple[int, int, int]
"""Of a file its number, its bytes and when it was written."""


@dataclass(frozen=True)
class Line:
    """A run as it was last looked at.

    place: its folder, as it is called below the one that is watched; "": that itself. marks: of its files, by name.
    run: what is said of it.
    """

    place: str
    marks: Mapping[str, Mark]
    run: Listed

    @property
    def key(self) -> str:
        """Its place as it stands in an address."""
        return key_of(self.place)

    @property
    def size(self) -> int:
        """Bytes of its rows."""
        return self.marks.get(METRICS, (0, 0, 0))[1]

    @property
    def began(self) -> int:
        """When it began: its config.toml is written first, and once."""
        return self.marks.get(CONFIG, (0, 0, 0))[2]


@dataclass(frozen=True)
class Search:
    """A folder that has the study of a search over options. mark: of its file."""

    folder: Path
    mark: Mark


def key_of(place: str) -> str:
    """A place as it stands in an address."""
    return quote(os.fsencode(place))


class Shelf:
    """The runs below a folder. For one thread at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._readers: dict[Path, _Reader] = {}

    def lines(self) -> list[Line]:
        """All runs as they are now, in the order of their places. OSError: the folder cannot be read."""
        os.scandir(self.root).close()
        before, self._readers = self._readers, {}
        found = list(runs_below(self.root))
        self._readers = {path: before.get(path) or _Reader(path, self._place(path)) for path, _ in found}
        return [self._readers[path].line(fault) for path, fault in found]

    def search(self, line: Line, depth: int) -> Search | None:
        """The search in the folder above a run that is so deep below the one that is watched; None: there is none."""
        folder = self.root.joinpath(*line.place.split("/")[:depth])
        try:
            now = (folder / STUDY).lstat()
        except OSError:
            return None
        return Search(folder, _mark(now)) if stat.S_ISREG(now.st_mode) else None

    def _place(self, path: Path) -> str:
        place = path.relative_to(self.root).as_posix()
        return "" if place == "." else place


class _Reader:
    """Reads of a run what has changed."""

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place
        self._tail = Tail(path / METRICS)
        self._line: Line | None = None
        self._is_held = False

    def line(self, fault: str) -> Line:
        """What is to be said of the run. fault: why its folder cannot be read; empty: it can."""
        marks, linked = _looked_at(self._path)
        fault = fault or (f"{linked} is a link, and none is followed" if linked else "")
        if fault:
            return Line(self._place, marks, Listed(self._path, DAMAGED, fault))
        line = self._line
        if line is not None and line.marks == marks:
            if line.run.status in (*ENDED, DAMAGED):
                return line
            if StoredRun(self._path).is_held == self._is_held and not self._tail.is_behind:
                return line
        self._is_held = StoredRun(self._path).is_held
        self._line = Line(self._place, marks, read(self._path, self._tail))
        return self._line


def _looked_at(folder: Path) -> tuple[dict[str, Mark], str]:
    """The files of a run as they are now, and the name of one that is a link; empty: none is."""
    marks, linked = {}, ""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in FILES:
                    marks[entry.name] = _mark(entry.stat(follow_symlinks=False))
                    linked = entry.name if entry.is_symlink() else linked
    except OSError:  # it is gone, or is being changed: then it is looked at again the next time
        return {}, ""
    return marks, linked


def _mark(now: os.stat_result) -> Mark:
    return now.st_ino, now.st_size, now.st_mtime_ns
