"""Folders that are made together, and taken back together where nothing came of it."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from fedsim.core.files import regular

if sys.platform != "win32":
    import fcntl


ATTEMPTS = 10
"""At locking a file: whoever asks `is_locked` has it locked, too, for an instant."""
PAUSE = 0.01
"""Seconds between two of them."""


def lock(file: FileIO) -> None:
    """Hold a file for this process, until it closes it or dies. BlockingIOError: another process holds it."""
    if sys.platform == "win32":
        return
    for left in reversed(range(ATTEMPTS)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing to it") from None
            time.sleep(PAUSE)
        except OSError:  # some network file systems have no locks
            return
        else:
            return


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file, which is made if need be, within this block, and before it wait for whoever holds it.

    As of `lock`, whoever dies holds nothing, and where there are no locks nobody waits.
    """
    with open(path, "ab", buffering=0) as file:
        if sys.platform != "win32":
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds a file by `lock`; no copy of a file is held, nor one whose holder was killed.

    False where there are no locks: on Windows, and on some network file systems. OSError: the file cannot be read.
    """
    if sys.platform == "win32":
        return False
    with open(path, "rb", buffering=0, opener=regular) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: any number may ask at once
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within this block no other thread or process is in one for the same folder: they wait.

    Where there are no locks (see `is_locked`) nobody waits.
    """
    if sys.platform == "win32":
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of network file systems without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def next_free(root: Path, name: str, made: list[Path]) -> Path:
    """Make the folder `root/<name>-<n>` of the least n for which there is none, and add to `made` what was made."""
    if not root.is_dir():
        make(root, made)
    number = 0
    while True:
        path = root / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            made.append(path)
            return path


def make(path: Path, made: list[Path]) -> None:
    """Make the folder `path` and its parents, and add to `made` those that were not there."""
    for parent in reversed(path.parents):
        if not parent.is_dir():
            try:
                parent.mkdir()
            except FileExistsError:
                continue  # another run made it in the meantime
            made.append(parent)
    path.mkdir()
    made.append(path)


def remove_empty(made: Sequence[Path]) -> None:
    """Remove these folders, the last first, up to one that holds something."""
    for path in reversed(made):
        if path.is_dir():
            if any(path.iterdir()):
                return
            path.rmdir()
