"""What a run tells its trackers: who it is, its rows, and how it has ended.

A run is named by a key of its own, in tracking.json of its folder, under which trackers go on with what they have of
it; so is a group of runs, in the tracking.json of the folder that has theirs.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.configuration.tables import NOTES, PLUGINS, Experiment
from fedsim.core.documents import parse_json
from fedsim.core.errors import InputError, named_line, naming
from fedsim.core.files import read_bytes, reason, write_whole
from fedsim.core.folders import alone
from fedsim.core.plugins import kind_of
from fedsim.plots.evasion import ADVERSARIAL
from fedsim.plots.labels import PARTITION
from fedsim.plots.personal import PERSONAL
from fedsim.running.folder import RunFolder
from fedsim.running.history import Row
from fedsim.running.stored import CLIENTS, CONFIG, CURVES, METRICS, MODEL, NEWCOMERS, REPORT, SUMMARY, TRACE, TRACKING
from fedsim.trackers.base import Ending, Group, TrackedRun
from fedsim.trackers.courier import Couriers

TOLD = (CONFIG, METRICS, SUMMARY, TRACE, CLIENTS, NEWCOMERS, CURVES, PARTITION, PERSONAL, ADVERSARIAL, REPORT)
"""Files that trackers are told of at the end, those of them that there are."""
LARGEST = 10_000
"""Bytes of a tracking.json that are read."""


def check_trackers(experiment: Experiment, *, saved: bool) -> None:
    """Refuse trackers that cannot work, before anything runs. saved: whether the run has a folder. InputError."""
    for number, tracker in enumerate(experiment.track):
        with naming(f"track.{number}"):
            if tracker in experiment.track[:number]:  # and would write to the same place
                kind = kind_of("trackers", tracker)
                raise InputError("kind", kind, f"is the same as track.{experiment.track.index(tracker)}; leave one out")
            tracker.check(saved)


class Telling:
    """A run that tells its trackers of itself; none of them changes anything of it."""

    def __init__(self, couriers: Couriers, folder: RunFolder | None) -> None:
        self._couriers, self._folder = couriers, folder
        self._ended = False

    def row(self, row: Row) -> None:
        """Tell of a row."""
        self._couriers.row(row)

    def end(self, status: str, reason: str, summary: Mapping[str, Any]) -> None:
        """Tell how the run has ended, once all that it leaves is written."""
        self._ended = True
        places = {} if self._folder is None else {name: self._folder.path / name for name in TOLD}
        files = {name: path for name, path in places.items() if path.is_file()}
        model = None if self._folder is None else self._folder.path / MODEL
        self._couriers.end(Ending(status, reason, summary, files, model if model and model.is_file() else None))

    def fail(self, error: BaseException) -> None:
        """Tell that the run has failed, if it has not ended."""
        if not self._ended:
            self.end("failed", named_line(error), {})


@contextmanager
def telling(
    experiment: Experiment,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    folder: RunFolder | None,
    group: Path | None = None,
) -> Iterator[Telling]:
    """Within this block a run tells its trackers of itself; what it raises there ends it for them, too.

    config: the experiment's tables and notes. rows: of an earlier part of the run. group: see `fedsim.run`.
    """
    if not experiment.track:
        yield Telling(Couriers({}, TrackedRun("", "", 0.0)), folder)
        return
    told = Telling(Couriers(_named(experiment), _described(experiment, config, rows, folder, group)), folder)
    try:
        yield told
    except BaseException as error:
        told.fail(error)
        raise


def _named(experiment: Experiment) -> dict[str, Any]:
    """The trackers by their kinds; of two of a kind the second has its number, too."""
    named: dict[str, Any] = {}
    for number, tracker in enumerate(experiment.track):
        kind = kind_of("trackers", tracker)
        named[f"{kind} (track.{number})" if kind in named else kind] = tracker
    return named


def _described(
    experiment: Experiment,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    folder: RunFolder | None,
    group: Path | None,
) -> TrackedRun:
    tables = {name: table for name, table in config.items() if name not in (*NOTES, "track")}
    tags = {name: str(value) for name, value in flat({note: config.get(note, {}) for note in NOTES})}
    kinds = {part: kind_of(kinds, getattr(experiment, part)) for part, (kinds, _) in PLUGINS.items()}
    tags |= {f"fedsim.{part}": kind for part, kind in kinds.items()} | {"fedsim.seed": str(experiment.seed)}
    began = time.time() - (rows[-1]["wall"] if rows else 0.0)
    label = f"{experiment.name}-seed-{experiment.seed}"
    if folder is not None:
        place = folder.path.absolute()
        label = place.name
        if group is not None and place.is_relative_to(group.absolute()):
            label = place.relative_to(group.absolute()).as_posix()
        key, began = _kept(folder.place(TRACKING), began)
    else:
        key = secrets.token_hex(16)
    return TrackedRun(
        key=key,
        label=label,
        began=began,
        rows=rows,
        options=dict(flat(tables)),
        tags=tags,
        folder=None if folder is None else folder.path,
        group=None if group is None else _group(group, began),
    )


def _group(folder: Path, began: float) -> Group:
    with alone(folder):
        return Group(*_kept(folder / TRACKING, began), folder)


def _kept(path: Path, began: float) -> tuple[str, float]:
    """The key in a tracking.json, and when what it names began; without the file a new key, which is written there.

    InputError: the file is not as a run has written it.
    """
    try:
        found = parse_json(read_bytes(path, LARGEST))
        key, began = found["key"], float(found["began"])
        if not isinstance(key, str) or not (len(key) == 32 and key.isalnum() and key.isascii()):
            raise ValueError("its key is none")
    except FileNotFoundError:
        key = secrets.token_hex(16)
        write_whole(path, f"{json.dumps({'key': key, 'began': began})}\n".encode())
    except OSError as error:
        raise InputError("track", str(path), f"cannot be read: {reason(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("track", str(path), "is not as a run has written it; remove it to be told anew") from error
    return key, began


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The options in tables, by `table.option`; those of tables in a list by their number in it."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        value = {str(number): one for number, one in enumerate(value)}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
