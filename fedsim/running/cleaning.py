"""What can be taken away of runs: checkpoints of those that have ended, half-written files, whole runs if asked for.

Nothing is found, and so nothing removed, but files with the names that a run gives them, in folders whose config.toml
says that a run has written them, and folders that are empty then. A link is not followed, and neither is a run touched
that a living process holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsim.core.errors import InputError
from fedsim.core.files import StorageError
from fedsim.running.endings import ENDED
from fedsim.running.folder import RunFolder
from fedsim.running.stored import CHECKPOINT, CHECKPOINTS, CONFIG, FILES, FOLDERS, HALF, HALF_FILE, METRICS, StoredRun

NUMBERED = re.compile(r".+-\d+")
"""What folders of runs are called that nobody has named."""


@dataclass(frozen=True)
class Removable:
    """Something of a run's folder.

    what: in words. files: the first is removed first. size: their bytes. seen: when its last row had been written.
    """

    folder: Path
    what: str
    files: tuple[Path, ...]
    size: int
    seen: int


def removable(run: StoredRun, whole: Iterable[str] = ()) -> Removable | None:
    """What can be taken away of a run; None: nothing.

    whole: runs of which status, `failed` or `interrupted`, are taken away altogether.
    """
    if run.path.is_symlink() or not run.is_ours:
        return None
    status = run.status()
    if status in whole and status not in (*ENDED, "running"):
        return _found(run, f"{status} run", _all(run.path))
    if status == "running":
        return None
    half = [*_called(run.path, HALF_FILE), *_inside(run.path, CHECKPOINTS, (HALF,))]
    ends = [*_inside(run.path, CHECKPOINTS, (CHECKPOINT,))] if status in ENDED else []
    what = [f"{len(ends)} checkpoint{'s' * (len(ends) > 1)}"] * bool(ends) + ["half-written files"] * bool(half)
    return _found(run, ", ".join(what), [*ends, *half])


def remove(found: Removable, roots: Iterable[Path]) -> None:
    """Remove what was found, and folders that are empty then, up to those that somebody has named.

    InputError: a process goes on with the run, or has since. StorageError: it cannot be removed.
    """
    folder, named = found.folder, {root.absolute() for root in roots}
    with RunFolder.reopen(folder):
        if _seen(folder) != found.seen:
            raise InputError("clean", str(folder), "a process has gone on with this run meanwhile; look again")
        try:
            for path in found.files:
                path.unlink(missing_ok=True)
            for inner in (folder / name for name in FOLDERS):
                if inner.is_dir() and not inner.is_symlink() and _is_empty(inner):
                    inner.rmdir()
            for place in (folder, *folder.parents):
                if not _is_empty(place) or (place != folder and place.absolute() in named):
                    break
                place.rmdir()
                if place.absolute() in named:
                    break
        except OSError as error:
            raise StorageError(folder, error) from error


def empty_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders in which there is nothing, called as those of runs are that nobody has named, beside a run or a group.

    The inner ones come first.
    """
    below = _folders(folder)
    beside = any(NUMBERED.fullmatch(path.name) and not _is_empty(path) for path in below)
    for path in below if depth else ():
        if not _is_empty(path):
            yield from empty_folders(path, depth - 1)
        elif beside and NUMBERED.fullmatch(path.name):
            yield path


def _found(run: StoredRun, what: str, files: list[Path]) -> Removable | None:
    if not files:
        return None
    return Removable(run.path, what, tuple(files), sum(path.lstat().st_size for path in files), _seen(run.path))


def _seen(folder: Path) -> int:
    """When the last row was written, or without rows the tables."""
    rows = folder / METRICS
    return (rows if rows.exists() else folder / CONFIG).stat().st_mtime_ns


def _all(folder: Path) -> list[Path]:
    """All files of a run: config.toml last, for by it the folder is known as a run's."""
    order = [METRICS, *(name for name in FILES if name not in (METRICS, CONFIG))]
    inner = [path for name, called in FOLDERS.items() for path in _inside(folder, name, called)]
    named = [folder / name for name in order if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    return [*inner, *named, *_called(folder, HALF_FILE), folder / CONFIG]


def _inside(folder: Path, name: str, called: Iterable[re.Pattern[str]]) -> Iterator[Path]:
    """Files in a folder of a run's that are called so; none where a link stands in its place."""
    if (folder / name).is_dir() and not (folder / name).is_symlink():
        for pattern in called:
            yield from _called(folder / name, pattern)


def _called(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if pattern.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            yield path


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return not any(entries)
