"""Data sets as the library `datasets` saves them, and as its hub has them: their splits, files and columns.

A saved folder (`save_to_disk`) has a stream of Arrow in each file, the hub Parquet; either says in its schema what its
columns are. All is read by pyarrow alone: nothing in a folder is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.data_files import Array, DataFolder, hold_memory, reading
from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.problems.datasets.arrow import PATH, is_text, opened, parquet_files, spelled

TRAIN = "train"
TESTS = ("test", "validation", "valid", "val", "dev")
"""What splits of a test set are called: the first that is there."""
BATCH = 1024
"""Rows that are read at once, after which what came is held against the memory."""


@dataclass(frozen=True)
class Split:
    """Some of the columns of a split.

    columns: pyarrow.ChunkedArray [n] by name. features: what the library says of each, by name; perhaps nothing.
    """

    files: Sequence[Path]
    columns: Mapping[str, Any]
    features: Mapping[str, Mapping[str, Any]]

    def place(self, row: int) -> Path:
        """What an example is called in a message."""
        return self.files[0].parent / f"row {row + 1}"


def splits(folder: DataFolder, path: str) -> dict[str, list[Path]]:
    """The files of each split; of all, under no name, where there are no splits."""
    root = folder.resolve(path)
    if (root / "dataset_dict.json").is_file():
        with reading(root / "dataset_dict.json", "the splits of a saved data set", PATH):
            named = _names(json.loads((root / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
        return {name: _saved(folder, root / name) for name in named}
    if (root / "state.json").is_file():
        return {"": _saved(folder, root)}
    if root.is_file():
        return {"": [root]}
    files = parquet_files(folder, path, PATH)
    found = {name: [file for file in files if _is_of(name, file.relative_to(root))] for name in (TRAIN, *TESTS)}
    return {name: held for name, held in found.items() if held} or {"": files}


def _is_of(split: str, file: Path) -> bool:
    """Whether a file, or a folder that it is in, is called as a split: train, train-00000-of-00001."""
    return any(re.match(rf"{split}([-_.]|$)", part) for part in file.parts)


def _names(given: Any) -> list[str]:
    """Texts that are names of files or folders in a folder, and nowhere else. ValueError: one is not."""
    for name in given:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no name in this folder")
    return list(given)


def _saved(folder: DataFolder, place: Path) -> list[Path]:
    state = folder.resolve(str(place / "state.json"))
    with reading(state, "the state of a saved data set", PATH):
        told = json.loads(state.read_text(encoding="utf-8"))
        names = _names([one["filename"] for one in told["_data_files"]])
    if not names:
        raise InputError(PATH, str(place), "has no example")
    return [folder.resolve(str(place / name)) for name in names]


def column_names(file: Path) -> list[str]:
    """The names of a file's columns. InputError: it is neither Parquet nor Arrow, or damaged."""
    with _reader(file) as reader:
        return list(_schema(reader).names)


def read_split(files: Sequence[Path], names: Sequence[str]) -> Split:
    """These columns of a split. InputError: a file is damaged, lacks one, or holds too much for the memory."""
    parents = list(dict.fromkeys(file.parent for file in files))
    if len(parents) > 1:
        fault = f"has files of the same split, and so has {parents[1]}; name one of these folders"
        raise InputError(PATH, str(parents[0]), fault)
    tables = [_read(file, names) for file in files]
    columns = {}
    for name in names:
        parts = [table.column(name) for table, _ in tables]
        kinds = [part.type for part in parts]
        for file, kind in zip(files, kinds, strict=True):
            if kind != kinds[0]:
                fault = f"column {name!r} holds {kind}, and {kinds[0]} in {files[0]}"
                raise InputError(PATH, str(file), fault)
        chunks = [chunk for part in parts for chunk in part.chunks]
        columns[name] = library("pyarrow", "parquet", str(files[0]), PATH).chunked_array(chunks, kinds[0])
    return Split(files, columns, tables[0][1])


def joined_values(read: Sequence[Split], name: str) -> Array:
    """A column of several splits, one behind the other: numbers or texts, [n]. InputError: as `values_of`."""
    return np.concatenate([values_of(split, name) for split in read])


def values_of(split: Split, name: str) -> Array:
    """A column of numbers or texts, [n]. InputError: it holds neither, or a value is missing."""
    column = split.columns[name]
    if not (is_text(column.type) or is_number(column.type)):
        fault = f"column {name!r} holds {column.type}, no numbers or texts; name another column"
        raise InputError(PATH, str(split.files[0]), fault)
    hold_whole(split, name, column)
    if not is_text(column.type):
        found: Array = column.to_numpy()
        return found
    return text_array(column.to_pylist(), split.files[0])


def text_array(texts: Sequence[str], path: Path) -> Array:
    """Labels or owners as an array of texts, [n], each of which takes as much as the longest."""
    longest = max(map(len, texts), default=0)
    hold_memory((len(texts), longest), PATH, str(path), f"a label or an owner has {longest} letters; shorten it")
    return np.array(texts, dtype=str)


def class_names(split: Split, name: str) -> list[str]:
    """What the numbers of a column mean, in their order; nothing, if the library does not say it."""
    found = split.features.get(name, {}).get("names")
    return list(map(str, found)) if isinstance(found, list) else []


def hold_whole(split: Split, name: str, column: Any) -> None:
    """Refuse values that are missing: of a column, or of what is in its lists."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null())[0]) * len(split.columns[name]) // len(column)
        raise InputError(PATH, str(split.place(row)), f"column {name!r} has no value here; leave the example out")


def is_number(kind: Any) -> bool:
    """Whether a type of Arrow is that of numbers, or of truth values."""
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


@contextmanager
def _reader(file: Path) -> Iterator[Any]:
    """A file of Parquet, or a stream of Arrow, that is open."""
    with reading(file, "a file of a data set", PATH), file.open("rb") as content:
        packed = content.read(4) == b"PAR1"
    if packed:
        with opened(file) as found:
            yield found
        return
    pyarrow = library("pyarrow", "parquet", str(file), PATH)
    mapped, opened_stream = pyarrow.memory_map, pyarrow.ipc.open_stream
    with reading(file, "a stream of Arrow", PATH), mapped(str(file)) as source, opened_stream(source) as stream:
        yield stream


def _schema(reader: Any) -> Any:
    return reader.schema_arrow if hasattr(reader, "schema_arrow") else reader.schema


def _read(file: Path, names: Sequence[str]) -> tuple[Any, Mapping[str, Mapping[str, Any]]]:
    """The columns of a file, a pyarrow.Table whose offsets were checked, and what its schema says of them."""
    import pyarrow

    with _reader(file) as reader:
        schema = _schema(reader)
        for name in names:
            if list(schema.names).count(name) != 1:
                fault = f"{name!r} is not the name of one column; there are {', '.join(schema.names[:20])}"
                raise InputError(PATH, str(file), fault)
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = {name: dict(one) for name, one in dict(told.get("info", {}).get("features") or {}).items()}
        if hasattr(reader, "iter_batches"):
            batches = reader.iter_batches(BATCH, columns=list(names), use_threads=False)
        else:
            batches = (batch.select(list(names)) for batch in reader)
        held, size = [], 0
        for batch in batches:
            batch.validate(full=True)
            held.append(batch)
            size += batch.nbytes
            hold_memory((size // 4,), PATH, str(file), "name fewer columns, or take a part of it")
        kinds = pyarrow.schema([schema.field(name) for name in names]) if not held else held[0].schema
        table = pyarrow.Table.from_batches(held, kinds).select(list(names))
        columns = [spelled(file, name, _stored(table.column(name))) for name in names]
        return pyarrow.table(columns, names=list(names)), features


def _stored(column: Any) -> Any:
    """A column without a type of its own, such as the library's arrays of two axes, as what it is stored as."""
    import pyarrow

    if not isinstance(column.type, pyarrow.BaseExtensionType):
        return column
    return pyarrow.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
