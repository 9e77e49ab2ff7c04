"""Files of data that are not trusted: found in a folder, read, and refused in one line where they are damaged."""

from __future__ import annotations

import lzma
import os
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.core.errors import InputError
from fedsim.core.files import expanded, look

Array = NDArray[Any]
TABLE = "problem.dataset"
"""Where a loader's options stand in an experiment file."""
DAMAGE = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the readers of gzip, xz, zip, pickle, NumPy, text and image files raise for a file that is damaged
(a damaged size asks for too much memory; RuntimeError is what zipfile raises for unknown compression)."""


@dataclass(frozen=True)
class DataFolder:
    """Where data files are looked for: `path`, else the folder that FEDSIM_DATA names, else nowhere."""

    path: Path | None = None

    def __post_init__(self) -> None:
        named = os.environ.get("FEDSIM_DATA")
        if self.path is None and named:
            object.__setattr__(self, "path", Path(named))

    def find(self, *names: str) -> Path:
        """Return the first file of these relative names that exists; raises InputError when none does."""
        places = [] if self.path is None else [self._known(self.path) / name for name in names]
        for place in places:
            found = look(place, "data-dir")
            if found is not None and stat.S_ISREG(found.st_mode):
                return place
        if self.path is None:
            raise InputError("data-dir", "(not set)", f"{names[0]} is needed; pass --data-dir or set FEDSIM_DATA")
        tried = ", ".join(map(str, places))
        remedy = f"{names[0]} was looked for at {tried}; pass --data-dir or set FEDSIM_DATA"
        raise InputError("data-dir", str(self.path), remedy)

    @staticmethod
    def _known(folder: Path) -> Path:
        found = expanded(folder, "data-dir")
        look(found, "data-dir")
        return found.resolve()

    def resolve(self, path: str) -> Path:
        """Find the user's own file or folder: absolute, below the current folder, or below this one."""
        given = expanded(path, f"{TABLE}.path")
        places = [Path.cwd() / given] + ([] if self.path is None else [self._known(self.path) / given])
        for place in places:
            if look(place, f"{TABLE}.path") is not None:
                return place
        tried = ", ".join(dict.fromkeys(map(str, places)))
        raise InputError(f"{TABLE}.path", path, f"there is no such file or folder; looked for {tried}")


@contextmanager
def reading(path: Path, what: str, option: str = "data-dir") -> Iterator[None]:
    """Say in one line, as an InputError on `option`, that the file at `path` is not `what` it should be."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise damaged(path, f"cannot be read as {what} ({lines[0]})", option) from error


def read_arrays(path: Path, what: str, option: str = "data-dir") -> dict[str, Array]:
    """Read every array of a NumPy archive; nothing in it is unpickled. Raises InputError on anything else."""
    with reading(path, what, option), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not an archive made by numpy.savez")
        return {name: archive[name] for name in archive.files}


def damaged(path: Path, fault: str, option: str = "data-dir") -> InputError:
    """Build the error for a file that is truncated, corrupt or not what its name says."""
    return InputError(option, str(path), f"{fault}; replace the file by a sound copy")
