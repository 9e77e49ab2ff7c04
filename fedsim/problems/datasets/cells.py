"""Tables as they are written: every cell is a text, and a marker of what is missing is no value.

Whether a column holds numbers is asked of it later, and only where it is a feature or a target: ids and codes stay
what is written, so that `007` and `7` are two, and so are two ids of 17 digits that are one floating-point number.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from fedsim.core.data_files import TABLE, hold_kind, reading, unpacked
from fedsim.core.errors import InputError
from fedsim.problems.datasets.scaling import EXACT

PATH = f"{TABLE}.path"
MISSING: tuple[str, ...] = ("", "?", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND")
MISSING += ("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
"""What pandas takes for a missing value, and the question mark of the UCI's tables."""
DELIMITERS = (",", ";", "\t", "|")
BLANKS = r"\s+"
SAMPLE = 2**16
"""Letters of a table by which delimiter and number of columns are found; a row that begins in them is read whole."""
EXCEL = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
"""A line by which Excel is told the delimiter."""
BYTE_ORDERS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The encodings that the first bytes of a file announce; the longer ones first."""
TRUTH = {"true": 1.0, "false": 0.0}
Texts = Any
"""A column, pandas.Series of texts [n]; NaN where a value is missing."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a table is written; see the options of `fedsim.problems.datasets.tables.CSV`."""

    delimiter: str | None
    header: bool | None
    encoding: str | None
    comment: str | None
    missing: Sequence[str]


@dataclass(frozen=True)
class Cells:
    """The cells of one table, or of several with the same columns, one below the other.

    names: of the columns. columns: their texts. paths, begins: the files, and the number of the first row of each.
    """

    names: list[str]
    columns: list[Texts]
    paths: list[Path]
    begins: list[int]

    def __len__(self) -> int:
        return len(self.columns[0])

    def number(self, row: int) -> int:
        """The number of a row of data in its file, from 1."""
        return row - self.begins[bisect_right(self.begins, row) - 1] + 1

    def fault(self, row: int, fault: str) -> InputError:
        """Build the error about a row of data."""
        return InputError(PATH, str(self.paths[bisect_right(self.begins, row) - 1]), fault)

    def by_file(self, values: Sequence[str]) -> NDArray[Any]:
        """One value a file, as one a row, [n]."""
        of_row = np.searchsorted(self.begins, np.arange(len(self)), side="right") - 1
        return np.array(values, dtype=object)[of_row]

    def taken(self, rows: NDArray[Any]) -> Cells:
        """The same table with these rows alone, ascending; what is said of a row counts all rows of its file."""
        return _Taken(self.names, [column.take(rows) for column in self.columns], self.paths, self.begins, rows)


@dataclass(frozen=True)
class _Taken(Cells):
    rows: NDArray[Any]

    def by_file(self, values: Sequence[str]) -> NDArray[Any]:
        of_row = np.searchsorted(self.begins, self.rows, side="right") - 1
        return np.array(values, dtype=object)[of_row]

    def number(self, row: int) -> int:
        return super().number(int(self.rows[row]))

    def fault(self, row: int, fault: str) -> InputError:
        return super().fault(int(self.rows[row]), fault)


def read_cells(paths: Sequence[Path], writing: Writing) -> Cells:
    """Read tables that have the same columns. InputError: one of them is damaged, or has other columns."""
    return stacked([_read(path, writing) for path in paths])


def stacked(tables: Sequence[Cells]) -> Cells:
    """One below the other. InputError: one has other columns."""
    for table in tables[1:]:
        if table.names != tables[0].names:
            fault = f"has the columns {_some(table.names)}; {tables[0].paths[0]} has {_some(tables[0].names)}"
            raise InputError(PATH, str(table.paths[0]), fault)
    columns = [pandas.concat(parts, ignore_index=True) for parts in zip(*(one.columns for one in tables), strict=True)]
    begins = np.cumsum([0, *(len(table) for table in tables[:-1])]).tolist()
    return Cells(tables[0].names, columns, [table.paths[0] for table in tables], begins)


def appended(cells: Cells, tests: Cells, needed: Sequence[int]) -> Cells:
    """A table with the rows of another below, whose columns are found by their names where they are others.

    needed: columns that it must have; where it has not another, that is empty.
    """
    order: list[int | None] = list(range(len(tests.names)))
    if tests.names != cells.names:
        once = [name for name in tests.names if tests.names.count(name) == 1]
        order = [tests.names.index(name) if name in once else None for name in cells.names]
        for column in needed:
            if order[column] is None:
                fault = f"has no column {cells.names[column]!r}, and {cells.paths[0]} has; it has {_some(tests.names)}"
                raise InputError(PATH, str(tests.paths[0]), fault)
    empty = pandas.Series([np.nan] * len(tests), dtype=str)
    below = [empty if place is None else tests.columns[place] for place in order]
    columns = [pandas.concat(pair, ignore_index=True) for pair in zip(cells.columns, below, strict=True)]
    begins = [*cells.begins, *(begin + len(cells) for begin in tests.begins)]
    return Cells(cells.names, columns, [*cells.paths, *tests.paths], begins)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20])


def _read(path: Path, writing: Writing) -> Cells:
    text = _decoded(path, writing.encoding)
    excel = EXCEL.match(text)
    if excel is not None:
        text = text[excel.end() :]
    with reading(path, "CSV text", PATH), _long_fields(len(text)):
        delimiter = writing.delimiter or (excel and excel[1]) or _delimiter(path, text, writing.comment)
        first_rows = _first_rows(text, delimiter, writing.comment)
        if not first_rows:
            raise InputError(PATH, str(path), "the table has no row of data")
        width = len(first_rows[:2][-1])  # that of the second row: the first may lack a name
        try:
            frame = pandas.read_csv(
                io.StringIO(text),
                sep=delimiter,
                header=None,
                names=range(max(width, len(first_rows[0]))),
                index_col=False,
                dtype=str,
                na_filter=False,
                skipinitialspace=True,
                comment=writing.comment,
                on_bad_lines="error",
            )
        except pandas.errors.ParserError:
            _hold_width(path, text, delimiter, writing, len(first_rows[0]), width)
            raise
        columns = [frame[name].str.strip() for name in frame]
        if columns[-1].eq("").any():  # by which pandas fills up what is shorter than the others
            _hold_width(path, text, delimiter, writing, len(first_rows[0]), width)
    first = [str(column.iloc[0]) for column in columns]
    if len(first_rows) > 1 and len(first_rows[0]) + 1 == len(first):
        if columns[-1].iloc[1:].eq("").all():  # each row ends with a delimiter, but for the first
            first, columns = first[:-1], columns[:-1]
        else:  # R does not name the names of its rows
            first = ["", *first[:-1]]
    names = _names(path, first, writing)
    if writing.header is not False:
        columns = [column.iloc[1:].reset_index(drop=True) for column in columns]
    if not len(columns[0]):
        raise InputError(PATH, str(path), "the table has no row of data")
    columns = [column.mask(column.isin(writing.missing)) for column in columns]
    return Cells(names, columns, [path], [0])


def _decoded(path: Path, encoding: str | None) -> str:
    """The text of a file in an encoding; None: in the one that its first bytes announce, or else in UTF-8."""
    content = unpacked(path, "CSV text", PATH)
    if content.startswith(b"PAR1"):
        raise InputError(PATH, str(path), 'is Parquet; say kind = "parquet"')
    hold_kind(path, content, "save it as CSV", PATH)
    mark, announced = next(
        ((mark, name) for mark, name in BYTE_ORDERS.items() if content.startswith(mark)), (b"", "utf-8")
    )
    if mark and encoding is not None and not codecs.lookup(encoding).name.startswith(announced.removesuffix("-sig")):
        raise InputError(
            f"{TABLE}.encoding",
            encoding,
            f"{path} begins with the mark of {announced.removesuffix('-sig')}; leave it out",
        )
    try:
        text = content.decode(encoding or announced).removeprefix("\ufeff")
    except UnicodeError as error:
        where = f", byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        name = encoding or announced
        remedy = f'it is not {name}{where}; name what it is, such as encoding = "latin-1" or "cp1252"'
        raise InputError(PATH, str(path), f"cannot be read as CSV text: {remedy}") from error
    if "\0" in text:
        fault = f"has a NUL at letter {text.index(chr(0)) + 1}, which no table has; name its encoding, if it is a table"
        raise InputError(PATH, str(path), f"cannot be read as CSV text: it {fault}")
    other = _markup(text)
    if other is not None:
        raise InputError(PATH, str(path), f"is {other}, no table; save it as CSV")
    return text


def _markup(text: str) -> str | None:
    """What a text is that people take for a table; None: nothing of the kind."""
    begins = text[:200].lstrip().lower()
    if begins.startswith(("<!doctype", "<html", "<?xml", "<table")):
        return "HTML or XML"
    if begins.startswith(("{", "[")):
        for part in (text, begins and text.lstrip().splitlines()[0]):  # a document, or one a line
            with suppress(ValueError, RecursionError):
                json.loads(part)
                return "JSON"
    return None


def _rows(text: str, delimiter: str, comment: str | None) -> Iterator[list[str]]:
    """The rows of a text that are not empty."""
    lines = (line for line in io.StringIO(text, newline=None) if comment is None or not line.startswith(comment))
    if delimiter == BLANKS:
        return (fields for line in lines if (fields := line.split()))
    return (row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row)


def _first_rows(text: str, delimiter: str, comment: str | None) -> list[list[str]]:
    """The first rows of a text, whole: those that begin in its first `SAMPLE` letters, and three at least."""
    rows: list[list[str]] = []
    letters = 0
    for row in _rows(text, delimiter, comment):
        rows.append(row)
        letters += sum(map(len, row)) + len(row)
        if letters > SAMPLE and len(rows) >= 3:
            break
    return rows


@contextmanager
def _long_fields(most: int) -> Iterator[None]:
    """Within this block Python's reader of tables takes fields of so many letters."""
    before = csv.field_size_limit(most + 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _delimiter(path: Path, text: str, comment: str | None) -> str:
    """The one that divides the first rows of a text into equally many columns; a comma, if there is none."""
    found = [one for one in DELIMITERS if _divides(text, one, comment)]
    found = found or [one for one in DELIMITERS if _divides(text, one, comment, unnamed=1)]
    if len(found) > 1:
        shown = " and ".join(f"{one!r}" for one in found)
        fault = f"{shown} each divide the rows into equally many columns; say which it is"
        raise InputError(f"{TABLE}.delimiter", "(not given)", f"in {path}, {fault}")
    if not found and any(_divides(text, BLANKS, comment, unnamed) for unnamed in (0, 1)):
        return BLANKS
    return found[0] if found else ","


def _divides(text: str, delimiter: str, comment: str | None, unnamed: int = 0) -> bool:
    """Whether the first rows have equally many columns. unnamed: how many of them the first row does not name."""
    widths = [len(row) for row in _first_rows(text, delimiter, comment)]
    return len(widths) > unnamed and widths[0] + unnamed > 1 and set(widths[1:]) <= {widths[0] + unnamed}


def _names(path: Path, first: list[str], writing: Writing) -> list[str]:
    """The names of the columns, by the first row; numbers from 0 where that is an example."""
    if writing.header is False:
        return [str(place) for place in range(len(first))]
    if writing.header is None:
        values, *_ = as_numbers(pandas.Series(first, dtype=str))
        numbers = [name for name, value in zip(first, values, strict=True) if not np.isnan(value)]
        twice = [name for name in first if name and first.count(name) > 1]
        if numbers or twice:
            fault = f"{numbers[0]}, which is a number" if numbers else f"{twice[0]!r} twice"
            remedy = "say header = false if it is an example, header = true if it has the names of the columns"
            raise InputError(PATH, str(path), f"the first row has {fault}; {remedy}")
    return first


def as_numbers(texts: Texts, decimal: str = ".") -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """What texts are as numbers, [n], as pandas reads them: NaN where a value is missing or no number.

    Then which are texts rather than numbers, and which are numbers that say more as they are written: with zeros before
    them, or so many digits that floating-point numbers do not tell them apart, as codes and ids have.
    """
    place, distinct = texts.factorize()
    written = pandas.Series(distinct, dtype=str)
    if len(written) and written.str.lower().isin(TRUTH).all():
        values = written.str.lower().map(TRUTH).to_numpy(np.float64)
    else:
        if decimal != ".":
            written = written.str.replace(".", "?", regex=False).str.replace(decimal, ".", regex=False)
        values = pandas.to_numeric(written, errors="coerce").to_numpy(np.float64)
    exact = written.str.match(r"[+-]?0\d") | (written.str.fullmatch(r"[+-]?\d+") & (np.abs(values) > EXACT))
    missing = place < 0
    found = [np.append(values, np.nan)[place], np.append(np.isnan(values), False)[place]]
    return found[0], found[1] & ~missing, np.append(exact.to_numpy(bool), False)[place]


def _hold_width(path: Path, text: str, delimiter: str, writing: Writing, named: int, width: int) -> None:
    """Refuse a table with a row of other than `width` fields; a first one that has the names may have one less."""
    names = writing.header is not False
    for number, row in enumerate(_rows(text, delimiter, writing.comment)):
        wanted = named if names and number == 0 and named == width - 1 else width
        if len(row) != wanted:
            where = "the first row" if names and number == 0 else f"row {number + (not names)}"
            raise InputError(PATH, str(path), f"{where} has {len(row)} fields, the table {width} columns")


def first_of(wrong: NDArray[np.bool_]) -> int:
    """The place of the first that is true, of which there is one."""
    return int(np.argmax(wrong))
