"""Files are written whole or not at all, and read only where they are files, of a size that was said before."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from fedsim.core.errors import FedsimError, InputError

TOO_LARGE = "it has more than the {:,} bytes that are read"


class StorageError(FedsimError):
    """A file of the run cannot be written: a full or read-only disk. What was written before is kept."""

    def __init__(self, path: Path, error: OSError, kept: str = "") -> None:
        super().__init__(f"cannot write {path}: {reason(error)}{kept}")


class GoneError(StorageError):
    """The run's folder is not where it was: somebody has deleted or moved it."""

    def __init__(self, path: Path) -> None:
        otherwise = "" if path.is_absolute() else ", or what runs has changed the current folder"
        super().__init__(path, OSError(errno.ENOENT, f"the run's folder was deleted or moved{otherwise}"))


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


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file. OSError: it cannot be read, is none (a pipe, a device, a folder), or has more than `most` bytes."""
    with _opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, TOO_LARGE.format(most))
    return content


def read_lines(path: Path, most: int) -> Iterator[bytes]:
    """The lines of a file, one after the other, with their ends. OSError: as `read_bytes`."""
    read = 0
    with _opened(path) as file:
        while line := file.readline(most + 1):
            read += len(line)
            if read > most:
                raise OSError(errno.EFBIG, TOO_LARGE.format(most))
            yield line


def _opened(path: Path) -> BufferedReader:
    try:
        return open(path, "rb", opener=regular)
    except ValueError as error:  # a path with a NUL
        raise OSError(errno.EINVAL, str(error)) from error


def regular(path: str, flags: int) -> int:
    """For `open`: open what is a file. OSError: it is none; a pipe would be waited for."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is no regular file")


def path_of(given: object, option: str) -> Path:
    """A path that somebody has handed over in Python. InputError on `option`: it is none."""
    try:
        return Path(given)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(option, given, "give a path, as text or as a pathlib.Path") from error


def look(path: Path, option: str) -> os.stat_result | None:
    """What is at a path that somebody has given; None: nothing.

    InputError on `option`: the system refuses the path, as one that is too long, has a NUL or may not be looked at.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(option, str(path), f"cannot be used: {reason(error)}") from error
    except ValueError as error:
        raise InputError(option, str(path), f"cannot be used: {error}") from error


def expanded(path: Path | str, option: str) -> Path:
    """A path in which ~ and ~user stand for folders. InputError on `option`: there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(option, str(path), "there is no such user; write the path out") from error


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
