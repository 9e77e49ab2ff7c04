"""What a tracker is, and what it is told of a run.

log = tracker.begin(run); log.add(rows) as rows come, several at once where they come faster; log.end(ending)

All three are called in a thread of the tracker's own, which the run does not wait for, but at its end for `patience`
seconds (see `fedsim.trackers.courier`). What one of them raises is said once, and the tracker is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.folders import alone
from fedsim.core.options import PositiveFloat, options
from fedsim.core.plugins import kind_of, refuse_misspelt

Row = Mapping[str, float]
"""A row of metrics.jsonl; a number that was not finite is NaN."""


@dataclass(frozen=True)
class Group:
    """Runs that belong together: the points of a sweep, or the seeds of a run.

    key: names it among all groups, and stays when it is gone on with. began: seconds since 1970 when its first run
    began. folder: which has the folders of its runs.
    """

    key: str
    began: float
    folder: Path

    @property
    def name(self) -> str:
        """What it is called: as its folder."""
        return self.folder.absolute().name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within this block no other run of the group is in one, in whatever process it is: others wait."""
        with alone(self.folder):
            yield


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it.

    key: 32 letters that name it among all runs, and stay when it goes on. label: what it is called, its folder's name,
    in a group its path below that; several parts are divided by /. began: seconds since 1970 when it began.
    rows: those that it had when it was interrupted; none of a new run. options: of its experiment, by `table.option`.
    tags: what else is known of it. folder: the run's own, or None. group: which it belongs to, or None.
    """

    key: str
    label: str
    began: float
    rows: Sequence[Row] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    group: Group | None = None

    def moment(self, row: Row) -> float:
        """Seconds since 1970 for a row: the same however often it is told."""
        return self.began + row["wall"]


@dataclass(frozen=True)
class Ending:
    """How a run has ended, or been interrupted.

    status: finished, stopped, diverged, stalled, interrupted or failed. summary: as summary.json has it. files: those
    of its folder that say what it came to, by name: config.toml, tables and pictures. model: the final one, if it is
    there.
    """

    status: str
    reason: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    model: Path | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the summary."""
        return {
            name: value
            for name, value in self.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }


class Log(ABC):
    """A run in a tracker."""

    had: int = 0
    """So many rows, from the first, need not be added: the tracker has them from before the run was interrupted. They
    may be more than the run goes on from.
    """

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Take the next rows, which are this log's own."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Take what the run came to, and have everything where it is kept when this returns."""


@options
class Tracker(ABC):
    """A place where runs are told. It changes no result: a run can go on with other trackers, or none."""

    library: ClassVar[tuple[str, str]] = ("", "")
    """The module that it needs, and the extra that this comes with; none where it needs none."""

    patience: PositiveFloat = 30.0
    """Seconds that a run waits at its end until all is told; then it says so and goes on."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Tracker)

    def check(self, saved: bool) -> None:  # noqa: ARG002
        """Refuse, before anything runs, what cannot work: by default a library that is not there. InputError.

        saved: whether the run has a folder.
        """
        module, extra = self.library
        if module:
            library(module, extra, kind_of("trackers", self), "kind")

    @abstractmethod
    def begin(self, run: TrackedRun) -> Log:
        """Begin to tell of a run, or go on with what has been told of it before: of the run with the same key."""


def hold_saved(tracker: Tracker, option: str, saved: bool) -> None:
    """Refuse a tracker that writes into the run folder where there is none."""
    if not saved:
        kind = kind_of("trackers", tracker)
        raise InputError(option, kind, "writes into the run folder, and with save = False there is none; leave it out")
