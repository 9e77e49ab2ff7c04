"""The table of a run: one row a completed round, read from `metrics.jsonl` when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.core.documents import parse_json
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.files import read_lines, reason
from fedsim.core.html import cell, html_table
from fedsim.core.near import meant
from fedsim.plots.curves import BOOKKEEPING

Row = dict[str, Any]
"""What one completed round, or the time since the last row, came to, by the names of metrics.jsonl."""


LARGEST = 2**30
"""Bytes of a metrics.jsonl that are read."""
SHOWN = 5
"""So many rows at either end are what a notebook shows of a longer table."""


class History:
    """Rows of named values. `source`: a metrics.jsonl, read at the first question, or the rows themselves.

    A row need not have every column: the test metrics stand only in rows of rounds with an evaluation. A
    value that was not finite is None.
    """

    def __init__(self, source: Path | Iterable[Mapping[str, Any]]) -> None:
        self._source = source

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, in the order of the rounds."""
        if isinstance(self._source, Path):
            return read_rows(self._source)
        return [dict(row) for row in self._source]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """One value a row; None where the row lacks the column. KeyError: no row has it."""
        self._demand(column)
        return [row.get(column) for row in self.rows]

    def __repr__(self) -> str:
        return f"History({len(self)} rows: {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        """The first and the last rows, as a notebook shows them, without counts that are always zero."""
        shown = [name for name in self.columns if name not in BOOKKEEPING or any(row.get(name) for row in self.rows)]
        ends = self.rows if len(self) <= 2 * SHOWN else [*self.rows[:SHOWN], None, *self.rows[-SHOWN:]]
        cells = [["..." if row is None else cell(row.get(name)) for name in shown] for row in ends]
        return html_table(shown, cells)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a row; NaN where one lacks the column or it was not finite.

        FedsimError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise FedsimError("a DataFrame needs pandas, which is not here: pip install pandas") from error
        return pandas.DataFrame(self.rows, columns=list(self.columns))

    def to_numpy(self, column: str) -> NDArray[np.float64]:
        """One number a row: float64 [rows]; NaN where the row lacks it or it was not finite."""
        return np.array([np.nan if value is None else value for value in self[column]], dtype=np.float64)

    def last(self, column: str) -> Any:
        """Return the value in the last row that has the column; None when it was not finite."""
        self._demand(column)
        return next(row[column] for row in reversed(self.rows) if column in row)

    def _demand(self, column: str) -> None:
        if column not in self.columns:
            near = meant(column, self.columns)
            raise KeyError(f"no column {column}; there are: {', '.join(self.columns) or 'none'}{near}")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a metrics.jsonl, line by line; an absent file has none.

    A last line that was cut off (a full disk, a killed process) is dropped. InputError: the file cannot be
    read, or another line is not a JSON object of numbers.
    """
    rows: list[Row] = []
    names: dict[str, str] = {}
    lines = read_lines(path, LARGEST)
    try:
        for number, line in enumerate(lines, start=1):
            try:
                found = parse_json(line)
            except ValueError as error:
                if next(lines, None) is None:
                    break
                raise InputError("metrics", str(path), f"line {number} is not JSON") from error
            if fault := fault_of(found, names):
                raise InputError("metrics", str(path), f"line {number} {fault}")
            rows.append({names[name]: value for name, value in found.items()})
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError("metrics", str(path), f"cannot be read: {reason(error)}") from error
    return rows


def finite_or_nan(rows: Iterable[Row]) -> list[Row]:
    """Rows as the run had them: a number that was not finite is null in the file."""
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def fault_of(row: Any, names: dict[str, str]) -> str:
    """What is wrong with a row; empty: nothing. names: those of earlier rows, which those of this one join.

    A row has them from there, for a text a value would be most of what a long run takes of the memory.
    """
    if not isinstance(row, dict):
        return "is not a JSON object"
    for name, value in row.items():
        if name not in names:
            if not name.isprintable():
                return f"has a name that no measure has: {name}"
            names[name] = name
        if not fits_row(value):
            return f"has no number as its {name}"
    if "round" in row and not (isinstance(row["round"], int) and row["round"] >= 0):
        return "has no number as its round"
    return ""


def fits_row(value: Any) -> bool:
    """Whether a value may stand in a row: one that 64 bits hold, or null where one was not finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and -(2**63) <= value < 2**63)
