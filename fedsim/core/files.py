"""Files are written whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedsim.core.errors import FedsimError


class StorageError(FedsimError):
    """A file of the run cannot be written: a full or read-only disk. What was written before is kept."""

    def __init__(self, path: Path, error: OSError, kept: str = "") -> None:
        super().__init__(f"cannot write {path}: {reason(error)}{kept}")


def write_whole(path: Path, *content: bytes | memoryview) -> None:
    """Write or replace the file `path` so that no reader sees a part of it. StorageError: it cannot be.

    content: its parts, one after the other. When this returns they are on the disk.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(beside, "wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(path, error) from error


def settle(folder: Path) -> None:
    """Have the disk take the names in a folder, which it may do later than the files. OSError: it does not."""
    if sys.platform == "win32":  # which cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """What the system says of an error, in small letters."""
    return (error.strerror or str(error)).lower()
