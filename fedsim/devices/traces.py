"""Traces: tables with one row a record and one column `client`, in a CSV or a Parquet file."""

from __future__ import annotations

import csv
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from fedsim.core.data_files import DataFolder, reading
from fedsim.core.errors import InputError
from fedsim.core.files import expanded, look
from fedsim.core.options import LONGEST

SUFFIXES = (".csv", ".parquet")


def _known_suffix(file: str) -> str:
    if Path(file).suffix.lower() not in SUFFIXES:
        raise ValueError(f"name a {' or a '.join(SUFFIXES)} file")
    return file


File = Annotated[str, Field(min_length=1), AfterValidator(_known_suffix)]
"""The path of a trace: absolute, or below the data folder or else the current one. CSV has a row of column names."""


@dataclass(frozen=True, eq=False)
class Records:
    """The n rows of a trace, in the order of the file, of clients that all have at least one.

    path: of the file. option: that named it, for errors. clients: int64 [n]. columns: float64 [n] each, finite,
    and at most 31 years of seconds.
    """

    path: Path
    option: str
    clients: NDArray[np.int64]
    columns: tuple[NDArray[np.float64], ...]

    def require(self, holds: NDArray[np.bool_], fault: str) -> None:
        """Raise `InputError` with the number of the first row, from 1, in which something does not hold, [n]."""
        if not holds.all():
            raise InputError(self.option, str(self.path), f"row {int(np.argmin(holds)) + 1}: {fault}")


def read_trace(file: str, columns: Sequence[str], population: int, option: str, data_dir: Path | None) -> Records:
    """Read the columns `client` and these others, which are in seconds.

    population: N; every client 0 .. N-1 must have a row. option: the path of the option in the experiment file.
    Raises InputError, with the row and the remedy, where the file or a number in it cannot be used.
    """
    path = _find(file, option, data_dir)
    names = ("client", *columns)
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    with reading(path, f"a {path.suffix.lower()} table", option):
        ids, *values = (_numbers(column, name, path, option) for name, column in read(path, names, option).items())
    known = np.isin(ids, np.arange(population))
    records = Records(path, option, np.where(known, ids, 0).astype(np.int64), tuple(values))
    records.require(known, f"there is no such client; write whole numbers from 0 to {population - 1}")
    for name, column in zip(columns, values, strict=True):
        usable = np.isfinite(column) & (np.abs(column) <= LONGEST)
        records.require(usable, f"{name} must be a number of seconds, up to {LONGEST:g}; correct it or remove the row")
    absent = np.bincount(records.clients, minlength=population) == 0
    if absent.any():
        raise InputError(option, str(path), f"client {int(np.argmax(absent))} has no row; give every client one")
    return records


def _find(file: str, option: str, data_dir: Path | None) -> Path:
    folder = DataFolder(data_dir).path
    given = expanded(file, option)
    places = [place / given for place in (folder and expanded(folder, "data-dir"), Path.cwd()) if place is not None]
    for place in places:
        found = look(place, option)
        if found is not None and stat.S_ISREG(found.st_mode):
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    raise InputError(option, file, f"there is no such file; looked for {tried}")


def _read_csv(path: Path, names: Sequence[str], option: str) -> dict[str, list[object]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = [row for row in csv.reader(file) if row]
        except csv.Error as error:
            raise ValueError(str(error)) from error
    header = [name.strip() for name in rows.pop(0)] if rows else []
    _check_header(header, names, path, option)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            fault = f"row {number}: it has {len(row)} fields, the header {len(header)}; correct it"
            raise InputError(option, str(path), fault)
    places = {name: header.index(name) for name in names}
    return {name: [row[place] for row in rows] for name, place in places.items()}


def _read_parquet(path: Path, names: Sequence[str], option: str) -> dict[str, list[object]]:
    # Loaded where it is needed: most runs have no such file, and it takes a third of a second.
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        _check_header(file.schema_arrow.names, names, path, option)
        table = file.read(columns=list(names))
    return {name: table[name].to_pylist() for name in names}


def _check_header(header: Sequence[str], names: Sequence[str], path: Path, option: str) -> None:
    for name in names:
        if list(header).count(name) != 1:
            held = ", ".join(header[:20]) or "none"
            raise InputError(option, str(path), f"one column must be called {name}; the columns are: {held}")


def _numbers(column: Sequence[object], name: str, path: Path, option: str) -> NDArray[np.float64]:
    numbers = np.empty(len(column))
    for row, value in enumerate(column):
        try:
            numbers[row] = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            fault = f"row {row + 1}: {name} is {value!r}, which is no number; correct it or remove the row"
            raise InputError(option, str(path), fault) from None
    return numbers
