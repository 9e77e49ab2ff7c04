"""Files of data that are not trusted: found in a folder, read, and refused in one line where they are damaged."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import math
import os
import pickle
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.core.errors import InputError
from fedsim.core.files import expanded, look
from fedsim.core.memory import room

Array = NDArray[Any]
TABLE = "problem.dataset"
"""Where a loader's options stand in an experiment file."""
EXPANDED, RATIO = 2**30, 100
"""A file may be unpacked to 1 GiB, or to a hundred times its size: what is more is a bomb rather than data."""
XZ_MEMORY = 2**29
"""Bytes that unpacking xz may take for itself; the file says how much it wants (at most 2^26 with `xz -9`)."""
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the readers of gzip, xz, zip, NumPy, text and image files raise for a file that is damaged
(a damaged size asks for too much memory; RuntimeError is what zipfile raises for unknown compression, and Pillow's
many formats raise whatever their bytes lead to)."""


@dataclass(frozen=True)
class DataFolder:
    """Where data files are looked for: `path`, else the folder that FEDSIM_DATA names, else nowhere.

    found: the files and folders that were looked for and are there, in their order.
    """

    path: Path | None = None
    found: list[Path] = field(default_factory=list, compare=False)

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
                return self._noted(place)
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

    def resolve(self, path: str, option: str = f"{TABLE}.path") -> Path:
        """Find the user's own file or folder: absolute, below the current folder, or below this one.

        InputError: nothing is there, or what is neither file nor folder, such as a pipe, which might never end.
        """
        places = self._places(path, option)
        for place in places:
            found = look(place, option)
            if found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
                raise InputError(option, path, f"{place} is neither a file nor a folder; name one")
            if found is not None:
                return self._noted(place)
        tried = ", ".join(dict.fromkeys(map(str, places)))
        raise InputError(option, path, f"there is no such file or folder; looked for {tried}")

    def resolve_all(self, path: str, option: str = f"{TABLE}.path") -> list[Path]:
        """Find the files that a pattern such as `sites/*.csv` is of, in the order of their names, or the one of a path.

        They are all in the current folder, or all in this one. InputError: as `resolve`.
        """
        for place in self._places(path, option):
            found = matching(place)
            if found:
                return [self.resolve(str(match), option) for match in found]
        return [self.resolve(path, option)]

    def _noted(self, place: Path) -> Path:
        self.found.append(place)
        return place

    def _places(self, path: str, option: str) -> list[Path]:
        given = expanded(path, option)
        return [Path.cwd() / given] + ([] if self.path is None else [self._known(self.path) / given])


def matching(pattern: Path) -> list[Path]:
    """What is there of an absolute pattern, in the order of names, without what is hidden; of a path, nothing."""
    if not any(letter in str(pattern) for letter in "*?[") or os.path.exists(pattern):
        return []
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(place for place in found if not place.name.startswith("."))


KINDS = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a workbook of Excel",
    b"PAR1": "Parquet",
    b"ARROW1": "Feather",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY": "one NumPy array",
    b"MATLAB 5.0 MAT-file": "an array file of MATLAB",
    b"SQLite format 3\0": "a database of SQLite",
    b"%PDF-": "PDF",
}
"""By their first bytes, files that people take for tables or archives."""
PARTS = {"xl/workbook.xml": "a workbook of Excel", "content.xml": "a spreadsheet of OpenDocument"}
"""The same of those that are zip archives, by a file in them."""


def hold_kind(path: Path, content: bytes, remedy: str, option: str) -> None:
    """Refuse content that is of another, well-known kind than it should be."""
    kind = next((kind for begin, kind in KINDS.items() if content.startswith(begin)), None)
    if kind is not None:
        raise InputError(option, str(path), f"is {kind}; {remedy}")


@contextmanager
def reading(path: Path, what: str, option: str = "data-dir") -> Iterator[None]:
    """Say in one line, as an InputError on `option`, that the file at `path` is not `what` it should be."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise damaged(path, f"cannot be read as {what} ({lines[0]})", option) from error


def unpacked(path: Path, what: str, option: str = "data-dir") -> bytes:
    """All bytes of a file; of one that is packed (gzip, bzip2, xz, a zip with one file) what is packed in it.

    What the file is, its first bytes say. InputError: it would be unpacked to more than `EXPANDED` and `RATIO` allow,
    or is damaged.
    """
    if path.is_dir():
        raise InputError(option, str(path), f"is a folder, not {what}; name a file")
    with reading(path, what, option):
        content = path.read_bytes()
        most = allowed(len(content))
        if content.startswith(b"\x1f\x8b"):
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
        elif content.startswith(b"BZh"):
            content = bz2.BZ2File(io.BytesIO(content)).read(most + 1)
        elif content.startswith(b"\xfd7zXZ\x00"):
            content = _unpack_xz(content, most + 1)
        elif content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                kind = next((kind for part, kind in PARTS.items() if part in archive.namelist()), None)
                if kind is not None:
                    raise InputError(option, str(path), f"is {kind}; save it as {what}")
                inner = [one for one in archive.infolist() if not one.is_dir() and not _of_system(one.filename)]
                if len(inner) != 1:
                    raise InputError(
                        option, str(path), f"packs {len(inner)} files, not one; pack the one that is meant"
                    )
                hold_size(path, inner[0].file_size, len(content), option)
                content = archive.read(inner[0])
    hold_size(path, len(content), path.stat().st_size, option)
    return content


def _of_system(name: str) -> bool:
    """Whether a file in a zip is one that a system has put there beside a person's."""
    return name.startswith("__MACOSX/") or name.rsplit("/")[-1].startswith(".")


def _unpack_xz(packed: bytes, most: int) -> bytes:
    """At most so many bytes of what is packed in one xz stream, or in several, one after another."""
    parts: list[bytes] = []
    while packed and most > 0:
        stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        parts.append(stream.decompress(packed, most))
        most -= len(parts[-1])
        if most > 0 and not stream.eof:
            raise EOFError("it ends too early")
        packed = stream.unused_data.lstrip(b"\0")  # by which streams may be padded
    return b"".join(parts)


def allowed(size: int) -> int:
    """Bytes to which a file of `size` bytes may be unpacked."""
    return max(EXPANDED, RATIO * size)


def hold_size(path: Path, unpacked_size: int, size: int, option: str) -> None:
    """Refuse a file of `size` bytes that is, or would be, unpacked to more than is allowed."""
    if unpacked_size > allowed(size) and unpacked_size > size:
        fault = (
            f"is {size} bytes that unpack to more than {allowed(size)}; unpack it yourself if it is what it should be"
        )
        raise InputError(option, str(path), fault)


def file_sha256(path: Path) -> str:
    """The checksum of a file's content, as sha256sum has it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_arrays(path: Path, what: str, option: str = "data-dir") -> dict[str, Array]:
    """Read every array of a NumPy archive; nothing in it is unpickled. Raises InputError on anything else."""
    if path.is_dir():
        raise InputError(option, str(path), f"is a folder, not {what}; name a file")
    with reading(path, what, option), path.open("rb") as file:
        begin = file.read(20)
        hold_kind(path, begin, "numpy.savez makes an archive", option)
        if not begin.startswith(b"PK"):
            raise ValueError("it is no archive made by numpy.savez")
        file.seek(0)
        archive = np.load(file, allow_pickle=False)
        with zipfile.ZipFile(path) as members:
            total = sum(member.file_size for member in members.infolist())
        hold_size(path, total, path.stat().st_size, option)
        return {name: _array(path, name, archive, option) for name in archive.files}


def _array(path: Path, name: str, archive: Any, option: str) -> Array:
    """An array that an archive holds under that name; ValueError: it is none, or has examples without any bytes."""
    try:
        value = archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            fault = (
                f"{name} holds objects of Python, which are not read; give it a type by .astype(float) or .astype(str)"
            )
            raise InputError(option, str(path), fault) from error
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is no array")
    if value.ndim and value.nbytes < len(value):
        raise ValueError(f"{name} has {len(value)} examples of {value.dtype} and no content")
    return value


def hold_memory(shape: tuple[int, ...], option: str, value: object, remedy: str) -> None:
    """Refuse numbers in single precision, of this shape, that do not fit into the machine's memory."""
    needed = 4 * math.prod(shape)
    if needed > room():
        sizes = f"take {needed / 2**30:.0f} GiB, and this machine has {room() / 2**30:.0f}"
        fault = f"{' x '.join(map(str, shape))} numbers {sizes}"
        raise InputError(option, value, f"{fault}; {remedy}")


def damaged(path: Path, fault: str, option: str = "data-dir") -> InputError:
    """Build the error for a file that is truncated, corrupt or not what its name says."""
    return InputError(option, str(path), f"{fault}; replace the file by a sound copy")
