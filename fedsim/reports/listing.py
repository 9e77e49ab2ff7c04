"""Runs in a few numbers each, read without their tables of rounds where they have ended: what `fedsim ls` shows."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.files import look, reason
from fedsim.core.measures import Asked, first, is_measure, lower_is_better
from fedsim.core.near import name_one
from fedsim.reports.tail import Tail
from fedsim.running.endings import ENDED
from fedsim.running.stored import CONFIG, METRICS, SUMMARY, StoredRun, is_run

DAMAGED = "damaged"
STATUSES = (*ENDED, "interrupted", "failed", "running", DAMAGED)
"""What `StoredRun.status` says, and of a run whose files cannot be read that they are damaged."""
DEPTH = 6
"""How deep below a given folder runs are looked for: runs/sweep-<n>/<name>/<options>/seed-<k> is four."""
ORDERS = ("when", "best", "name")


@dataclass(frozen=True)
class Listed:
    """A run in a few numbers.

    status: one of `STATUSES`; fault: what is wrong with its files; empty: nothing. when: seconds since 1970 of its last
    row. rounds, time (virtual seconds): how far it is; asked, duration: where it is to end. measure: the first that it
    is judged by, with its last and its best value; None: it has none, or no finite one. size: bytes of its folder.
    """

    folder: Path
    status: str
    fault: str = ""
    name: str = ""
    seed: int | None = None
    when: float = 0.0
    rounds: int = 0
    asked: int | None = None
    time: float = 0.0
    duration: float | None = None
    measure: str | None = None
    last: float | None = None
    best: float | None = None
    best_round: int | None = None
    higher_is_better: bool = True
    size: int = 0

    def record(self) -> dict[str, Any]:
        """The same as JSON has it."""
        when = datetime.fromtimestamp(self.when, UTC).isoformat(timespec="seconds")
        return asdict(self) | {"folder": str(self.folder), "when": when}


def read(folder: Path, tail: Tail | None = None) -> Listed:
    """Read a run. It says of itself that it is damaged where its files cannot be read.

    tail: what was read of its rows before; where there are many more since, some are taken in, and no number is said.
    """
    stored = StoredRun(folder)
    found = Listed(folder, DAMAGED)
    try:
        found = replace(found, when=_when(folder), size=size(folder))
        config = stored.config()
        resolved = config.get("resolved")
        named = {"name": str, "seed": int, "rounds": int, "duration": int | float}
        told = {key: config[key] for key, kind in named.items() if isinstance(config.get(key), kind)}
        told["asked"] = told.pop("rounds", None)
        found = replace(found, **told)
        status = stored.status(config)
        asked = stored.asked() if isinstance(resolved, Mapping) and "metrics" in resolved else {}
        return replace(found, status=status, **_measured(stored, status, asked, tail))
    except InputError as error:
        return replace(found, status=DAMAGED, fault=f"{error.value}: {error.remedy}")
    except OSError as error:
        return replace(found, status=DAMAGED, fault=f"{error.filename}: cannot be read: {reason(error)}")


def listed(folders: Iterable[Path]) -> list[Listed]:
    """Read the runs in these folders and in those below them, each once, in the order of their paths.

    Folders below that are links are left out; one that cannot be read is named as damaged. InputError: a folder is not
    there.
    """
    found: dict[Path, Listed] = {}
    for given in folders:
        if look(given, "folders") is None:
            raise InputError("folders", str(given), "there is no such folder")
        for folder, fault in runs_below(given):
            place = folder.resolve()
            if place not in found:
                found[place] = Listed(folder, DAMAGED, fault) if fault else read(folder)
    return list(found.values())


def ordered(runs: Iterable[Listed], by: str) -> list[Listed]:
    """Put runs in order: the latest first, the best of each measure first, or by their folders' names.

    InputError: there is no such order.
    """
    if by not in ORDERS:
        raise InputError("sort", by, name_one(by, ORDERS))
    if by == "name":
        return sorted(runs, key=lambda run: run.folder.parts)
    if by == "when":
        return sorted(runs, key=lambda run: -run.when)
    return sorted(runs, key=_rank)


def runs_below(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, str]]:
    """The runs at a folder or below it; with a text, what keeps a folder from being read."""
    try:
        if is_run(folder):
            yield folder, ""
            return
        with os.scandir(folder) as entries:
            below = sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except NotADirectoryError:
        return
    except OSError as error:
        yield folder, f"{folder}: cannot be read: {reason(error)}"
        return
    except InputError as error:
        yield folder, f"{error.value}: {error.remedy}"
        return
    for path in below if depth else ():
        yield from runs_below(path, depth - 1)


def size(folder: Path) -> int:
    """Bytes of the files in a folder and below it; links count as themselves. OSError: it cannot be read."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += size(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _when(folder: Path) -> float:
    """When the run has written its last row, or without one its config.toml."""
    times = [found for name in (METRICS, CONFIG) if (found := look(folder / name, "run")) is not None]
    return next((one.st_mtime for one in times if stat.S_ISREG(one.st_mode)), 0.0)


def _measured(stored: StoredRun, status: str, asked: Asked, tail: Tail | None) -> dict[str, Any]:
    """How far a run is, and what it was measured at."""
    summary = stored.summary()
    if status in ENDED or (status == "interrupted" and summary is not None and _is_last(stored)):
        assert summary is not None  # for by it a run has ended
        names = [name for name in summary if f"best_{name}_round" in summary]
        measure = _first(names, asked)
        told = {name: summary.get(name) for name in ("rounds", "time")}
        if measure is not None:
            told |= {"last": summary.get(measure), "best": summary.get(f"best_{measure}")}
            told["best_round"] = summary[f"best_{measure}_round"]
    else:
        if summary is None and look(stored.path / SUMMARY, "run") is not None:
            raise InputError("summary", str(stored.path / SUMMARY), "is not as the run has written it")
        if tail is None:
            tail = Tail(stored.path / METRICS)
            while tail.read(asked):
                pass
        elif tail.read(asked):
            return {}
        last, best = tail.so_far.last, tail.so_far.best
        measure = _first(last, asked)
        told = {"rounds": last.get("round"), "time": last.get("time")}
        if measure is not None:
            value, number = best.get(measure, (None, None))
            told |= {"last": last[measure], "best": value, "best_round": number}
    numbers = {name: value for name, value in told.items() if value is not None}
    if measure is None:
        return numbers
    return numbers | {"measure": measure, "higher_is_better": not lower_is_better(measure, asked)}


def _is_last(stored: StoredRun) -> bool:
    """Whether the summary is of all rows: a run that went on after it, and was killed then, has later ones."""
    return (stored.path / SUMMARY).stat().st_mtime >= _when(stored.path)


def _first(names: Iterable[str], asked: Asked) -> str | None:
    """The measure that is said first of a run."""
    found = [name for name in names if is_measure(name, asked)]
    return next((name for name in first(asked) if name in found), next(iter(found), None))


def _rank(run: Listed) -> tuple[str, bool, float]:
    """Runs of one measure together, the best first, those without a value last."""
    value = run.best
    if value is None or not math.isfinite(value):
        return run.measure or "~", True, 0.0
    return run.measure or "~", False, -value if run.higher_is_better else value
