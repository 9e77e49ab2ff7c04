"""Tables of Arrow: read from Parquet files that are not trusted, column by column.

pyarrow is imported where it is used; it comes with the extra `[parquet]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.core.data_files import TABLE, DataFolder, hold_memory, hold_size, reading
from fedsim.core.errors import InputError
from fedsim.core.extras import library

PATH = f"{TABLE}.path"
CELL = 8
"""Numbers of single precision that a cell takes for a time, as a text."""


def parquet_files(folder: DataFolder, path: str, option: str) -> list[Path]:
    """The file of a path, or the files of a pattern; of folders the Parquet files in them, in the order of names."""
    found = []
    for place in folder.resolve_all(path, option):
        inner = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
        inner = [file for file in inner if not any(part.startswith(".") for part in file.relative_to(place).parts)]
        if not inner:
            raise InputError(option, str(place), "there is no file called *.parquet in this folder")
        parted = [file for file in inner if any("=" in part for part in file.relative_to(place).parts[:-1])]
        if parted:
            fault = f"{parted[0]} lies in a folder that has the value of a column in its name, which is not read"
            raise InputError(option, str(place), f"{fault}; write that column into the files")
        found += [folder.resolve(str(file), option) for file in inner] if place.is_dir() else inner
    return found


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A Parquet file, as pyarrow's `ParquetFile`. InputError: it is none, or would be unpacked to too much."""
    parquet = library("pyarrow.parquet", "parquet", str(path), PATH)
    if path.is_dir():
        raise InputError(PATH, str(path), "is a folder, not Parquet; name a file")
    with reading(path, "Parquet", PATH), parquet.ParquetFile(path, read_dictionary=_texts_of(path)) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        hold_size(path, sum(group.total_byte_size for group in groups), path.stat().st_size, PATH)
        yield file


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is that of texts."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _texts_of(path: Path) -> list[str]:
    """The columns of texts, which are read as numbers of distinct ones: a file repeats a long one for nothing."""
    from pyarrow import parquet

    return [one.name for one in parquet.read_schema(path) if is_text(one.type)]


def read_columns(path: Path, file: Any, names: Sequence[str]) -> list[Any]:
    """These columns of a file that is `opened`, pyarrow.ChunkedArray [n] each. InputError: too much for the memory.

    Texts are dictionaries of distinct ones, of which `spelled` makes texts.
    """
    held = list(file.schema_arrow.names)
    twice = [name for name in names if held.count(name) > 1]
    if twice:
        raise InputError(PATH, str(path), f"has the column {twice[0]!r} twice; give each a name of its own")
    shape = (file.metadata.num_rows, CELL * len(names))
    hold_memory(shape, PATH, str(path), "name fewer columns, or make several files")
    table = file.read(columns=list(names), use_threads=False)
    return [table.column(name) for name in names]


def spelled(path: Path, name: str, column: Any) -> Any:
    """A column whose values are written out where they are numbers of distinct ones. InputError: too much of them."""
    from pyarrow import compute, types

    if not types.is_dictionary(column.type):
        return column
    if is_text(column.type.value_type):
        lengths = (compute.binary_length(part.dictionary).take(part.indices) for part in column.chunks)
        letters = sum(compute.sum(one).as_py() or 0 for one in lengths)
        shape = (letters // 4 + 1,)
        hold_memory(shape, PATH, str(path), f"leave out the column {name!r}, whose texts take {letters} bytes")
    return column.cast(column.type.value_type)
